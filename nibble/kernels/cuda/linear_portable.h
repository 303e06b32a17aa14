// The products of linear_stream.h with what every GPU from compute capability 8.0 on has.
#pragma once

#include <cuda_runtime.h>

#include "nibble/kernels/cuda/linear_stream.h"

namespace nibble::cuda {

// Everything launch_linear_stream() takes, `work_tokens` as stream_work_tokens() gave it. NVFP4
// goes to launch_linear_direct() where that takes it.
cudaError_t launch_linear_portable(const StreamArgs& args, int work_tokens, cudaStream_t stream);

// linear_direct.cuh: NVFP4 with tokens of one part, and columns for every warp. By the matrix
// alone, so that a token's sums have one order.
bool direct_takes(const StreamArgs& args);
cudaError_t launch_linear_direct(const StreamArgs& args, int work_tokens, cudaStream_t stream);

}  // namespace nibble::cuda
