// Logits -> token.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "nibble/base/result.h"
#include "nibble/engine/philox.h"
#include "nibble/engine/sampling_params.h"

namespace nibble {

struct TokenProbability {
  int32_t id = 0;
  double probability = 0;  // above 0
};

// What can be drawn, in id order; the probabilities sum to 1 up to rounding.
using Distribution = std::vector<TokenProbability>;

// Steps 4 to 6 of spec serving section 1.3, with the memory they need kept from call to call. One
// for each thread. The results depend on the arguments alone.
class Sampler {
 public:
  // The next token: greedy takes the argmax (lowest id on a tie); otherwise temperature, softmax,
  // min_p, top_k, top_p, then the first id whose cumulative probability exceeds a uniform number
  // that depends on (seed, output_position, stream, choice) alone.
  //
  //   logits           [vocab_size]
  //   output_position  tokens of output before this one
  //   choice           0 .. best_of - 1
  //
  // Errors: kCorrupt when a logit is NaN or +inf, or none is finite.
  Result<int32_t> sample(std::span<const float> logits, const SamplingParams& params,
                         int64_t output_position, int choice = 0,
                         RandomStream stream = RandomStream::kDraw);

  // The probabilities that sample() draws from. params must not be greedy. Errors as sample().
  Result<Distribution> distribution(std::span<const float> logits, const SamplingParams& params);

 private:
  Status compute_weights(std::span<const float> logits, const SamplingParams& params);
  void select(const SamplingParams& params);
  bool extend_order();
  template <typename Visit>
  void visit(Visit visit) const;

  std::vector<float> weights_;  // [vocab_size] exp((logit - largest) / temperature), 0 if dropped
  double total_ = 0;            // of the weights that can be drawn
  bool all_ = false;            // every weight above 0 can be drawn; otherwise those in kept_
  std::vector<int32_t> kept_;   // ids, ascending
  // Weights in descending order, ties by ascending id: as far as needed. The bits of the weight
  // above those of ~id, so that the larger number comes first.
  std::vector<uint64_t> order_;
  float order_floor_ = 0;  // order_ holds every weight from this on
};

// A Sampler for one call.
Result<int32_t> sample(std::span<const float> logits, const SamplingParams& params,
                       int64_t output_position, int choice = 0);

// The probabilities that sample() draws from, [vocab_size]. As Sampler::distribution().
Result<std::vector<double>> sampling_distribution(std::span<const float> logits,
                                                  const SamplingParams& params);

// Sampler::distribution() from the weights [vocab_size] that its filters left, 0 for what can't be
// drawn: the same bits. A device keeps them so.
Distribution distribution_of_weights(std::span<const float> weights, const SamplingParams& params);

// The first id in id order whose cumulative probability exceeds u; through rounding none: the last.
// `distribution` is not empty.
int32_t draw(const Distribution& distribution, double u);

// The number in [0, 1) that decides at this position: philox_uniform() with the request's seed.
double uniform(const SamplingParams& params, int64_t output_position, RandomStream stream,
               int choice);

// The id of the largest logit, the lowest on a tie. Errors as sample().
Result<int32_t> argmax(std::span<const float> logits);

// Errors: kCorrupt when a logit is NaN or +inf.
Status check_logits(std::span<const float> logits);

// out[i] = exp((logits[i] - peak) / temperature) in binary32, 0 below e^-87.7. No logit is above
// peak, none is NaN. out has the size of logits. Returns the sum of out in binary64.
double softmax_weights(std::span<const float> logits, float peak, float temperature,
                       std::span<float> out);

// The sum that softmax_weights() returns, of its `out`.
double sum_weights(std::span<const float> weights);

}  // namespace nibble
