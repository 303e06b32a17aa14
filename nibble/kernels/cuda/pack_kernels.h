// The rearrangement of checkpoint matrices into packed_layout.h, on the device.
#pragma once

#include <cuda_runtime.h>

#include "nibble/kernels/linear_weight.h"

namespace nibble::cuda {

// Writes the packed matrix from one that lies in device memory in the checkpoint's layout. `rows`
// of the source are taken from row `first_row` on, in steps of one.
void launch_pack(const LinearWeight& source, void* destination, cudaStream_t stream);

// kv_b_proj [heads * (nope + value), rank] -> for each head W_UK^T [rank, nope] and W_UV
// [value, rank], packed as BF16 where it is BF16 or NVFP4 (whose values times 1 / global_scale are
// BF16 values) and as F32 otherwise.
void launch_pack_mla_up(const LinearWeight& source, int64_t heads, int64_t nope, int64_t value,
                        void* k_trans, void* v, cudaStream_t stream);

}  // namespace nibble::cuda
