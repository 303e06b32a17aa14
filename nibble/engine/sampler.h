// Logits -> token.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "nibble/base/result.h"
#include "nibble/engine/sampling_params.h"

namespace nibble {

// The next token by the exact order of spec serving section 1.3: greedy takes the argmax (lowest id
// on a tie); otherwise temperature, softmax, min_p, top_k, top_p, then the first id whose
// cumulative probability exceeds a uniform number that depends on (seed, output_position, choice)
// alone.
//
//   logits           [vocab_size]
//   output_position  tokens generated before this one
//
// Errors: kCorrupt when a logit is NaN or +inf, or none is finite.
Result<int32_t> sample(std::span<const float> logits, const SamplingParams& params,
                       int64_t output_position, int choice = 0);

// The probabilities that sample() draws from, [vocab_size]; they sum to 1 up to rounding.
// params.temperature must not be greedy. Errors as sample().
Result<std::vector<double>> sampling_distribution(std::span<const float> logits,
                                                  const SamplingParams& params);

// The id of the largest logit, the lowest on a tie. Errors as sample().
Result<int32_t> argmax(std::span<const float> logits);

inline constexpr double kGreedyTemperature = 1e-5;  // below this a temperature means greedy

}  // namespace nibble
