// The kernels behind ExpertDispatch. Arguments as there; indices are in device memory.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "nibble/kernels/expert_dispatch.h"

namespace nibble::cuda {

cudaError_t launch_place_experts(int64_t count, const float* weights, const ExpertSlotsView& slots,
                                 int32_t* expert_ids, cudaStream_t stream);

cudaError_t launch_gather_rows(const MatrixView& from, const int32_t* rows, const MatrixView& out,
                               cudaStream_t stream);

//   rows  [out.rows, each]
cudaError_t launch_sum_rows(const MatrixView& from, const int32_t* rows, int64_t each,
                            const MatrixView& out, cudaStream_t stream);

}  // namespace nibble::cuda
