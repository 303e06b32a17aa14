// Anthropic's message and its events; spec serving section 3.7.
#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "nibble/server/reply_writer.h"

namespace nibble {
namespace {

using Json = nlohmann::ordered_json;

std::string dump(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

std::string event(const Json& data) {
  return fmt::format("event: {}\ndata: {}\n\n", data["type"].get<std::string>(), dump(data));
}

std::string_view stop_reason(const Choice& choice) {
  if (choice.stop_text) return "stop_sequence";
  if (choice.finish_reason == "length") return "max_tokens";
  return choice.finish_reason == "tool_calls" ? "tool_use" : "end_turn";
}

// "call_x" -> "toolu_x".
std::string tool_use_id(const std::string& id) { return "toolu_" + id.substr(id.find('_') + 1); }

Json arguments_json(const std::string& text) {
  Json json = Json::parse(text, nullptr, false);
  // A client expects an object, and cut-off arguments are none.
  return json.is_object() ? json : Json::object();
}

Json usage_of(const Usage& usage) {
  return {{"input_tokens", usage.prompt_tokens - usage.cached_tokens},
          {"cache_creation_input_tokens", 0},
          {"cache_read_input_tokens", usage.cached_tokens},
          {"output_tokens", usage.completion_tokens}};
}

class MessagesWriter final : public ReplyWriter {
 public:
  explicit MessagesWriter(const ReplyContext& context) : context_(context) {}

  std::string begin(const Usage& usage) override {
    return event(
        {{"type", "message_start"}, {"message", message(Json::array(), nullptr, nullptr, usage)}});
  }

  std::string step(const ReplyDelta& delta, const Usage&) override {
    const Choice& choice = *delta.choice;
    std::string out;
    for (const ReplyEvent& part : delta.events) {
      switch (part.kind) {
        case ReplyEvent::Kind::kReasoning:
          if (!context_.request->include_reasoning) break;
          out += open("thinking", {{"type", "thinking"}, {"thinking", ""}, {"signature", ""}});
          out += change({{"type", "thinking_delta"}, {"thinking", part.text}});
          break;
        case ReplyEvent::Kind::kContent:
          out += open("text", {{"type", "text"}, {"text", ""}});
          out += change({{"type", "text_delta"}, {"text", part.text}});
          break;
        case ReplyEvent::Kind::kToolStart:
          out += close();
          out += open("tool_use",
                      {{"type", "tool_use"},
                       {"id", tool_use_id(choice.calls[static_cast<size_t>(part.call)].id)},
                       {"name", part.text},
                       {"input", Json::object()}});
          break;
        case ReplyEvent::Kind::kToolArguments:
          out += change({{"type", "input_json_delta"}, {"partial_json", part.text}});
          break;
        default:
          break;
      }
    }
    if (!delta.finished) return out;
    out += close();
    reason_ = stop_reason(choice);
    stop_text_ = choice.stop_text;
    return out;
  }

  std::string end(const Usage& usage) override {
    Json sequence = nullptr;
    if (stop_text_) sequence = *stop_text_;
    return event({{"type", "message_delta"},
                  {"delta", {{"stop_reason", reason_}, {"stop_sequence", sequence}}},
                  {"usage", usage_of(usage)}}) +
           event({{"type", "message_stop"}});
  }

  std::string error(const ApiError& error) override {
    return "event: error\ndata: " + anthropic_error_json(error) + "\n\n";
  }
  std::string keep_alive() override { return event({{"type", "ping"}}); }

  std::string body(const std::vector<const Choice*>& choices, const Usage& usage) override {
    const Choice& choice = *choices.front();
    Json content = Json::array();
    if (context_.request->include_reasoning && !choice.reasoning.empty()) {
      content.push_back({{"type", "thinking"}, {"thinking", choice.reasoning}, {"signature", ""}});
    }
    if (!choice.content.empty() || choice.calls.empty()) {
      content.push_back({{"type", "text"}, {"text", choice.content}});
    }
    for (const NamedCall& call : choice.calls) {
      content.push_back({{"type", "tool_use"},
                         {"id", tool_use_id(call.id)},
                         {"name", call.name},
                         {"input", arguments_json(call.arguments)}});
    }
    Json sequence = nullptr;
    if (choice.stop_text) sequence = *choice.stop_text;
    return dump(message(std::move(content), stop_reason(choice), sequence, usage));
  }

 private:
  Json message(Json content, Json reason, Json sequence, const Usage& usage) const {
    return {{"id", context_.id},
            {"type", "message"},
            {"role", "assistant"},
            {"model", context_.request->model},
            {"content", std::move(content)},
            {"stop_reason", std::move(reason)},
            {"stop_sequence", std::move(sequence)},
            {"usage", usage_of(usage)}};
  }

  std::string open(std::string_view kind, const Json& block) {
    if (open_ == kind && kind != "tool_use") return "";
    std::string out = close();
    open_ = kind;
    return out +
           event({{"type", "content_block_start"}, {"index", index_}, {"content_block", block}});
  }
  std::string change(const Json& delta) const {
    return event({{"type", "content_block_delta"}, {"index", index_}, {"delta", delta}});
  }
  std::string close() {
    if (open_.empty()) return "";
    std::string out;
    if (open_ == "thinking") out += change({{"type", "signature_delta"}, {"signature", ""}});
    out += event({{"type", "content_block_stop"}, {"index", index_}});
    open_.clear();
    ++index_;
    return out;
  }

  const ReplyContext& context_;
  std::string open_;  // the kind of the block in progress
  int index_ = 0;
  std::string_view reason_ = "end_turn";
  std::optional<std::string> stop_text_;
};

}  // namespace

std::unique_ptr<ReplyWriter> make_messages_writer(const ReplyContext& context) {
  return std::make_unique<MessagesWriter>(context);
}

}  // namespace nibble
