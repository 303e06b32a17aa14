// ExpertDispatch of the cuda backend.
#pragma once

#include <memory>

#include "nibble/kernels/expert_dispatch.h"

namespace nibble::cuda {

// As make_expert_dispatch().
Result<std::unique_ptr<ExpertDispatch>> make_cuda_expert_dispatch(Device& device, int64_t max_rows);

}  // namespace nibble::cuda
