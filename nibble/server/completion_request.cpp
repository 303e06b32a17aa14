// POST /v1/completions: plain prompts.
#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "nibble/server/generation_request.h"
#include "nibble/server/json_fields.h"

namespace nibble {
namespace {

using Json = nlohmann::ordered_json;

constexpr size_t kMaxPrompts = 1024;
constexpr int64_t kDefaultMaxTokens = 16;  // OpenAI's

ApiError prompt_error(std::string message) {
  return bad_request(std::move(message), "invalid_value", "prompt");
}

ApiResult<std::vector<int32_t>> read_ids(const Json& list, const ServedModel& model) {
  std::vector<int32_t> ids;
  for (size_t i = 0; i < list.size(); ++i) {
    const Json& entry = list[i];
    if (!entry.is_number_integer()) {
      return tl::unexpected(prompt_error(
          fmt::format("prompt mixes token ids with {} at index {}", entry.type_name(), i)));
    }
    const auto id = entry.get<int64_t>();
    if (id < 0 || id >= model.vocab_size) {
      return tl::unexpected(
          out_of_range("prompt", fmt::format("the token id at index {} is {}, expected 0..{}", i,
                                             id, model.vocab_size - 1)));
    }
    ids.push_back(static_cast<int32_t>(id));
  }
  if (ids.empty()) return tl::unexpected(prompt_error("prompt is an empty array"));
  return ids;
}

ApiResult<std::vector<int32_t>> encode_text(const std::string& text, const ServedModel& model) {
  EncodeOptions options;
  options.add_bos = model.tokenizer->add_bos_token();
  auto ids = model.tokenizer->encode(text, options);
  if (!ids) return tl::unexpected(from_error(ids.error()));
  if (ids->empty()) return tl::unexpected(prompt_error("prompt is an empty text"));
  return *std::move(ids);
}

ApiResult<std::vector<std::vector<int32_t>>> read_prompts(const Json& prompt,
                                                          const ServedModel& model) {
  std::vector<std::vector<int32_t>> prompts;
  if (prompt.is_string()) {
    prompts.push_back(NIBBLE_API_TRY(encode_text(prompt.get<std::string>(), model)));
    return prompts;
  }
  if (!prompt.is_array() || prompt.empty()) {
    return tl::unexpected(prompt_error(
        "prompt is none of: a text, an array of texts, of token ids, or of arrays of ids"));
  }
  if (prompt.front().is_number()) {
    prompts.push_back(NIBBLE_API_TRY(read_ids(prompt, model)));
    return prompts;
  }
  if (prompt.size() > kMaxPrompts) {
    return tl::unexpected(out_of_range(
        "prompt", fmt::format("prompt has {} entries, at most {}", prompt.size(), kMaxPrompts)));
  }
  const bool texts = prompt.front().is_string();
  for (const Json& entry : prompt) {
    if (texts ? !entry.is_string() : !entry.is_array()) {
      return tl::unexpected(prompt_error("prompt mixes texts and token ids"));
    }
    auto ids = texts ? encode_text(entry.get<std::string>(), model) : read_ids(entry, model);
    if (!ids) return tl::unexpected(std::move(ids).error());
    prompts.push_back(*std::move(ids));
  }
  return prompts;
}

}  // namespace

ApiResult<GenerationRequest> read_completion_request(const Json& body, const ServedModel& model) {
  JsonFields fields(body);
  GenerationRequest request;
  request.api = Api::kCompletions;
  request.parse_reply = false;
  NIBBLE_API_TRY(read_common_fields(fields, model, &request));
  const Json* prompt = fields.find("prompt");
  if (prompt == nullptr) {
    return tl::unexpected(bad_request("prompt is missing", "missing_field", "prompt"));
  }
  const auto suffix = NIBBLE_API_TRY(fields.text("suffix"));
  if (suffix && !suffix->empty()) {
    return tl::unexpected(
        bad_request("suffix is not supported; leave it out", "not_supported", "suffix"));
  }
  request.echo = NIBBLE_API_TRY(fields.boolean("echo")).value_or(false);
  const Json* logprobs = fields.find("logprobs");
  if (logprobs != nullptr && !logprobs->is_boolean()) {
    const auto count = NIBBLE_API_TRY(fields.integer("logprobs"));
    if (*count < 0 || *count > model.max_logprobs) {
      return tl::unexpected(out_of_range(
          "logprobs", fmt::format("logprobs is {}, expected 0..{}", *count, model.max_logprobs)));
    }
    request.logprobs = true;
    request.params.logprobs = count;
    if (request.echo) request.params.prompt_logprobs = count;
  } else if (logprobs != nullptr && logprobs->get<bool>()) {
    return tl::unexpected(
        bad_request("logprobs is true, expected a number 0..20 here", "invalid_type", "logprobs"));
  }
  const auto max_tokens = NIBBLE_API_TRY(fields.integer("max_tokens"));
  const auto renamed = NIBBLE_API_TRY(fields.integer("max_new_tokens"));
  request.params.max_tokens = max_tokens ? max_tokens : renamed;
  if (!request.params.max_tokens) {
    request.params.max_tokens = std::max(kDefaultMaxTokens, request.params.min_tokens);
  }
  if (*request.params.max_tokens == 0 && !request.echo && !request.params.prompt_logprobs) {
    return tl::unexpected(out_of_range(
        "max_tokens", "max_tokens is 0, which only echo or prompt_logprobs make sense of"));
  }
  if (*request.params.max_tokens == 0 && !request.params.prompt_logprobs) {
    request.params.prompt_logprobs = 0;
  }
  if (request.params.best_of.value_or(request.params.n) > request.params.n &&
      !request.params.logprobs) {
    request.params.logprobs = 0;  // the ranking needs them
  }
  NIBBLE_API_TRY(note_unknown_fields(fields, model, &request));
  request.prompts = NIBBLE_API_TRY(read_prompts(*prompt, model));
  if (const auto keep = std::exchange(request.params.truncate_prompt_tokens, std::nullopt)) {
    for (auto& ids : request.prompts) {
      const auto size = static_cast<int64_t>(ids.size());
      if (size > *keep) ids.erase(ids.begin(), ids.begin() + (size - *keep));
    }
  }
  NIBBLE_API_TRY(check_prompt_length(request, model));
  return request;
}

}  // namespace nibble
