// The log-probabilities that a reply reports beside its tokens.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "nibble/base/result.h"
#include "nibble/engine/sampler.h"
#include "nibble/kernels/device_sampler.h"

namespace nibble {

struct TokenLogprob {
  int32_t id = 0;
  double logprob = 0;  // natural; -inf for what can't be drawn
  int64_t rank = 0;    // 1: the likeliest; ties by id
};

struct PositionLogprobs {
  TokenLogprob chosen;
  // The likeliest tokens, best first, ties by id, without those that can't be drawn; behind them
  // the chosen one if it is not among them.
  std::vector<TokenLogprob> top;
};

// Of one position: log_softmax(logits), in binary64. Given the model's own logits this is
// logprobs_mode raw; after the LogitsProcessor, the processed mode of a greedy request.
//
//   logits  [vocab_size]
//   chosen  an id below vocab_size
//   k       0 or more entries in `top`
//
// Errors: kCorrupt when a logit is NaN or +inf, or none is finite.
Result<PositionLogprobs> logprobs(std::span<const float> logits, int32_t chosen, int64_t k);

// The same of what a DeviceSampler found for `chosen`: tokens and ranks are equal, values but for
// the rounding of a sum taken in another order (less than vocabulary x 2^-52).
PositionLogprobs logprobs(const SampledLogprobs& sampled, int32_t chosen);

// The same of what was drawn from: logprobs_mode processed.
PositionLogprobs logprobs(const Distribution& distribution, int32_t chosen, int64_t k);

}  // namespace nibble
