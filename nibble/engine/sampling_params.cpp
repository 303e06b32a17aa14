#include "nibble/engine/sampling_params.h"

#include <fmt/format.h>

#include "nibble/base/error.h"

namespace nibble {
namespace {

constexpr int64_t kMaxChoices = 128;
constexpr size_t kMaxStops = 16;
constexpr size_t kMaxStopBytes = 256;
constexpr size_t kMaxStopTokenIds = 64;
constexpr size_t kMaxLogitBias = 1024;

template <typename T>
tl::unexpected<Error> out_of_range(std::string_view field, T value, std::string_view range) {
  return invalid_argument(fmt::format("{} is {}, expected {}", field, value, range));
}

// Written so that NaN fails.
Status in_range(std::string_view field, double value, double low, double high) {
  if (value >= low && value <= high) return {};
  return out_of_range(field, value, fmt::format("{}..{}", low, high));
}

Status validate_lengths(const SamplingParams& params) {
  const auto& max_tokens = params.max_tokens;
  if (max_tokens && *max_tokens < (params.prompt_logprobs ? 0 : 1)) {
    return out_of_range("max_tokens", *max_tokens,
                        *max_tokens == 0 ? "1 or more (0 only with prompt_logprobs)" : "1 or more");
  }
  if (params.min_tokens < 0) return out_of_range("min_tokens", params.min_tokens, "0 or more");
  if (max_tokens && params.min_tokens > *max_tokens) {
    return out_of_range("min_tokens", params.min_tokens,
                        fmt::format("at most max_tokens, {}", *max_tokens));
  }
  if (params.truncate_prompt_tokens && *params.truncate_prompt_tokens < 1) {
    return out_of_range("truncate_prompt_tokens", *params.truncate_prompt_tokens, "1 or more");
  }
  if (params.thinking_budget && *params.thinking_budget < 0) {
    return out_of_range("thinking_budget", *params.thinking_budget, "0 or more");
  }
  return {};
}

Status validate_distribution(const SamplingParams& params) {
  NIBBLE_TRY(in_range("temperature", params.temperature, 0, 2));
  if (!(params.top_p > 0 && params.top_p <= 1)) {
    return out_of_range("top_p", params.top_p, "above 0, at most 1");
  }
  if (params.top_k < -1) {
    return out_of_range("top_k", params.top_k, "-1 or 0 (off) or 1 and more");
  }
  NIBBLE_TRY(in_range("min_p", params.min_p, 0, 1));
  if (!(params.repetition_penalty > 0 && params.repetition_penalty <= 10)) {
    return out_of_range("repetition_penalty", params.repetition_penalty, "above 0, at most 10");
  }
  NIBBLE_TRY(in_range("presence_penalty", params.presence_penalty, -2, 2));
  NIBBLE_TRY(in_range("frequency_penalty", params.frequency_penalty, -2, 2));
  if (params.logit_bias.size() > kMaxLogitBias) {
    return out_of_range("the size of logit_bias", params.logit_bias.size(), "at most 1024");
  }
  for (const auto& [id, bias] : params.logit_bias) {
    NIBBLE_TRY(in_range(fmt::format("logit_bias of token {}", id), bias, -100, 100));
  }
  return {};
}

Status validate_choices(const SamplingParams& params) {
  if (params.n < 1 || params.n > kMaxChoices) return out_of_range("n", params.n, "1..128");
  if (params.best_of && (*params.best_of < params.n || *params.best_of > kMaxChoices)) {
    return out_of_range("best_of", *params.best_of, fmt::format("n..128, n is {}", params.n));
  }
  for (const auto& [field, value] :
       {std::pair("logprobs", params.logprobs), {"prompt_logprobs", params.prompt_logprobs}}) {
    if (value && (*value < 0 || *value > kMaxLogprobs)) {
      return out_of_range(field, *value, fmt::format("0..{}", kMaxLogprobs));
    }
  }
  if (params.priority < -100 || params.priority > 100) {
    return out_of_range("priority", params.priority, "-100..100");
  }
  if (params.relaxed_acceptance) {
    if (params.relaxed_acceptance->topk < 1) {
      return out_of_range("relaxed_acceptance.topk", params.relaxed_acceptance->topk, "1 or more");
    }
    NIBBLE_TRY(in_range("relaxed_acceptance.delta", params.relaxed_acceptance->delta, 0, 1));
  }
  return {};
}

Status validate_texts(std::string_view field, const std::vector<std::string>& texts) {
  for (size_t i = 0; i < texts.size(); ++i) {
    if (texts[i].empty() || texts[i].size() > kMaxStopBytes) {
      return out_of_range(fmt::format("the length of {}[{}]", field, i), texts[i].size(),
                          "1..256 bytes");
    }
  }
  return {};
}

Status validate_ends(const SamplingParams& params) {
  if (params.stop.size() > kMaxStops) {
    return out_of_range("the number of texts in stop", params.stop.size(), "at most 16");
  }
  NIBBLE_TRY(validate_texts("stop", params.stop));
  NIBBLE_TRY(validate_texts("bad", params.bad));
  if (params.stop_token_ids.size() > kMaxStopTokenIds) {
    return out_of_range("the number of stop_token_ids", params.stop_token_ids.size(), "at most 64");
  }
  if (!params.guided) return {};
  if (params.guided->kind == Guided::Kind::kChoice && params.guided->choices.empty()) {
    return invalid_argument("guided choice has no choices, expected 1 or more");
  }
  if (params.ignore_eos) {
    return invalid_argument(
        "ignore_eos is true beside guided, but a finished structure can only be followed by EOS");
  }
  return {};
}

}  // namespace

Status validate(const SamplingParams& params) {
  NIBBLE_TRY(validate_lengths(params));
  NIBBLE_TRY(validate_distribution(params));
  NIBBLE_TRY(validate_choices(params));
  return validate_ends(params);
}

Status validate_token_ids(const SamplingParams& params, int64_t vocab_size) {
  const auto check = [&](std::string_view field, int64_t id) -> Status {
    if (id >= 0 && id < vocab_size) return {};
    return out_of_range(fmt::format("an id of {}", field), id,
                        fmt::format("0..{}", vocab_size - 1));
  };
  for (const auto& [id, bias] : params.logit_bias) NIBBLE_TRY(check("logit_bias", id));
  for (const int64_t id : params.stop_token_ids) NIBBLE_TRY(check("stop_token_ids", id));
  return {};
}

}  // namespace nibble
