#include "nibble/api/convert.h"

#include <algorithm>

#include "nibble/base/error.h"

namespace nibble {

api::Error to_api(const Error& error) {
  // Both enumerations are in one order; the public one leaves 0 to "no error" of the C interface.
  static_assert(static_cast<int>(ErrorCode::kInvalidArgument) + 1 ==
                static_cast<int>(api::ErrorCode::kInvalidArgument));
  static_assert(static_cast<int>(ErrorCode::kCancelled) + 1 ==
                static_cast<int>(api::ErrorCode::kCancelled));
  return {static_cast<api::ErrorCode>(static_cast<int>(error.code) + 1), error.message};
}

namespace {

Result<Guided> to_engine(const api::GuidedDecoding& guided) {
  const int kinds = (guided.json ? 1 : 0) + (guided.json_object ? 1 : 0) + (guided.regex ? 1 : 0) +
                    (guided.choice.empty() ? 0 : 1) + (guided.grammar ? 1 : 0);
  if (kinds != 1) {
    return invalid_argument(
        "guided has " + std::to_string(kinds) +
        " of json, json_object, regex, choice and grammar, expected exactly one");
  }
  Guided result;
  if (guided.json) {
    result.kind = Guided::Kind::kJsonSchema;
    result.text = *guided.json;
  } else if (guided.regex) {
    result.kind = Guided::Kind::kRegex;
    result.text = *guided.regex;
  } else if (!guided.choice.empty()) {
    result.kind = Guided::Kind::kChoice;
    result.choices = guided.choice;
  } else if (guided.grammar) {
    result.kind = Guided::Kind::kGrammar;
    result.text = *guided.grammar;
  }
  return result;
}

}  // namespace

Result<SamplingParams> to_engine(const api::SamplingParams& params,
                                 const SamplingDefaults& defaults, int64_t seed) {
  const GenerationConfig& model = defaults.generation;
  SamplingParams result;
  result.max_tokens = params.max_tokens ? params.max_tokens : defaults.max_tokens;
  result.temperature = params.temperature.value_or(model.temperature.value_or(1));
  result.top_p = params.top_p.value_or(model.top_p.value_or(1));
  result.top_k = params.top_k.value_or(model.top_k.value_or(0));
  result.min_p = params.min_p;
  result.seed = params.seed.value_or(seed);
  result.stop_token_ids = params.stop_token_ids;
  result.ignore_eos = params.ignore_eos;
  result.min_tokens = params.min_tokens;
  result.repetition_penalty = params.repetition_penalty;
  result.presence_penalty = params.presence_penalty;
  result.frequency_penalty = params.frequency_penalty;
  result.logit_bias = params.logit_bias;
  result.n = params.n;
  result.best_of = params.best_of;
  result.stop = params.stop;
  result.include_stop_str_in_output = params.include_stop_str_in_output;
  result.bad = params.bad;
  result.logprobs = params.logprobs;
  result.prompt_logprobs = params.prompt_logprobs;
  result.skip_special_tokens = params.skip_special_tokens;
  result.truncate_prompt_tokens = params.truncate_prompt_tokens;
  if (params.guided) result.guided = NIBBLE_TRY(to_engine(*params.guided));
  result.thinking_budget = params.thinking_budget;
  if (const auto& relaxed = params.relaxed_acceptance) {
    result.relaxed_acceptance = RelaxedAcceptance{relaxed->enabled, relaxed->topk, relaxed->delta};
  }
  result.cache_salt = params.cache_salt;
  result.priority = params.priority;
  return result;
}

api::PositionLogprobs to_api(const PositionLogprobs& position) {
  const auto convert = [](const TokenLogprob& token) {
    return api::TokenLogprob{token.id, token.logprob, token.rank};
  };
  api::PositionLogprobs result;
  result.chosen = convert(position.chosen);
  for (const TokenLogprob& token : position.top) result.top.push_back(convert(token));
  return result;
}

std::optional<int32_t> stop_token_of(const Answer& answer, const SamplingParams& params) {
  if (!answer.finished || answer.finish_reason != FinishReason::kStop ||
      !answer.stop_text.empty() || answer.token_ids.empty()) {
    return std::nullopt;
  }
  const auto& ids = params.stop_token_ids;
  const int32_t last = answer.token_ids.back();
  if (std::find(ids.begin(), ids.end(), last) == ids.end()) return std::nullopt;
  return last;
}

}  // namespace nibble
