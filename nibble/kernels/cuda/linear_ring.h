// Which products linear_ring.cuh serves, and how.
#pragma once

#include <cuda_runtime.h>

#include "nibble/kernels/cuda/linear_stream.h"

namespace nibble::cuda {

// Whether launch_linear_ring() takes it, and is the fastest for it: NVFP4, tokens of one part, no
// fixed_order of experts, long enough matrices, not too many experts for a block's table.
bool ring_takes(const StreamArgs& args);

// `work_tokens` as stream_work_tokens() gave it.
cudaError_t launch_linear_ring(const StreamArgs& args, int work_tokens, cudaStream_t stream);

}  // namespace nibble::cuda
