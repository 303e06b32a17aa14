// The operations that treat rows one by one: norms, rotations, cache writes, conversions.
// All are bound by the bytes of their rows, at decode sizes by the launch itself.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "nibble/device/cuda/bf16_copies.h"
#include "nibble/kernels/attention_view.h"
#include "nibble/kernels/kernels.h"
#include "nibble/kernels/matrix_view.h"

namespace nibble::cuda {

void launch_embed(const MatrixView& table, int64_t first_id, const int32_t* token_ids,
                  const MatrixView& out, cudaStream_t stream);
// Norms leave `out` in `copy`, too, where that has data.
void launch_rms_norm(const MatrixView& x, const float* weight, float epsilon, const MatrixView& out,
                     const Bf16Copy& copy, cudaStream_t stream);
// x += y; out = rms_norm(x).
void launch_add_rms_norm(const MatrixView& x, const MatrixView& y, const float* weight,
                         float epsilon, const MatrixView& out, const Bf16Copy& copy,
                         cudaStream_t stream);
void launch_add(const MatrixView& x, const MatrixView& y, cudaStream_t stream);

//   positions  int32 [tokens], in device memory
void launch_rotary_query(const MatrixView& q, const MlaShape& shape, const RopeTable& rope,
                         const int32_t* positions, cudaStream_t stream);

//   entries  int64 [tokens]: the element index of each token's cache entry
void launch_mla_cache_write(const MatrixView& kv_a, const float* kv_a_layernorm, float epsilon,
                            const MlaShape& shape, const RopeTable& rope, const int32_t* positions,
                            const int64_t* entries, const KvCacheView& cache, cudaStream_t stream);
// launch_rotary_query and launch_mla_cache_write at once.
void launch_mla_prepare(const MatrixView& q, const MatrixView& kv_a, const float* kv_a_layernorm,
                        float epsilon, const MlaShape& shape, const RopeTable& rope,
                        const int32_t* positions, const int64_t* entries, const KvCacheView& cache,
                        cudaStream_t stream);

// Float rows -> BF16 parts [parts][outer * inner][padded_cols], zeros behind the last column: row
// (o, i) of the output is read from x + o * outer_stride + i * inner_stride.
struct ConvertArgs {
  const float* x = nullptr;
  int64_t outer = 0;
  int64_t inner = 1;
  int64_t outer_stride = 0;
  int64_t inner_stride = 0;
  int64_t cols = 0;
  int64_t padded_cols = 0;
  uint16_t* out = nullptr;
  int parts = 1;
};
void launch_convert(const ConvertArgs& args, cudaStream_t stream);

// local_ids[i] = expert_ids[i] - first where that is one of `count` experts of this rank, else -1.
void launch_local_experts(const int32_t* expert_ids, int64_t slots, int first, int count,
                          int32_t* local_ids, cudaStream_t stream);

// out[t, i] = sum_j weights[t, j] * expert rows[t * k + j, i], then + shared[t, i], in that order.
// Slots whose expert id is negative add nothing.
//   shared  float rows of row_stride, or null
void launch_moe_combine(const float* expert_rows, const int32_t* expert_ids, const float* weights,
                        int64_t experts_per_token, const float* shared, int64_t row_stride,
                        const MatrixView& out, cudaStream_t stream);

// out[t, i] = silu(gate[t, i]) * up[t, i], contiguous.
void launch_swiglu(const float* gate, const float* up, int64_t count, float* out,
                   cudaStream_t stream);
// The same as BF16 rows of padded_cols, zeros behind the last column.
void launch_swiglu_bf16(const float* gate, const float* up, int64_t rows, int64_t cols,
                        int64_t padded_cols, uint16_t* out, cudaStream_t stream);

}  // namespace nibble::cuda
