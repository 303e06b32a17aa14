// Sampling where the logits are: for backends whose memory the host doesn't see, so that a token
// comes back and not a row of the vocabulary.
#pragma once

#include <cstdint>
#include <span>

#include "nibble/base/result.h"
#include "nibble/kernels/matrix_view.h"

namespace nibble {

// How often a token stands in prompt and output, for penalties.
struct TokenSeen {
  int32_t id = 0;
  int32_t in_output = 0;  // times; 0: in the prompt alone
};

struct TokenBias {
  int32_t id = 0;
  float bias = 0;  // -inf bans
};

// How one row of logits becomes a token. Steps, order and rounding are those of the engine's
// LogitsProcessor and Sampler, which are the definition. Spans are of host memory and are read
// before DeviceSampler::sample() returns; ids are below the vocabulary's size, each once in a span.
struct SampleRow {
  int64_t row = 0;  // of the logits

  std::span<const TokenBias> bias;     // added first
  std::span<const uint64_t> allowed;   // bit id % 64 of word id / 64; empty: all
  std::span<const int32_t> forbidden;  // set to -inf
  std::span<const TokenSeen> seen;     // penalised
  float repetition_penalty = 1;
  float presence_penalty = 0;
  float frequency_penalty = 0;
  int32_t forced = -1;  // the only token that can come, or -1

  bool greedy = true;     // the largest logit, the lowest id on a tie
  float temperature = 1;  // what follows is for a draw
  int64_t top_k = 0;      // 0: all
  double top_p = 1;
  double min_p = 0;
  double uniform = 0;  // the random number, in [0, 1)
  // A row of reserve_weights() where the weights of the draw are kept, for a draft; -1: none.
  int32_t keep_weights = -1;

  // A draft to be judged, or -1: SampledRow::accepted. By relaxed acceptance,
  int32_t draft = -1;
  int64_t relaxed_topk = 1;
  double relaxed_delta = 0;
  // or, where it was drawn from the weights kept in this row (q), by rejection sampling: it stands
  // when acceptance < p(draft) / q(draft), and is the token then; else the token is drawn with
  // `uniform` from max(0, p - q). Not for greedy rows; -1: relaxed acceptance.
  int32_t draft_weights = -1;
  double acceptance = 0;  // a random number, in [0, 1)

  // Log-probabilities of the row as it is (SampledRow::logprobs), with so many of the likeliest
  // tokens, at most kMaxSampledTop; -1: none.
  int32_t logprobs = -1;
};

inline constexpr int32_t kMaxSampledTop = 20;

struct TokenLogit {
  int32_t id = 0;
  float logit = 0;
};

// What log_softmax of a row needs: the log-probability of a logit is logit - peak - log(sum).
struct SampledLogprobs {
  float peak = 0;    // the largest logit
  float chosen = 0;  // the logit of the token: of the draft where that is accepted
  double sum = 0;    // of exp(logit - peak), in binary64; in another order than the host's
  int32_t rank = 0;  // of the token: 1 and the number of likelier ones; ties by id
  int32_t count = 0;
  TokenLogit top[kMaxSampledTop];  // `count` of the likeliest above -inf, best first, ties by id
};

struct SampledRow {
  enum Outcome : int32_t {
    kToken = 0,
    // A decision lies closer than the rounding of sums, or the row has a NaN, +inf or no token that
    // is allowed: the host has to take the row, to decide in its order or to tell the error.
    kUndecided = 1,
  };
  Outcome outcome = kUndecided;
  int32_t token = 0;
  int32_t accepted = 0;           // 1: the draft passes
  SampledLogprobs logprobs = {};  // with SampleRow::logprobs
};

// Made by Kernels::make_sampler(). Not thread-safe.
class DeviceSampler {
 public:
  virtual ~DeviceSampler() = default;

  // Queues the rows behind what was given to the device. `logits` is float [any, vocab_size] in
  // device memory and is not changed; it may be read until the device was waited for.
  virtual void sample(const MatrixView& logits, std::span<const SampleRow> rows) = 0;

  // Of the last sample(), one for each row, after Device::synchronize().
  virtual std::span<const SampledRow> results() const = 0;

  // Makes room for the weights of so many drawn drafts, 4 bytes for each token of the vocabulary,
  // as SampleRow::keep_weights and draft_weights name them; once, before the first sample().
  // Errors: kOutOfMemory.
  [[nodiscard]] virtual Status reserve_weights(int64_t rows) = 0;

  // The weights [vocab_size] that a draft was drawn from: exp((logit - largest) / temperature), 0
  // where the filters leave nothing. Waits for the device. Errors: the device's.
  [[nodiscard]] virtual Status copy_weights(int64_t row, std::span<float> weights) = 0;
};

}  // namespace nibble
