#include "nibble/engine/verify.h"

#include <algorithm>
#include <limits>

#include "nibble/base/check.h"

namespace nibble {
namespace {

// 0 for an id that can't be drawn.
double probability_of(const Distribution& distribution, int32_t id) {
  const auto found = std::lower_bound(
      distribution.begin(), distribution.end(), id,
      [](const TokenProbability& entry, int32_t wanted) { return entry.id < wanted; });
  return found != distribution.end() && found->id == id ? found->probability : 0;
}

// max(0, p - q) renormalised; p itself when nothing is left, which only rounding can bring about.
Distribution residual(const Distribution& p, const Distribution& q) {
  Distribution rest;
  double total = 0;
  for (const auto& [id, probability] : p) {
    const double left = probability - probability_of(q, id);
    if (left <= 0) continue;
    rest.push_back({id, left});
    total += left;
  }
  if (rest.empty()) return p;
  for (TokenProbability& entry : rest) entry.probability /= total;
  return rest;
}

// Whether the rule accepts `draft` at a row.
Result<bool> accepts_relaxed(std::span<const float> logits, int32_t draft, int64_t topk,
                             double delta) {
  const int32_t best = NIBBLE_TRY(argmax(logits));
  const float logit = logits[static_cast<size_t>(draft)];
  if (draft == best) return true;
  if (logit == -std::numeric_limits<float>::infinity()) return false;
  int64_t rank = 0;
  for (size_t i = 0; i < logits.size(); ++i) {
    if (logits[i] > logit || (logits[i] == logit && i < static_cast<size_t>(draft))) ++rank;
  }
  if (rank >= topk) return false;  // spares the softmax
  const float peak = logits[static_cast<size_t>(best)];
  std::vector<float> weights(logits.size());
  const auto total = static_cast<float>(softmax_weights(logits, peak, 1, weights));
  return relaxed_accepts(weights[static_cast<size_t>(best)] / total,
                         weights[static_cast<size_t>(draft)] / total, rank, topk, delta);
}

void check_draft(int32_t draft, std::span<const float> logits) {
  NIBBLE_CHECK(draft >= 0 && static_cast<size_t>(draft) < logits.size());
}

}  // namespace

Result<Verification> verify_strict(std::span<const int32_t> drafts, const ProcessedRow& row,
                                   const VerifyContext& context, Sampler& sampler) {
  Verification result;
  for (size_t i = 0;; ++i) {
    const std::span<const float> logits = NIBBLE_TRY(row(static_cast<int64_t>(i)));
    const int32_t token = NIBBLE_TRY(sampler.sample(
        logits, context.params, context.position + static_cast<int64_t>(i), context.choice));
    result.token_ids.push_back(token);
    if (i == drafts.size() || token != drafts[i]) return result;
    ++result.accepted;
  }
}

Result<Verification> verify_drawn(std::span<const int32_t> drafts,
                                  std::span<const Distribution> draft_distributions,
                                  const ProcessedRow& row, const VerifyContext& context,
                                  Sampler& sampler) {
  NIBBLE_CHECK(drafts.size() == draft_distributions.size());
  Verification result;
  for (size_t i = 0;; ++i) {
    const std::span<const float> logits = NIBBLE_TRY(row(static_cast<int64_t>(i)));
    const Distribution p = NIBBLE_TRY(sampler.distribution(logits, context.params));
    const int64_t position = context.position + static_cast<int64_t>(i);
    const auto number = [&](RandomStream stream) {
      return uniform(context.params, position, stream, context.choice);
    };
    if (i == drafts.size()) {
      result.token_ids.push_back(draw(p, number(RandomStream::kDraw)));
      return result;
    }
    const Distribution& q = draft_distributions[i];
    const double q_draft = probability_of(q, drafts[i]);
    NIBBLE_CHECK(q_draft > 0);
    if (number(RandomStream::kAcceptance) >= probability_of(p, drafts[i]) / q_draft) {
      result.token_ids.push_back(draw(residual(p, q), number(RandomStream::kResidual)));
      return result;
    }
    result.token_ids.push_back(drafts[i]);
    ++result.accepted;
  }
}

Result<Verification> verify_relaxed(std::span<const int32_t> drafts, const ProcessedRow& row,
                                    int64_t topk, double delta, const VerifyContext& context,
                                    Sampler& sampler) {
  Verification result;
  for (size_t i = 0;; ++i) {
    const std::span<const float> logits = NIBBLE_TRY(row(static_cast<int64_t>(i)));
    bool accepted = false;
    if (i < drafts.size()) {
      check_draft(drafts[i], logits);
      accepted = NIBBLE_TRY(accepts_relaxed(logits, drafts[i], topk, delta));
    }
    if (!accepted) {
      result.token_ids.push_back(NIBBLE_TRY(sampler.sample(
          logits, context.params, context.position + static_cast<int64_t>(i), context.choice)));
      return result;
    }
    result.token_ids.push_back(drafts[i]);
    ++result.accepted;
  }
}

bool relaxed_accepts(float top, float draft, int64_t rank, int64_t topk, double delta) {
  if (rank == 0) return true;
  return rank < topk && draft >= top - static_cast<float>(delta);
}

}  // namespace nibble
