// What a step's routing means to an ExpertStore: uses by expert, and guesses at the next layer's.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "nibble/model/expert_store.h"
#include "nibble/model/weights.h"
#include "nibble/model/workspace.h"

namespace nibble {

// The choices of a step, gathered by expert, in order of their number.
void gather_uses(std::span<const int32_t> ids, std::span<const float> weights, int num_experts,
                 ExpertScratch& scratch, std::vector<ExpertUse>& uses);

// The layer behind `layer` when its router is to run over this layer's input, otherwise null:
// residual streams change slowly from layer to layer, so most of what it chooses is right (spec
// kernels section 5.2).
const MoeWeights* layer_to_predict(const Weights& weights, int layer, int64_t num_tokens);

// Tells the store what that router chose, the surest first.
void prefetch_guesses(const Weights& weights, int layer, std::span<const int32_t> ids,
                      std::span<const float> choice_weights, ExpertScratch& scratch);

}  // namespace nibble
