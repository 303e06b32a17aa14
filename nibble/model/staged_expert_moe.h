// A MoE layer whose routed experts come from an ExpertStore into the memory of a GPU.
#pragma once

#include "nibble/base/result.h"
#include "nibble/kernels/kernels.h"
#include "nibble/model/weights.h"
#include "nibble/model/workspace.h"

namespace nibble {

// moe_from_store() for a backend with Kernels::staged_moe(): what route() left in the workspace is
// brought to the host, experts that are there run first, the others behind their copies. The bits
// are Kernels::moe()'s. moe_intermediate_size: of a routed expert. Errors: those of
// ExpertStore::acquire and StagedMoe::choices.
Status staged_moe_from_store(const Weights& weights, const MoeWeights& layer,
                             int64_t moe_intermediate_size, Kernels& kernels, const MatrixView& x,
                             Workspace& workspace, const MatrixView& out);

}  // namespace nibble
