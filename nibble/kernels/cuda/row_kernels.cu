#include <cuda_fp8.h>

#include "nibble/kernels/cuda/launch.cuh"
#include "nibble/kernels/cuda/numeric.cuh"
#include "nibble/kernels/cuda/packed_layout.h"
#include "nibble/kernels/cuda/row_kernels.h"

namespace nibble::cuda {
namespace {

constexpr int kThreads = 256;

unsigned blocks_for(int64_t count) { return static_cast<unsigned>(ceil_div(count, kThreads)); }

// Tokens without a row in the table give zeros.
__global__ void embed_kernel(const void* table, bool bf16, int64_t table_stride, int64_t table_rows,
                             int64_t first_id, const int32_t* token_ids, float* out,
                             int64_t out_stride, int64_t cols) {
  let_next_start();
  wait_for_previous();
  const int64_t t = blockIdx.x;
  const int64_t id = token_ids[t] - first_id;
  const bool is_here = id >= 0 && id < table_rows;
  const int64_t row = id * table_stride;
  for (int64_t i = threadIdx.x; i < cols; i += kThreads) {
    if (!is_here) {
      out[t * out_stride + i] = 0;
      continue;
    }
    out[t * out_stride + i] = bf16 ? bf16_value(static_cast<const uint16_t*>(table)[row + i])
                                   : static_cast<const float*>(table)[row + i];
  }
}

// The sum of one value of each thread; the same order every time.
__device__ double block_sum(double value) {
  __shared__ double partial[kThreads / 32];
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(~0u, value, offset);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = value;
  __syncthreads();
  double sum = 0;
  for (int w = 0; w < kThreads / 32; ++w) sum += partial[w];
  __syncthreads();
  return sum;
}

// 1 / sqrt(mean x^2 + epsilon), the mean in binary64.
__device__ double norm_scale(const float* x, int64_t cols, float epsilon) {
  double sum = 0;
  for (int64_t i = threadIdx.x; i < cols; i += kThreads) {
    sum += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  }
  return 1 / sqrt(block_sum(sum) / static_cast<double>(cols) + static_cast<double>(epsilon));
}

__device__ float normed(float x, double scale, float weight) {
  return static_cast<float>(static_cast<double>(x) * scale * static_cast<double>(weight));
}

__global__ void rms_norm_kernel(const float* x, int64_t x_stride, const float* weight,
                                float epsilon, float* out, int64_t out_stride, int64_t cols) {
  let_next_start();
  wait_for_previous();
  const float* const row = x + blockIdx.x * x_stride;
  const double scale = norm_scale(row, cols, epsilon);
  for (int64_t i = threadIdx.x; i < cols; i += kThreads) {
    out[blockIdx.x * out_stride + i] = normed(row[i], scale, weight[i]);
  }
}

__global__ void add_kernel(float* x, int64_t x_stride, const float* y, int64_t y_stride,
                           int64_t cols) {
  let_next_start();
  wait_for_previous();
  const int64_t t = blockIdx.x;
  const int64_t i = int64_t{blockIdx.y} * kThreads + threadIdx.x;
  if (i < cols) x[t * x_stride + i] += y[t * y_stride + i];
}

// Rotates pair i of the elements at x; each product rounds, as in the definition.
__device__ float2 rotated(float even, float odd, float c, float s) {
  return make_float2(__fsub_rn(__fmul_rn(even, c), __fmul_rn(odd, s)),
                     __fadd_rn(__fmul_rn(even, s), __fmul_rn(odd, c)));
}

__global__ void rotary_query_kernel(float* q, int64_t stride, int64_t heads, int64_t head_dim,
                                    int64_t nope, const float* cos, const float* sin, int64_t half,
                                    const int32_t* positions) {
  let_next_start();
  wait_for_previous();
  const int64_t t = blockIdx.x;
  const float* const c = cos + positions[t] * half;
  const float* const s = sin + positions[t] * half;
  for (int64_t i = threadIdx.x; i < heads * half; i += kThreads) {
    float* const x = q + t * stride + i / half * head_dim + nope + 2 * (i % half);
    const float2 y = rotated(x[0], x[1], c[i % half], s[i % half]);
    x[0] = y.x;
    x[1] = y.y;
  }
}

__device__ void store(void* data, DType dtype, int64_t index, float value) {
  if (dtype == DType::kF32) {
    static_cast<float*>(data)[index] = value;
  } else if (dtype == DType::kBf16) {
    static_cast<uint16_t*>(data)[index] = bf16_bits(value);
  } else {
    static_cast<uint8_t*>(data)[index] = __nv_cvt_float_to_fp8(value, __NV_SATFINITE, __NV_E4M3);
  }
}

__global__ void mla_cache_write_kernel(const float* kv_a, int64_t stride, const float* weight,
                                       float epsilon, int64_t rank, const float* cos,
                                       const float* sin, int64_t half, const int32_t* positions,
                                       const int64_t* entries, void* cache, DType dtype) {
  let_next_start();
  wait_for_previous();
  const int64_t t = blockIdx.x;
  const float* const row = kv_a + t * stride;
  const int64_t entry = entries[t];
  const double scale = norm_scale(row, rank, epsilon);
  for (int64_t i = threadIdx.x; i < rank; i += kThreads) {
    store(cache, dtype, entry + i, normed(row[i], scale, weight[i]));
  }
  const float* const c = cos + positions[t] * half;
  const float* const s = sin + positions[t] * half;
  for (int64_t i = threadIdx.x; i < half; i += kThreads) {
    const float2 y = rotated(row[rank + 2 * i], row[rank + 2 * i + 1], c[i], s[i]);
    store(cache, dtype, entry + rank + 2 * i, y.x);
    store(cache, dtype, entry + rank + 2 * i + 1, y.y);
  }
}

// The lane's candidate against another's: larger first, then the lower index.
__device__ bool before(float a, int a_index, float b, int b_index) {
  return a > b || (a == b && a_index < b_index);
}

// The largest of key[0, count) over the warp that is not taken yet, its index; all lanes get it.
__device__ int warp_largest(const float* key, const bool* taken, int count) {
  float best = 0;
  int best_index = -1;
  for (int i = static_cast<int>(threadIdx.x % 32); i < count; i += 32) {
    if (!taken[i] && (best_index < 0 || before(key[i], i, best, best_index))) {
      best = key[i];
      best_index = i;
    }
  }
  for (int offset = 16; offset > 0; offset /= 2) {
    const float other = __shfl_xor_sync(~0u, best, offset);
    const int other_index = __shfl_xor_sync(~0u, best_index, offset);
    if (other_index >= 0 && (best_index < 0 || before(other, other_index, best, best_index))) {
      best = other;
      best_index = other_index;
    }
  }
  return best_index;
}

// One block of one warp for each token.
__global__ void route_kernel(const float* logits, const float* bias, RouterShape shape,
                             int32_t* expert_ids, float* weights) {
  let_next_start();
  wait_for_previous();
  extern __shared__ float route_shared[];
  const int experts = shape.n_routed_experts;
  const int groups = shape.n_group;
  const int group_size = experts / groups;
  float* const score = route_shared;
  float* const biased = score + experts;
  float* const group_score = biased + experts;
  float* const chosen = group_score + groups;  // scores, in order of choice
  bool* const taken = reinterpret_cast<bool*>(chosen + shape.num_experts_per_tok);
  bool* const group_taken = taken + experts;
  const int lane = static_cast<int>(threadIdx.x);
  const int64_t token = blockIdx.x;

  for (int e = lane; e < experts; e += 32) {
    const double logit = static_cast<double>(logits[token * experts + e]);
    score[e] = static_cast<float>(1 / (1 + exp(-logit)));
    const float b = score[e] + bias[e];
    biased[e] = isnan(b) ? -INFINITY : b;  // no place in an order: last
    taken[e] = true;
  }
  __syncwarp();
  for (int g = lane; g < groups; g += 32) {
    float first = -INFINITY;
    float second = -INFINITY;
    for (int i = 0; i < group_size; ++i) {
      const float b = biased[g * group_size + i];
      if (b > first) {
        second = first;
        first = b;
      } else if (b > second) {
        second = b;
      }
    }
    group_score[g] = first + second;
    group_taken[g] = false;
  }
  __syncwarp();
  for (int i = 0; i < shape.topk_group; ++i) {
    const int g = warp_largest(group_score, group_taken, groups);
    __syncwarp();
    if (lane == 0) group_taken[g] = true;
    for (int j = lane; j < group_size; j += 32) taken[g * group_size + j] = false;
    __syncwarp();
  }
  for (int j = 0; j < shape.num_experts_per_tok; ++j) {
    const int e = warp_largest(biased, taken, experts);
    __syncwarp();
    if (lane == 0) {
      taken[e] = true;
      chosen[j] = score[e];
      expert_ids[token * shape.num_experts_per_tok + j] = e;
    }
    __syncwarp();
  }
  if (lane != 0) return;
  float sum = 0;
  for (int j = 0; j < shape.num_experts_per_tok; ++j) sum = __fadd_rn(sum, chosen[j]);
  for (int j = 0; j < shape.num_experts_per_tok; ++j) {
    float weight = chosen[j];
    if (shape.norm_topk_prob) weight = __fdiv_rn(weight, __fadd_rn(sum, 1e-20f));
    weights[token * shape.num_experts_per_tok + j] = __fmul_rn(weight, shape.routed_scaling_factor);
  }
}

// Each thread converts 4 neighbouring columns.
__global__ void convert_kernel(ConvertArgs a, int64_t rows, int64_t quads) {
  let_next_start();
  wait_for_previous();
  const int64_t index = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (index >= rows * quads) return;
  const int64_t row = index / quads;
  const int64_t col = index % quads * 4;
  const float* const source = a.x + row / a.inner * a.outer_stride + row % a.inner * a.inner_stride;
  float v[4];
  for (int i = 0; i < 4; ++i) v[i] = col + i < a.cols ? source[col + i] : 0;
  for (int part = 0; part < a.parts; ++part) {
    ushort4 out;
    out.x = bf16_part(v[0], part);
    out.y = bf16_part(v[1], part);
    out.z = bf16_part(v[2], part);
    out.w = bf16_part(v[3], part);
    *reinterpret_cast<ushort4*>(a.out + (part * rows + row) * a.padded_cols + col) = out;
  }
}

__global__ void local_experts_kernel(const int32_t* expert_ids, int64_t slots, int first, int count,
                                     int32_t* local_ids) {
  let_next_start();
  wait_for_previous();
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= slots) return;
  const int local = expert_ids[i] - first;
  local_ids[i] = local >= 0 && local < count ? local : -1;
}

__global__ void moe_combine_kernel(const float* expert_rows, const int32_t* expert_ids,
                                   const float* weights, int64_t experts_per_token,
                                   const float* shared, int64_t row_stride, float* out,
                                   int64_t out_stride, int64_t cols) {
  let_next_start();
  wait_for_previous();
  const int64_t t = blockIdx.x;
  const int64_t i = int64_t{blockIdx.y} * kThreads + threadIdx.x;
  if (i >= cols) return;
  float sum = 0;
  for (int64_t j = 0; j < experts_per_token; ++j) {
    const int64_t slot = t * experts_per_token + j;
    if (expert_ids[slot] < 0) continue;
    sum = __fadd_rn(sum, __fmul_rn(weights[slot], expert_rows[slot * row_stride + i]));
  }
  if (shared != nullptr) sum = __fadd_rn(sum, shared[t * row_stride + i]);
  out[t * out_stride + i] = sum;
}

__global__ void swiglu_kernel(const float* gate, const float* up, int64_t count, float* out) {
  let_next_start();
  wait_for_previous();
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= count) return;
  const double g = static_cast<double>(gate[i]);
  out[i] = static_cast<float>(g / (1 + exp(-g)) * static_cast<double>(up[i]));
}

}  // namespace

void launch_embed(const MatrixView& table, int64_t first_id, const int32_t* token_ids,
                  const MatrixView& out, cudaStream_t stream) {
  launch_overlapped(embed_kernel, dim3(static_cast<unsigned>(out.rows)), dim3(kThreads), 0, stream,
                    table.data, table.dtype == DType::kBf16, table.stride, table.rows, first_id,
                    token_ids, out.row<float>(0), out.stride, out.cols);
}

void launch_rms_norm(const MatrixView& x, const float* weight, float epsilon, const MatrixView& out,
                     cudaStream_t stream) {
  launch_overlapped(rms_norm_kernel, dim3(static_cast<unsigned>(x.rows)), dim3(kThreads), 0, stream,
                    x.row<float>(0), x.stride, weight, epsilon, out.row<float>(0), out.stride,
                    x.cols);
}

void launch_add(const MatrixView& x, const MatrixView& y, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(x.rows), blocks_for(x.cols));
  launch_overlapped(add_kernel, dim3(grid), dim3(kThreads), 0, stream, x.row<float>(0), x.stride,
                    y.row<float>(0), y.stride, x.cols);
}

void launch_rotary_query(const MatrixView& q, const MlaShape& shape, const RopeTable& rope,
                         const int32_t* positions, cudaStream_t stream) {
  launch_overlapped(rotary_query_kernel, dim3(static_cast<unsigned>(q.rows)), dim3(kThreads), 0,
                    stream, q.row<float>(0), q.stride, shape.num_heads, shape.qk_head_dim(),
                    shape.qk_nope_head_dim, rope.cos, rope.sin, rope.half_dim, positions);
}

void launch_mla_cache_write(const MatrixView& kv_a, const float* kv_a_layernorm, float epsilon,
                            const MlaShape& shape, const RopeTable& rope, const int32_t* positions,
                            const int64_t* entries, const KvCacheView& cache, cudaStream_t stream) {
  launch_overlapped(mla_cache_write_kernel, dim3(static_cast<unsigned>(kv_a.rows)), dim3(kThreads),
                    0, stream, kv_a.row<float>(0), kv_a.stride, kv_a_layernorm, epsilon,
                    shape.kv_lora_rank, rope.cos, rope.sin, rope.half_dim, positions, entries,
                    cache.data, cache.dtype);
}

void launch_route(const float* logits, int64_t tokens, const float* bias, const RouterShape& shape,
                  int32_t* expert_ids, float* weights, cudaStream_t stream) {
  const auto experts = static_cast<size_t>(shape.n_routed_experts);
  const auto groups = static_cast<size_t>(shape.n_group);
  const size_t bytes =
      (2 * experts + groups + static_cast<size_t>(shape.num_experts_per_tok)) * sizeof(float) +
      experts + groups;
  launch_overlapped(route_kernel, dim3(static_cast<unsigned>(tokens)), dim3(32), bytes, stream,
                    logits, bias, shape, expert_ids, weights);
}

void launch_convert(const ConvertArgs& args, cudaStream_t stream) {
  const int64_t rows = args.outer * args.inner;
  const int64_t quads = args.padded_cols / 4;
  launch_overlapped(convert_kernel, dim3(blocks_for(rows * quads)), dim3(kThreads), 0, stream, args,
                    rows, quads);
}

void launch_local_experts(const int32_t* expert_ids, int64_t slots, int first, int count,
                          int32_t* local_ids, cudaStream_t stream) {
  launch_overlapped(local_experts_kernel, dim3(blocks_for(slots)), dim3(kThreads), 0, stream,
                    expert_ids, slots, first, count, local_ids);
}

void launch_moe_combine(const float* expert_rows, const int32_t* expert_ids, const float* weights,
                        int64_t experts_per_token, const float* shared, int64_t row_stride,
                        const MatrixView& out, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(out.rows), blocks_for(out.cols));
  launch_overlapped(moe_combine_kernel, dim3(grid), dim3(kThreads), 0, stream, expert_rows,
                    expert_ids, weights, experts_per_token, shared, row_stride, out.row<float>(0),
                    out.stride, out.cols);
}

void launch_swiglu(const float* gate, const float* up, int64_t count, float* out,
                   cudaStream_t stream) {
  launch_overlapped(swiglu_kernel, dim3(blocks_for(count)), dim3(kThreads), 0, stream, gate, up,
                    count, out);
}

}  // namespace nibble::cuda
