// Which draft tokens of a speculative window stand; spec serving sections 6.2 and 6.3.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "nibble/base/result.h"
#include "nibble/engine/sampler.h"
#include "nibble/engine/sampling_params.h"

namespace nibble {

struct Verification {
  int64_t accepted = 0;            // drafts that stand
  std::vector<int32_t> token_ids;  // those, and one more: accepted + 1 tokens
};

// The target model's logits [vocab_size] behind drafts 1 .. row, after the sequence's
// LogitsProcessor; row 0 .. number of drafts. Called with row 0, then with each next row only when
// the draft before it was accepted, so a caller can push that draft (counts, grammar) then. Valid
// until the next call. A draft that the masks forbid has the logit -inf.
using ProcessedRow = std::function<Result<std::span<const float>>(int64_t row)>;

// What all rules need: whose turn it is. `position` is the output position of the first token.
struct VerifyContext {
  const SamplingParams& params;
  int64_t position = 0;
  int choice = 0;
};

// Greedy: accepts a draft while it is the argmax, then appends the argmax. Sampled: at each
// position emits the same draw that a run without speculation makes, as long as it equals the
// draft, and the first that doesn't. Either way the tokens of a run without speculation. Errors:
// those of `row` and of sample().
Result<Verification> verify_strict(std::span<const int32_t> drafts, const ProcessedRow& row,
                                   const VerifyContext& context, Sampler& sampler);

// Rejection sampling for drafts that were drawn themselves: draft i from draft_distributions[i].
// Accepts when u < min(1, p(d) / q(d)); at the first rejection draws from max(0, p - q) (all zero:
// from p), after the last acceptance from p. The law is p's. Not for greedy params.
// Source: Leviathan et al., "Fast inference from transformers via speculative decoding", 2023.
Result<Verification> verify_drawn(std::span<const int32_t> drafts,
                                  std::span<const Distribution> draft_distributions,
                                  const ProcessedRow& row, const VerifyContext& context,
                                  Sampler& sampler);

// TensorRT-LLM's relaxed acceptance for thinking: accepts a draft that relaxed_accepts(), then
// appends the argmax (greedy) or the draw of verify_strict(). `delta` is that of the sequence's
// phase: 0 outside thinking. A forbidden draft is never accepted.
Result<Verification> verify_relaxed(std::span<const int32_t> drafts, const ProcessedRow& row,
                                    int64_t topk, double delta, const VerifyContext& context,
                                    Sampler& sampler);

// Whether a draft with probability `draft`, the rank-th likeliest (0: the likeliest; ties by id),
// passes beside the likeliest with probability `top`: rank 0, or rank < topk and
// draft >= top - delta, in binary32.
bool relaxed_accepts(float top, float draft, int64_t rank, int64_t topk, double delta);

}  // namespace nibble
