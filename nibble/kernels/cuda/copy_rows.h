// Rows from anywhere to anywhere: hidden states gathered and kept.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "nibble/kernels/kernels.h"

namespace nibble::cuda {

//   rows  [count], in device memory
cudaError_t launch_copy_rows(const RowCopy* rows, int64_t count, int64_t cols, cudaStream_t stream);

}  // namespace nibble::cuda
