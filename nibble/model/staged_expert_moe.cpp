#include "nibble/model/staged_expert_moe.h"

#include <chrono>
#include <optional>
#include <vector>

#include "nibble/base/check.h"
#include "nibble/model/expert_uses.h"

namespace nibble {

Status staged_moe_from_store(const Weights& weights, const MoeWeights& layer,
                             int64_t moe_intermediate_size, Kernels& kernels, const MatrixView& x,
                             Workspace& workspace, const MatrixView& out) {
  StagedMoe* const staged = kernels.staged_moe();
  NIBBLE_CHECK(staged != nullptr);
  ExpertStore& store = *weights.expert_store;
  ExpertScratch& scratch = workspace.experts;
  std::optional<StagedMoeGuess> guess;
  if (const MoeWeights* const next = layer_to_predict(weights, layer.layer, x.rows)) {
    guess = {&next->gate, next->e_score_correction_bias};
  }
  staged->begin({x, layer.shared_experts ? &*layer.shared_experts : nullptr, moe_intermediate_size,
                 &weights.router_shape, workspace.expert_ids, workspace.expert_weights},
                guess, store.computes_on_host(x.rows));
  const StagedMoeChoices choices = NIBBLE_TRY(staged->choices());
  gather_uses(choices.expert_ids, choices.weights, weights.router_shape.n_routed_experts, scratch,
              scratch.uses);
  store.announce(layer.layer, scratch.uses, x.rows);
  ExpertLease on_host = store.take_for_host();
  scratch.wanted.clear();
  for (const ExpertUse& use : scratch.uses) scratch.wanted.push_back(use.expert);
  for (const int32_t e : on_host.ids()) std::erase(scratch.wanted, e);
  const auto compute_on_host = [&] {
    if (on_host.ids().empty()) return;
    const auto begin = std::chrono::steady_clock::now();
    staged->run_on_host(on_host.experts(), on_host.ids());
    store.computed_on_host(
        std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
    on_host = {};
  };
  bool first = true;
  while (!scratch.wanted.empty()) {
    // The host computes once the device has got all that there is for it.
    if (!on_host.ids().empty() && !store.is_at_hand(layer.layer, scratch.wanted)) {
      compute_on_host();
    }
    const ExpertLease lease = NIBBLE_TRY(store.acquire(layer.layer, scratch.wanted));
    staged->run(lease.experts(), lease.ids());
    for (const int32_t e : lease.ids()) std::erase(scratch.wanted, e);
    if (first && guess) {  // the GPU has work now
      prefetch_guesses(weights, layer.layer, choices.guessed_ids, choices.guessed_weights, scratch);
    }
    first = false;
  }
  compute_on_host();
  staged->end(out);
  return {};
}

}  // namespace nibble
