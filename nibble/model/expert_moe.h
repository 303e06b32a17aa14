// A mixture of experts whose experts come from an ExpertStore, some at a time.
#pragma once

#include "nibble/base/result.h"
#include "nibble/kernels/kernels.h"
#include "nibble/model/weights.h"
#include "nibble/model/workspace.h"

namespace nibble {

// What Kernels::moe does with all experts at hand, bit for bit: each expert runs over its tokens
// when it is in memory, in whatever order they come, and a token adds its experts' outputs in the
// order of its choices when all are there. workspace.expert_ids and expert_weights hold the
// router's choices for x [tokens, hidden_size]; `out` has the same shape.
//
// weights.expert_store is set, and the backend's memory is the host's. Errors: the store's.
[[nodiscard]] Status moe_from_store(const Weights& weights, const MoeWeights& layer,
                                    Kernels& kernels, const MatrixView& x, Workspace& workspace,
                                    const MatrixView& out);

}  // namespace nibble
