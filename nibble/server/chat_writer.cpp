// chat.completion and chat.completion.chunk; spec serving sections 3.2, 3.3 and 3.5.
#include <fmt/format.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <random>

#include "nibble/server/reply_writer.h"

namespace nibble {
namespace {

using Json = nlohmann::ordered_json;

std::string dump(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

Json token_json(const Tokenizer& tokenizer, const TokenLogprob& entry) {
  const std::string_view bytes = tokenizer.token_bytes(entry.id);
  Json list = Json::array();
  for (const char byte : bytes) list.push_back(static_cast<int>(static_cast<uint8_t>(byte)));
  return {{"token", token_text(tokenizer, entry.id)},
          {"logprob", finite_logprob(entry.logprob)},
          {"bytes", std::move(list)}};
}

Json logprobs_list(const Tokenizer& tokenizer, const std::vector<PositionLogprobs>& positions,
                   int64_t top) {
  Json list = Json::array();
  for (const PositionLogprobs& position : positions) {
    Json entry = token_json(tokenizer, position.chosen);
    Json best = Json::array();
    if (top > 0) {
      for (const TokenLogprob& candidate : position.top) {
        best.push_back(token_json(tokenizer, candidate));
      }
    }
    entry["top_logprobs"] = std::move(best);
    list.push_back(std::move(entry));
  }
  return list;
}

Json stop_reason(const Choice& choice) {
  if (choice.stop_text) return *choice.stop_text;
  if (choice.stop_token_id) return *choice.stop_token_id;
  return nullptr;
}

class ChatWriter final : public ReplyWriter {
 public:
  explicit ChatWriter(const ReplyContext& context)
      : context_(context), chunk_head_(head("chat.completion.chunk")) {}

  std::string step(const ReplyDelta& delta, const Usage& usage) override {
    const Choice& choice = *delta.choice;
    std::string out;
    if (delta.first) {
      Json head = {{"role", "assistant"}, {"content", ""}};
      Json prompt_ids;
      if (context_.request->return_token_ids) prompt_ids = context_.request->prompts.front();
      out += chunk(choice.index, std::move(head), nullptr, nullptr, usage, nullptr, prompt_ids);
    }
    // The tokens of the step stand in its first chunk, log-probabilities in that of their channel.
    Json token_ids;
    if (context_.request->return_token_ids) token_ids = delta.token_ids;
    bool content_logprobs_sent = delta.content_logprobs.empty();
    bool reasoning_logprobs_sent = delta.reasoning_logprobs.empty();
    for (const ReplyEvent& event : delta.events) {
      if (is_plain(event, delta)) {
        out += plain_chunk(choice.index, event, usage);
        continue;
      }
      Json fields = Json::object();
      Json logprobs;
      switch (event.kind) {
        case ReplyEvent::Kind::kReasoning:
          if (!context_.request->include_reasoning) continue;
          add_reasoning(event.text, &fields);
          if (!std::exchange(reasoning_logprobs_sent, true)) {
            logprobs = logprobs_json({}, delta.reasoning_logprobs);
          }
          break;
        case ReplyEvent::Kind::kContent:
          fields["content"] = event.text;
          if (!std::exchange(content_logprobs_sent, true)) {
            logprobs = logprobs_json(delta.content_logprobs, {});
          }
          break;
        case ReplyEvent::Kind::kToolStart: {
          Json call = {{"index", event.call},
                       {"id", choice.calls[static_cast<size_t>(event.call)].id},
                       {"type", "function"},
                       {"function", {{"name", event.text}, {"arguments", ""}}}};
          fields["tool_calls"] = Json::array({std::move(call)});
          break;
        }
        case ReplyEvent::Kind::kToolArguments: {
          Json call = {{"index", event.call}, {"function", {{"arguments", event.text}}}};
          fields["tool_calls"] = Json::array({std::move(call)});
          break;
        }
        default:
          continue;
      }
      out += chunk(choice.index, std::move(fields), std::move(logprobs), nullptr, usage,
                   std::exchange(token_ids, nullptr));
    }
    if (delta.finished) {
      Json logprobs;
      if (!content_logprobs_sent) logprobs = logprobs_json(delta.content_logprobs, {});
      out += chunk(choice.index, Json::object(), std::move(logprobs), choice.finish_reason, usage,
                   std::exchange(token_ids, nullptr), nullptr, stop_reason(choice));
    } else if (out.empty() && !token_ids.is_null() && !token_ids.empty()) {
      out += chunk(choice.index, Json::object(), nullptr, nullptr, usage, std::move(token_ids));
    }
    return out;
  }

  std::string end(const Usage& usage) override {
    std::string out;
    if (context_.request->include_usage) {
      out = "data: " + chunk_head_ + "\"choices\":[],\"usage\":" + usage_json(usage) + "}\n\n";
    }
    return out + "data: [DONE]\n\n";
  }

  std::string error(const ApiError& error) override {
    return "data: " + error_json(error) + "\n\ndata: [DONE]\n\n";
  }

  std::string body(const std::vector<const Choice*>& choices, const Usage& usage) override {
    Json list = Json::array();
    for (const Choice* choice : choices) {
      Json message = {{"role", "assistant"}};
      if (choice->calls.empty() || !choice->content.empty()) {
        message["content"] = choice->content;
      } else {
        message["content"] = nullptr;
      }
      if (context_.request->include_reasoning && !choice->reasoning.empty()) {
        add_reasoning(choice->reasoning, &message);
      }
      if (!choice->calls.empty()) {
        Json calls = Json::array();
        for (const NamedCall& call : choice->calls) {
          calls.push_back({{"id", call.id},
                           {"type", "function"},
                           {"function", {{"name", call.name}, {"arguments", call.arguments}}}});
        }
        message["tool_calls"] = std::move(calls);
      }
      Json entry = {{"index", choice->index}, {"message", std::move(message)}};
      entry["logprobs"] = context_.request->logprobs
                              ? logprobs_json(choice->content_logprobs, choice->reasoning_logprobs)
                              : Json(nullptr);
      entry["finish_reason"] = choice->finish_reason;
      entry["stop_reason"] = stop_reason(*choice);
      if (context_.request->return_token_ids) entry["token_ids"] = choice->token_ids;
      list.push_back(std::move(entry));
    }
    std::string more;
    if (context_.request->prompt_logprobs && !choices.empty()) {
      more += ",\"prompt_logprobs\":" +
              prompt_logprobs_json(*choices.front(), *context_.model->tokenizer);
    }
    if (context_.request->return_token_ids) {
      more += ",\"prompt_token_ids\":" + Json(context_.request->prompts.front()).dump();
    }
    return head("chat.completion") + "\"choices\":" + dump(list) +
           ",\"usage\":" + usage_json(usage) + more + "}";
  }

 private:
  // "{" and the members that all parts share.
  std::string head(std::string_view object) const {
    return fmt::format(
        "{{\"id\":\"{}\",\"object\":\"{}\",\"created\":{},\"model\":{},\"system_fingerprint\":\"{}"
        "\",",
        context_.id, object, context_.created, json_text(context_.request->model),
        context_.fingerprint);
  }

  void add_reasoning(const std::string& text, Json* fields) const {
    if (context_.model->reasoning_content) (*fields)["reasoning_content"] = text;
    if (context_.model->reasoning) (*fields)["reasoning"] = text;
  }

  Json logprobs_json(const std::vector<PositionLogprobs>& content,
                     const std::vector<PositionLogprobs>& reasoning) const {
    const int64_t top = context_.request->params.logprobs.value_or(0);
    const Tokenizer& tokenizer = *context_.model->tokenizer;
    Json json = {{"content", logprobs_list(tokenizer, content, top)}, {"refusal", nullptr}};
    if (!reasoning.empty()) {
      json["reasoning_content"] = logprobs_list(tokenizer, reasoning, top);
    }
    return json;
  }

  std::string chunk(int index, Json delta, Json logprobs, Json finish_reason, const Usage& usage,
                    Json token_ids, const Json& prompt_token_ids = nullptr,
                    const Json& stop = nullptr) const {
    const bool finishes = !finish_reason.is_null();
    Json choice = {{"index", index},
                   {"delta", std::move(delta)},
                   {"logprobs", std::move(logprobs)},
                   {"finish_reason", std::move(finish_reason)}};
    if (finishes) choice["stop_reason"] = stop;
    if (!token_ids.is_null()) choice["token_ids"] = std::move(token_ids);
    std::string more;
    if (!prompt_token_ids.is_null()) more = ",\"prompt_token_ids\":" + prompt_token_ids.dump();
    return event_of(dump(choice), more, usage);
  }

  std::string event_of(std::string_view choice, std::string_view more, const Usage& usage) const {
    std::string out;
    out.reserve(chunk_head_.size() + choice.size() + more.size() + 64);
    out.append("data: ").append(chunk_head_).append("\"choices\":[").append(choice).append("]");
    out += more;
    if (context_.request->continuous_usage) {
      out += ",\"usage\":" + usage_json(usage);
    } else if (context_.request->include_usage) {
      out += ",\"usage\":null";
    }
    return out.append("}\n\n");
  }

  // Text and nothing else: nearly every event.
  bool is_plain(const ReplyEvent& event, const ReplyDelta& delta) const {
    if (context_.request->return_token_ids) return false;
    if (event.kind == ReplyEvent::Kind::kContent) return delta.content_logprobs.empty();
    return event.kind == ReplyEvent::Kind::kReasoning && context_.request->include_reasoning &&
           delta.reasoning_logprobs.empty();
  }

  std::string plain_chunk(int index, const ReplyEvent& event, const Usage& usage) const {
    const std::string text = json_text(event.text);
    std::string fields;
    const auto add = [&](std::string_view name) {
      fields.append(fields.empty() ? "\"" : ",\"").append(name).append("\":").append(text);
    };
    if (event.kind == ReplyEvent::Kind::kContent) {
      add("content");
    } else {
      if (context_.model->reasoning_content) add("reasoning_content");
      if (context_.model->reasoning) add("reasoning");
    }
    return event_of(plain_choice(index, "\"delta\":{" + fields + "}"), "", usage);
  }

  const ReplyContext& context_;
  std::string chunk_head_;
};

}  // namespace

std::unique_ptr<ReplyWriter> make_chat_writer(const ReplyContext& context) {
  return std::make_unique<ChatWriter>(context);
}

std::unique_ptr<ReplyWriter> make_reply_writer(const ReplyContext& context) {
  switch (context.request->api) {
    case Api::kChat:
      return make_chat_writer(context);
    case Api::kCompletions:
      return make_completion_writer(context);
    case Api::kMessages:
      return make_messages_writer(context);
    case Api::kResponses:
      return make_responses_writer(context);
  }
  return nullptr;
}

std::string random_id(std::string_view prefix) {
  static thread_local std::mt19937_64 rng{std::random_device{}()};
  constexpr std::string_view kLetters =
      "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
  std::uniform_int_distribution<size_t> draw(0, kLetters.size() - 1);
  std::string id(prefix);
  for (int i = 0; i < 24; ++i) id += kLetters[draw(rng)];
  return id;
}

std::string json_text(std::string_view text) { return dump(Json(text)); }

std::string plain_choice(int index, std::string_view text_member) {
  return fmt::format("{{\"index\":{},{},\"logprobs\":null,\"finish_reason\":null}}", index,
                     text_member);
}

std::string usage_json(const Usage& usage) {
  return fmt::format(
      "{{\"prompt_tokens\":{},\"completion_tokens\":{},\"total_tokens\":{},"
      "\"prompt_tokens_details\":{{\"cached_tokens\":{}}},"
      "\"completion_tokens_details\":{{\"reasoning_tokens\":{},"
      "\"accepted_prediction_tokens\":{},\"rejected_prediction_tokens\":{}}}}}",
      usage.prompt_tokens, usage.completion_tokens, usage.prompt_tokens + usage.completion_tokens,
      usage.cached_tokens, usage.reasoning_tokens, usage.accepted_tokens,
      usage.draft_tokens - usage.accepted_tokens);
}

double finite_logprob(double value) { return std::isfinite(value) ? value : -9999.0; }

std::string token_text(const Tokenizer& tokenizer, int32_t id) {
  Utf8Stream stream;
  std::string text;
  stream.push(tokenizer.token_bytes(id), text);
  stream.flush(text);
  return text;
}

std::string prompt_logprobs_json(const Choice& choice, const Tokenizer& tokenizer) {
  Json list = Json::array({nullptr});
  for (const PositionLogprobs& position : choice.prompt_logprobs) {
    Json entry = Json::object();
    const auto add = [&](const TokenLogprob& token) {
      entry[std::to_string(token.id)] = {{"logprob", finite_logprob(token.logprob)},
                                         {"rank", token.rank},
                                         {"decoded_token", token_text(tokenizer, token.id)}};
    };
    add(position.chosen);
    for (const TokenLogprob& token : position.top) add(token);
    list.push_back(std::move(entry));
  }
  return dump(list);
}

}  // namespace nibble
