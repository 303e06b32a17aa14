// How the next token is chosen and when generation ends.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "nibble/base/result.h"
#include "nibble/grammar/guided.h"

namespace nibble {

inline constexpr double kGreedyTemperature = 1e-5;  // below this a temperature means greedy
inline constexpr int64_t kMaxLogprobs = 20;

// A draft token passes when it is among the topk likeliest and at most `delta` below the likeliest;
// spec serving section 6.3.
struct RelaxedAcceptance {
  bool enabled = true;
  int64_t topk = 1;  // >= 1
  double delta = 0;  // 0..1
};

// Ranges are those of the API; spec serving section 1.2.
struct SamplingParams {
  // >= 1, or 0 with prompt_logprobs; none: the rest of the context.
  std::optional<int64_t> max_tokens = std::nullopt;
  double temperature = 1;                      // 0..2; below 1e-5 means greedy
  double top_p = 1;                            // (0, 1]
  int64_t top_k = 0;                           // 0 and -1: off
  double min_p = 0;                            // 0..1: drop tokens with p < min_p * max p
  std::optional<int64_t> seed = std::nullopt;  // none: 0
  std::vector<int64_t> stop_token_ids = {};    // at most 64
  bool ignore_eos = false;                     // EOS neither ends nor is masked

  int64_t min_tokens = 0;                         // 0..max_tokens
  double repetition_penalty = 1;                  // (0, 10]: prompt and output tokens
  double presence_penalty = 0;                    // -2..2: output tokens
  double frequency_penalty = 0;                   // -2..2: output tokens
  std::map<int64_t, double> logit_bias = {};      // id -> -100..100, at most 1024; -100 bans
  int64_t n = 1;                                  // 1..128
  std::optional<int64_t> best_of = std::nullopt;  // n..128; none: n
  std::vector<std::string> stop = {};             // at most 16 of 1..256 bytes
  bool include_stop_str_in_output = false;
  std::vector<std::string> bad = {};               // texts that must not appear; each 1..256 bytes
  std::optional<int64_t> logprobs = std::nullopt;  // 0..20 top entries for each output token
  std::optional<int64_t> prompt_logprobs = std::nullopt;         // 0..20; no prefix reuse
  bool skip_special_tokens = true;                               // in text only
  std::optional<int64_t> truncate_prompt_tokens = std::nullopt;  // >= 1: keep the last of them
  std::optional<Guided> guided = std::nullopt;
  std::optional<int64_t> thinking_budget = std::nullopt;               // >= 0 reasoning tokens
  std::optional<RelaxedAcceptance> relaxed_acceptance = std::nullopt;  // none: as configured
  std::string cache_salt = {};  // separates the prefix cache of tenants
  int64_t priority = 0;         // -100..100, higher first
};

// Errors: kInvalidArgument naming the field, its value and its range; kUnsupported for
// guided.grammar.
Status validate(const SamplingParams& params);

// Whether every id of logit_bias and stop_token_ids is in 0 .. vocab_size - 1.
// Errors: kInvalidArgument.
Status validate_token_ids(const SamplingParams& params, int64_t vocab_size);

// Whether the next token is the argmax.
inline bool is_greedy(const SamplingParams& params) {
  return params.temperature < kGreedyTemperature;
}

}  // namespace nibble
