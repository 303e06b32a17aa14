// text_completion; spec serving sections 3.4 and 3.5.
#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "nibble/server/reply_writer.h"

namespace nibble {
namespace {

using Json = nlohmann::ordered_json;

std::string dump(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

size_t count_characters(std::string_view text) {
  size_t count = 0;
  for (const char c : text) count += (static_cast<uint8_t>(c) & 0xc0) != 0x80 ? 1 : 0;
  return count;
}

class CompletionWriter final : public ReplyWriter {
 public:
  explicit CompletionWriter(const ReplyContext& context)
      : context_(context),
        head_(fmt::format(
            "{{\"id\":\"{}\",\"object\":\"text_completion\",\"created\":{},\"model\":{},"
            "\"system_fingerprint\":\"{}\",",
            context.id, context.created, json_text(context.request->model), context.fingerprint)) {}

  std::string step(const ReplyDelta& delta, const Usage& usage) override {
    Choice& choice = *delta.choice;
    std::string text;
    if (delta.first && context_.request->echo) text = prompt_text(choice);
    Json logprobs;
    if (context_.request->logprobs) {
      Lists lists;
      if (delta.first && context_.request->echo) add_prompt(choice, &lists);
      add_tokens(delta.token_ids, delta.content_logprobs, &choice.text_offset, &lists);
      logprobs = std::move(lists).json();
    }
    for (const ReplyEvent& event : delta.events) text += event.text;
    const bool has_logprobs = !logprobs.is_null() && !logprobs["tokens"].empty();
    std::string out;
    if (!text.empty() || has_logprobs || context_.request->return_token_ids) {
      out += chunk(choice, text, std::move(logprobs), nullptr, usage, delta.token_ids);
    }
    if (delta.finished) out += chunk(choice, "", nullptr, choice.finish_reason, usage, {});
    return out;
  }

  std::string end(const Usage& usage) override {
    std::string out;
    if (context_.request->include_usage) {
      out = "data: " + head_ + "\"choices\":[],\"usage\":" + usage_json(usage) + "}\n\n";
    }
    return out + "data: [DONE]\n\n";
  }

  std::string error(const ApiError& error) override {
    return "data: " + error_json(error) + "\n\ndata: [DONE]\n\n";
  }

  std::string body(const std::vector<const Choice*>& choices, const Usage& usage) override {
    Json list = Json::array();
    for (const Choice* choice : choices) {
      const bool echo = context_.request->echo;
      Json entry = {{"index", choice->index},
                    {"text", (echo ? prompt_text(*choice) : "") + choice->content}};
      if (context_.request->logprobs) {
        Lists lists;
        size_t offset = 0;
        if (echo) {
          Choice copy = *choice;
          copy.text_offset = 0;
          add_prompt(copy, &lists);
          offset = copy.text_offset;
        }
        add_tokens(choice->token_ids, choice->content_logprobs, &offset, &lists);
        entry["logprobs"] = std::move(lists).json();
      } else {
        entry["logprobs"] = nullptr;
      }
      entry["finish_reason"] = choice->finish_reason;
      add_stop_reason(*choice, &entry);
      if (context_.request->return_token_ids) {
        entry["token_ids"] = choice->token_ids;
        entry["prompt_token_ids"] = prompt_of(*choice);
      }
      if (context_.request->prompt_logprobs) {
        entry["prompt_logprobs"] =
            Json::parse(prompt_logprobs_json(*choice, *context_.model->tokenizer));
      }
      list.push_back(std::move(entry));
    }
    return head_ + "\"choices\":" + dump(list) + ",\"usage\":" + usage_json(usage) + "}";
  }

 private:
  // The members of a logprobs object.
  struct Lists {
    Json tokens = Json::array();
    Json token_logprobs = Json::array();
    Json top_logprobs = Json::array();
    Json text_offset = Json::array();
    Json json() && {
      return {{"tokens", std::move(tokens)},
              {"token_logprobs", std::move(token_logprobs)},
              {"top_logprobs", std::move(top_logprobs)},
              {"text_offset", std::move(text_offset)}};
    }
  };

  const std::vector<int32_t>& prompt_of(const Choice& choice) const {
    const auto& prompts = context_.request->prompts;
    const auto n = static_cast<size_t>(context_.request->params.n);
    return prompts[static_cast<size_t>(choice.index) / n];
  }

  std::string prompt_text(const Choice& choice) const {
    return context_.model->tokenizer->decode(prompt_of(choice),
                                             context_.request->params.skip_special_tokens);
  }

  void add_token(int32_t id, const PositionLogprobs* logprobs, size_t* offset, Lists* lists) const {
    const Tokenizer& tokenizer = *context_.model->tokenizer;
    const std::string text = token_text(tokenizer, id);
    lists->tokens.push_back(text);
    lists->text_offset.push_back(*offset);
    const bool skipped = context_.request->params.skip_special_tokens && tokenizer.is_special(id);
    if (!skipped) *offset += count_characters(tokenizer.token_bytes(id));
    if (logprobs == nullptr) {
      lists->token_logprobs.push_back(nullptr);
      lists->top_logprobs.push_back(nullptr);
      return;
    }
    lists->token_logprobs.push_back(finite_logprob(logprobs->chosen.logprob));
    Json top = Json::object();
    // Best first, so the likelier of two ids with one text keeps the key.
    for (const TokenLogprob& token : logprobs->top) {
      const std::string key = token_text(tokenizer, token.id);
      if (!top.contains(key)) top[key] = finite_logprob(token.logprob);
    }
    lists->top_logprobs.push_back(std::move(top));
  }

  void add_prompt(Choice& choice, Lists* lists) const {
    const auto& ids = prompt_of(choice);
    for (size_t i = 0; i < ids.size(); ++i) {
      const bool known = i > 0 && i <= choice.prompt_logprobs.size();
      add_token(ids[i], known ? &choice.prompt_logprobs[i - 1] : nullptr, &choice.text_offset,
                lists);
    }
  }

  void add_tokens(const std::vector<int32_t>& ids, const std::vector<PositionLogprobs>& logprobs,
                  size_t* offset, Lists* lists) const {
    for (size_t i = 0; i < ids.size(); ++i) {
      add_token(ids[i], i < logprobs.size() ? &logprobs[i] : nullptr, offset, lists);
    }
  }

  static void add_stop_reason(const Choice& choice, Json* entry) {
    (*entry)["stop_reason"] = nullptr;
    if (choice.stop_text) {
      (*entry)["stop_reason"] = *choice.stop_text;
    } else if (choice.stop_token_id) {
      (*entry)["stop_reason"] = *choice.stop_token_id;
    }
  }

  std::string chunk(const Choice& choice, const std::string& text, Json logprobs,
                    Json finish_reason, const Usage& usage,
                    const std::vector<int32_t>& token_ids) const {
    const bool finishes = !finish_reason.is_null();
    if (!finishes && logprobs.is_null() && !context_.request->return_token_ids) {
      return event(plain_choice(choice.index, "\"text\":" + json_text(text)), usage);
    }
    Json entry = {{"index", choice.index},
                  {"text", text},
                  {"logprobs", std::move(logprobs)},
                  {"finish_reason", std::move(finish_reason)}};
    if (finishes) add_stop_reason(choice, &entry);
    if (context_.request->return_token_ids) entry["token_ids"] = token_ids;
    return event(dump(entry), usage);
  }

  std::string event(std::string_view choice, const Usage& usage) const {
    std::string out;
    out.reserve(head_.size() + choice.size() + 64);
    out.append("data: ").append(head_).append("\"choices\":[").append(choice).append("]");
    if (context_.request->continuous_usage) {
      out += ",\"usage\":" + usage_json(usage);
    } else if (context_.request->include_usage) {
      out += ",\"usage\":null";
    }
    return out.append("}\n\n");
  }

  const ReplyContext& context_;
  std::string head_;  // "{" and the members that all parts share
};

}  // namespace

std::unique_ptr<ReplyWriter> make_completion_writer(const ReplyContext& context) {
  return std::make_unique<CompletionWriter>(context);
}

}  // namespace nibble
