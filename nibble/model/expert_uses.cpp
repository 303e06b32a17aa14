#include "nibble/model/expert_uses.h"

#include <algorithm>

namespace nibble {
namespace {

// More tokens than this want most of the next layer's experts anyway, and routing them twice costs.
constexpr int64_t kMaxPredictedTokens = 8;

}  // namespace

void gather_uses(std::span<const int32_t> ids, std::span<const float> weights, int num_experts,
                 ExpertScratch& scratch, std::vector<ExpertUse>& uses) {
  scratch.counts.assign(static_cast<size_t>(num_experts), {});
  for (size_t i = 0; i < ids.size(); ++i) {
    ExpertUse& use = scratch.counts[static_cast<size_t>(ids[i])];
    ++use.tokens;
    use.weight += weights[i];
  }
  uses.clear();
  for (int32_t e = 0; e < num_experts; ++e) {
    ExpertUse& use = scratch.counts[static_cast<size_t>(e)];
    use.expert = e;
    if (use.tokens > 0) uses.push_back(use);
  }
}

const MoeWeights* layer_to_predict(const Weights& weights, int layer, int64_t num_tokens) {
  const size_t next = static_cast<size_t>(layer) + 1;
  if (num_tokens > kMaxPredictedTokens || next >= weights.layers.size()) return nullptr;
  if (!weights.layers[next].moe || !weights.expert_store->wants_prefetch(layer + 1)) return nullptr;
  return &*weights.layers[next].moe;
}

void prefetch_guesses(const Weights& weights, int layer, std::span<const int32_t> ids,
                      std::span<const float> choice_weights, ExpertScratch& scratch) {
  gather_uses(ids, choice_weights, weights.router_shape.n_routed_experts, scratch, scratch.guesses);
  std::sort(scratch.guesses.begin(), scratch.guesses.end(),
            [](const ExpertUse& a, const ExpertUse& b) { return a.weight > b.weight; });
  weights.expert_store->prefetch(layer + 1, scratch.guesses);
}

}  // namespace nibble
