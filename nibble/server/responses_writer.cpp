// OpenAI's response object and its events; spec serving section 3.8.
#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "nibble/server/reply_writer.h"

namespace nibble {
namespace {

using Json = nlohmann::ordered_json;

std::string dump(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

// "resp_x" -> "msg_x": items take their ids from the response and their place.
std::string item_id(std::string_view prefix, const std::string& response, int index) {
  return fmt::format("{}_{}{}", prefix, response.substr(response.find('_') + 1), index);
}

class ResponsesWriter final : public ReplyWriter {
 public:
  explicit ResponsesWriter(const ReplyContext& context) : context_(context) {}

  std::string begin(const Usage&) override {
    std::string out = whole("response.created", "in_progress", Json::array(), nullptr);
    return out + whole("response.in_progress", "in_progress", Json::array(), nullptr);
  }

  std::string step(const ReplyDelta& delta, const Usage&) override {
    const Choice& choice = *delta.choice;
    std::string out;
    for (const ReplyEvent& part : delta.events) {
      switch (part.kind) {
        case ReplyEvent::Kind::kReasoning:
          if (!context_.request->include_reasoning) break;
          out += open(Kind::kReasoning, choice, 0);
          text_ += part.text;
          out += event("response.reasoning_text.delta", {{"item_id", id_},
                                                         {"output_index", index()},
                                                         {"content_index", 0},
                                                         {"delta", part.text}});
          break;
        case ReplyEvent::Kind::kContent:
          out += open(Kind::kMessage, choice, 0);
          text_ += part.text;
          out += event("response.output_text.delta", {{"item_id", id_},
                                                      {"output_index", index()},
                                                      {"content_index", 0},
                                                      {"delta", part.text},
                                                      {"logprobs", Json::array()}});
          break;
        case ReplyEvent::Kind::kToolStart:
          out += close("completed");
          out += open(Kind::kCall, choice, static_cast<size_t>(part.call));
          break;
        case ReplyEvent::Kind::kToolArguments:
          text_ += part.text;
          out += event("response.function_call_arguments.delta",
                       {{"item_id", id_}, {"output_index", index()}, {"delta", part.text}});
          break;
        default:
          break;
      }
    }
    if (!delta.finished) return out;
    cut_ = choice.finish_reason == "length";
    return out + close(cut_ ? "incomplete" : "completed");
  }

  std::string end(const Usage& usage) override {
    return whole(cut_ ? "response.incomplete" : "response.completed",
                 cut_ ? "incomplete" : "completed", done_, usage_of(usage));
  }

  std::string error(const ApiError& error) override {
    Json response = object("failed", done_, nullptr);
    response["error"] = {{"code", error.code.empty() ? "server_error" : error.code},
                         {"message", error.message}};
    return event("response.failed", {{"response", std::move(response)}});
  }

  std::string body(const std::vector<const Choice*>& choices, const Usage& usage) override {
    const Choice& choice = *choices.front();
    cut_ = choice.finish_reason == "length";
    const std::string status = cut_ ? "incomplete" : "completed";
    if (context_.request->include_reasoning && !choice.reasoning.empty()) {
      done_.push_back(reasoning_item(next_id(Kind::kReasoning), choice.reasoning, status));
    }
    if (!choice.content.empty() || choice.calls.empty()) {
      done_.push_back(message_item(next_id(Kind::kMessage), choice.content, status));
    }
    for (const NamedCall& call : choice.calls) {
      done_.push_back(call_item(next_id(Kind::kCall), call, call.arguments, status));
    }
    return dump(object(status, done_, usage_of(usage)));
  }

 private:
  enum class Kind { kNone, kReasoning, kMessage, kCall };

  int index() const { return static_cast<int>(done_.size()); }
  std::string next_id(Kind kind) const {
    return item_id(kind == Kind::kReasoning ? "rs"
                   : kind == Kind::kMessage ? "msg"
                                            : "fc",
                   context_.id, index());
  }

  static Json text_part(const std::string& text) {
    return {{"type", "output_text"},
            {"text", text},
            {"annotations", Json::array()},
            {"logprobs", Json::array()}};
  }
  static Json reasoning_item(const std::string& id, const std::string& text,
                             const std::string& status) {
    return {{"type", "reasoning"},
            {"id", id},
            {"summary", Json::array()},
            {"content", Json::array({{{"type", "reasoning_text"}, {"text", text}}})},
            {"status", status}};
  }
  static Json message_item(const std::string& id, const std::string& text,
                           const std::string& status) {
    return {{"type", "message"},
            {"id", id},
            {"role", "assistant"},
            {"status", status},
            {"content", Json::array({text_part(text)})}};
  }
  static Json call_item(const std::string& id, const NamedCall& call, const std::string& arguments,
                        const std::string& status) {
    return {{"type", "function_call"}, {"id", id},        {"call_id", call.id}, {"name", call.name},
            {"arguments", arguments},  {"status", status}};
  }

  std::string event(std::string_view type, const Json& fields) {
    Json data = {{"type", type}, {"sequence_number", sequence_++}};
    data.update(fields);
    return fmt::format("event: {}\ndata: {}\n\n", type, dump(data));
  }

  std::string open(Kind kind, const Choice& choice, size_t call) {
    if (open_ == kind && kind != Kind::kCall) return "";
    std::string out = close("completed");
    open_ = kind;
    id_ = next_id(kind);
    text_.clear();
    Json item;
    if (kind == Kind::kReasoning) {
      item = reasoning_item(id_, "", "in_progress");
      item["content"] = Json::array();
    } else if (kind == Kind::kMessage) {
      item = message_item(id_, "", "in_progress");
      item["content"] = Json::array();
    } else {
      call_ = choice.calls[call];
      item = call_item(id_, call_, "", "in_progress");
    }
    out += event("response.output_item.added", {{"output_index", index()}, {"item", item}});
    if (kind == Kind::kCall) return out;
    Json part = text_part("");
    if (kind == Kind::kReasoning) part = {{"type", "reasoning_text"}, {"text", ""}};
    return out + event("response.content_part.added", {{"item_id", id_},
                                                       {"output_index", index()},
                                                       {"content_index", 0},
                                                       {"part", std::move(part)}});
  }

  std::string close(const std::string& status) {
    if (open_ == Kind::kNone) return "";
    std::string out;
    Json item;
    const auto place = [&](const Json& more) {
      Json fields = {{"item_id", id_}, {"output_index", index()}};
      fields.update(more);
      return fields;
    };
    if (open_ == Kind::kCall) {
      out += event("response.function_call_arguments.done",
                   place({{"name", call_.name}, {"arguments", text_}}));
      item = call_item(id_, call_, text_, status);
    } else if (open_ == Kind::kReasoning) {
      out += event("response.reasoning_text.done", place({{"content_index", 0}, {"text", text_}}));
      out += event(
          "response.content_part.done",
          place({{"content_index", 0}, {"part", {{"type", "reasoning_text"}, {"text", text_}}}}));
      item = reasoning_item(id_, text_, status);
    } else {
      out += event("response.output_text.done",
                   place({{"content_index", 0}, {"text", text_}, {"logprobs", Json::array()}}));
      out += event("response.content_part.done",
                   place({{"content_index", 0}, {"part", text_part(text_)}}));
      item = message_item(id_, text_, status);
    }
    out += event("response.output_item.done", {{"output_index", index()}, {"item", item}});
    done_.push_back(std::move(item));
    open_ = Kind::kNone;
    return out;
  }

  static Json usage_of(const Usage& usage) {
    return {{"input_tokens", usage.prompt_tokens},
            {"input_tokens_details", {{"cached_tokens", usage.cached_tokens}}},
            {"output_tokens", usage.completion_tokens},
            {"output_tokens_details", {{"reasoning_tokens", usage.reasoning_tokens}}},
            {"total_tokens", usage.prompt_tokens + usage.completion_tokens}};
  }

  Json object(std::string_view status, const Json& output, Json usage) const {
    Json json = {{"id", context_.id},
                 {"object", "response"},
                 {"created_at", context_.created},
                 {"status", status},
                 {"model", context_.request->model},
                 {"output", output},
                 {"incomplete_details", nullptr},
                 {"error", nullptr},
                 {"previous_response_id", nullptr},
                 {"store", false},
                 {"usage", std::move(usage)}};
    if (status == "incomplete") json["incomplete_details"] = {{"reason", "max_output_tokens"}};
    const std::string& members = context_.request->echo_members;
    if (!members.empty()) {
      json.update(Json::parse("{" + members.substr(0, members.size() - 1) + "}"));
    }
    return json;
  }

  std::string whole(std::string_view type, std::string_view status, const Json& output,
                    Json usage) {
    return event(type, {{"response", object(status, output, std::move(usage))}});
  }

  const ReplyContext& context_;
  Json done_ = Json::array();  // finished items
  Kind open_ = Kind::kNone;
  std::string id_;    // of the item in progress
  std::string text_;  // of it, so far
  NamedCall call_;
  bool cut_ = false;
  int64_t sequence_ = 0;
};

}  // namespace

std::unique_ptr<ReplyWriter> make_responses_writer(const ReplyContext& context) {
  return std::make_unique<ResponsesWriter>(context);
}

}  // namespace nibble
