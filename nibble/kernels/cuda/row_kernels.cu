#include <cuda_fp8.h>

#include "nibble/kernels/cuda/launch.cuh"
#include "nibble/kernels/cuda/numeric.cuh"
#include "nibble/kernels/cuda/packed_layout.h"
#include "nibble/kernels/cuda/row_kernels.h"

namespace nibble::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kRowThreads = 1024;  // of a long row

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
  const int64_t i = int64_t{blockIdx.y} * kThreads + threadIdx.x;
  if (i >= cols) return;
  float value = 0;
  if (is_here) {
    const int64_t at = id * table_stride + i;
    value = bf16 ? bf16_value(static_cast<const uint16_t*>(table)[at])
                 : static_cast<const float*>(table)[at];
  }
  out[t * out_stride + i] = value;
}

// The sum of one value of each thread, the same order every time; all threads get it.
template <int kSize>
__device__ double block_sum(double value) {
  constexpr int kWarps = kSize / 32;
  __shared__ double partial[kWarps];
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(~0u, value, offset);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = value;
  __syncthreads();
  double sum = threadIdx.x % 32 < kWarps ? partial[threadIdx.x % 32] : 0;
  for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(~0u, sum, offset);
  __syncthreads();
  return sum;
}

// 1 / sqrt(mean x^2 + epsilon), the mean in binary64.
__device__ double norm_scale(const float* x, int64_t cols, float epsilon) {
  double sum = 0;
  for (int64_t i = threadIdx.x; i < cols; i += kThreads) {
    sum += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  }
  return 1 /
         sqrt(block_sum<kThreads>(sum) / static_cast<double>(cols) + static_cast<double>(epsilon));
}

__device__ float normed(float x, double scale, float weight) {
  return static_cast<float>(static_cast<double>(x) * scale * static_cast<double>(weight));
}

// What one launch of rms_norm does: x += y, where there is a y; out = the norm of x.
struct NormArgs {
  const float* x = nullptr;
  int64_t x_stride = 0;
  float* sum = nullptr;  // x again
  const float* y = nullptr;
  int64_t y_stride = 0;
  const float* weight = nullptr;
  float epsilon = 0;
  float* out = nullptr;
  int64_t out_stride = 0;
  int64_t cols = 0;
  Bf16Copy copy;

  __device__ void write(int64_t row, int64_t col, float value) const {
    out[row * out_stride + col] = value;
    if (copy.data == nullptr) return;
    for (int part = 0; part < copy.parts; ++part) {
      copy.data[part * copy.part_stride + row * copy.row_stride + col] = bf16_part(value, part);
    }
  }
};

// A block a row of any length.
__global__ void rms_norm_kernel(NormArgs a) {
  let_next_start();
  wait_for_previous();
  const float* row = a.x + blockIdx.x * a.x_stride;
  if (a.y != nullptr) {
    float* const sum = a.sum + blockIdx.x * a.x_stride;
    const float* const y = a.y + blockIdx.x * a.y_stride;
    for (int64_t i = threadIdx.x; i < a.cols; i += kThreads) sum[i] = row[i] + y[i];
    row = sum;
  }
  const double scale = norm_scale(row, a.cols, a.epsilon);
  for (int64_t i = threadIdx.x; i < a.cols; i += kThreads) {
    a.write(blockIdx.x, i, normed(row[i], scale, a.weight[i]));
  }
}

// Rows of up to kSize * kHeld values, which stay in registers: memory is waited for once, for the
// weights not at all.
constexpr int kHeld = 8;
// kParts: of the copy; 0: there is none.
template <int kSize, int kParts>
__global__ __launch_bounds__(kSize) void rms_norm_held_kernel(NormArgs a) {
  let_next_start();
  const int first = static_cast<int>(threadIdx.x);
  const int cols = static_cast<int>(a.cols);
  float weight[kHeld];
  float v[kHeld];
#pragma unroll
  for (int k = 0; k < kHeld; ++k) {
    weight[k] = first + k * kSize < cols ? a.weight[first + k * kSize] : 0;
  }
  wait_for_previous();
  const int64_t row = blockIdx.x;
#pragma unroll
  for (int k = 0; k < kHeld; ++k) {
    const int i = first + k * kSize;
    v[k] = i < cols ? a.x[row * a.x_stride + i] : 0;
  }
  if (a.y != nullptr) {
#pragma unroll
    for (int k = 0; k < kHeld; ++k) {
      const int i = first + k * kSize;
      if (i < cols) v[k] += a.y[row * a.y_stride + i];
    }
#pragma unroll
    for (int k = 0; k < kHeld; ++k) {
      const int i = first + k * kSize;
      if (i < cols) a.sum[row * a.x_stride + i] = v[k];
    }
  }
  double sum = 0;
#pragma unroll
  for (int k = 0; k < kHeld; ++k) sum += static_cast<double>(v[k]) * static_cast<double>(v[k]);
  const double mean = block_sum<kSize>(sum) / static_cast<double>(cols);
  const double scale = 1 / sqrt(mean + static_cast<double>(a.epsilon));
#pragma unroll
  for (int k = 0; k < kHeld; ++k) {
    const int i = first + k * kSize;
    if (i >= cols) continue;
    const float value = normed(v[k], scale, weight[k]);
    a.out[row * a.out_stride + i] = value;
    if constexpr (kParts > 0) {
      uint16_t* to = a.copy.data + row * a.copy.row_stride + i;
      float rest = value;
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        const uint16_t bits = bf16_rounded(rest);
        *to = bits;
        to += a.copy.part_stride;
        rest = bf16_rest(rest, bits);
      }
    }
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

struct RotaryArgs {
  float* q = nullptr;
  int64_t stride = 0;
  int64_t heads = 0;
  int64_t head_dim = 0;
  int64_t nope = 0;
  const float* cos = nullptr;
  const float* sin = nullptr;
  int64_t half = 0;
  const int32_t* positions = nullptr;
};

// Block `block` of those of token t.
__device__ void rotate_query(const RotaryArgs& a, int64_t t, int64_t block) {
  const float* const c = a.cos + a.positions[t] * a.half;
  const float* const s = a.sin + a.positions[t] * a.half;
  const int64_t i = block * kThreads + threadIdx.x;
  if (i >= a.heads * a.half) return;
  float* const x = a.q + t * a.stride + i / a.half * a.head_dim + a.nope + 2 * (i % a.half);
  const float2 y = rotated(x[0], x[1], c[i % a.half], s[i % a.half]);
  x[0] = y.x;
  x[1] = y.y;
}

__global__ void rotary_query_kernel(RotaryArgs a) {
  let_next_start();
  wait_for_previous();
  rotate_query(a, blockIdx.x, blockIdx.y);
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

struct CacheWriteArgs {
  const float* kv_a = nullptr;
  int64_t stride = 0;
  const float* weight = nullptr;
  float epsilon = 0;
  int64_t rank = 0;
  const float* cos = nullptr;
  const float* sin = nullptr;
  int64_t half = 0;
  const int32_t* positions = nullptr;
  const int64_t* entries = nullptr;
  void* cache = nullptr;
  DType dtype = DType::kF32;
};

// By all threads of a block. A token with the entry of the one in front of it is a copy of it that
// fills up a recorded batch (engine/padded_batch.h): it writes nothing, as its last bits may
// differ.
__device__ void write_entry(const CacheWriteArgs& a, int64_t t) {
  if (t > 0 && a.entries[t] == a.entries[t - 1]) return;
  const float* const row = a.kv_a + t * a.stride;
  const int64_t entry = a.entries[t];
  const double norm = norm_scale(row, a.rank, a.epsilon);
  // An infinity makes the norm 0, and itself NaN: then all of the latents are, as mla_narrow.cu
  // looks at some of them.
  const double scale = norm > 0 ? norm : static_cast<double>(NAN);
  for (int64_t i = threadIdx.x; i < a.rank; i += kThreads) {
    store(a.cache, a.dtype, entry + i, normed(row[i], scale, a.weight[i]));
  }
  const float* const c = a.cos + a.positions[t] * a.half;
  const float* const s = a.sin + a.positions[t] * a.half;
  for (int64_t i = threadIdx.x; i < a.half; i += kThreads) {
    const float2 y = rotated(row[a.rank + 2 * i], row[a.rank + 2 * i + 1], c[i], s[i]);
    store(a.cache, a.dtype, entry + a.rank + 2 * i, y.x);
    store(a.cache, a.dtype, entry + a.rank + 2 * i + 1, y.y);
  }
}

__global__ void mla_cache_write_kernel(CacheWriteArgs a) {
  let_next_start();
  wait_for_previous();
  write_entry(a, blockIdx.x);
}

// A token's last block writes its entry, the others rotate its query.
__global__ void mla_prepare_kernel(RotaryArgs rotary, CacheWriteArgs write) {
  let_next_start();
  wait_for_previous();
  if (blockIdx.y + 1 == gridDim.y) {
    write_entry(write, blockIdx.x);
  } else {
    rotate_query(rotary, blockIdx.x, blockIdx.y);
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
  const float of_shared = shared != nullptr ? shared[t * row_stride + i] : 0;
  float sum = 0;
  constexpr int kAtOnce = 8;  // loads that wait together
  for (int64_t first = 0; first < experts_per_token; first += kAtOnce) {
    bool is_here[kAtOnce];
    float value[kAtOnce];
    float weight[kAtOnce];
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      const int64_t slot = t * experts_per_token + first + j;
      is_here[j] = first + j < experts_per_token && expert_ids[slot] >= 0;
      weight[j] = first + j < experts_per_token ? weights[slot] : 0;
      // Rows of experts that are elsewhere were never written, but they are there.
      value[j] = first + j < experts_per_token ? expert_rows[slot * row_stride + i] : 0;
    }
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      if (is_here[j]) sum = __fadd_rn(sum, __fmul_rn(weight[j], value[j]));
    }
  }
  if (shared != nullptr) sum = __fadd_rn(sum, of_shared);
  out[t * out_stride + i] = sum;
}

// The value of SwiGLU, as the definition rounds it.
__device__ float swiglu(float gate, float up) {
  const double g = static_cast<double>(gate);
  return static_cast<float>(g / (1 + exp(-g)) * static_cast<double>(up));
}

__global__ void swiglu_kernel(const float* gate, const float* up, int64_t count, float* out) {
  let_next_start();
  wait_for_previous();
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= count) return;
  out[i] = swiglu(gate[i], up[i]);
}

__global__ void swiglu_bf16_kernel(const float* gate, const float* up, int64_t cols,
                                   int64_t padded_cols, uint16_t* out) {
  let_next_start();
  wait_for_previous();
  const int64_t t = blockIdx.x;
  const int64_t i = int64_t{blockIdx.y} * kThreads + threadIdx.x;
  if (i >= padded_cols) return;
  const float value = i < cols ? swiglu(gate[t * cols + i], up[t * cols + i]) : 0;
  out[t * padded_cols + i] = bf16_bits(value);
}

}  // namespace

void launch_embed(const MatrixView& table, int64_t first_id, const int32_t* token_ids,
                  const MatrixView& out, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(out.rows), blocks_for(out.cols));
  launch_overlapped(embed_kernel, dim3(grid), dim3(kThreads), 0, stream, table.data,
                    table.dtype == DType::kBf16, table.stride, table.rows, first_id, token_ids,
                    out.row<float>(0), out.stride, out.cols);
}

namespace {

void launch_norm(const NormArgs& args, int64_t rows, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(rows));
  const int parts = args.copy.data != nullptr ? args.copy.parts : 0;
  const auto launch = [&](auto kernel, int threads) {
    launch_overlapped(kernel, dim3(grid), dim3(static_cast<unsigned>(threads)), 0, stream, args);
  };
  if (args.cols > kRowThreads * kHeld || (parts != 0 && parts != 1 && parts != 3)) {
    launch(rms_norm_kernel, kThreads);
  } else if (args.cols > kThreads * kHeld) {
    launch(parts == 0   ? rms_norm_held_kernel<kRowThreads, 0>
           : parts == 1 ? rms_norm_held_kernel<kRowThreads, 1>
                        : rms_norm_held_kernel<kRowThreads, 3>,
           kRowThreads);
  } else {
    launch(parts == 0   ? rms_norm_held_kernel<kThreads, 0>
           : parts == 1 ? rms_norm_held_kernel<kThreads, 1>
                        : rms_norm_held_kernel<kThreads, 3>,
           kThreads);
  }
}

NormArgs norm_args(const MatrixView& x, const float* weight, float epsilon, const MatrixView& out) {
  NormArgs args;
  args.x = x.row<const float>(0);
  args.x_stride = x.stride;
  args.weight = weight;
  args.epsilon = epsilon;
  args.out = out.row<float>(0);
  args.out_stride = out.stride;
  args.cols = x.cols;
  return args;
}

}  // namespace

void launch_rms_norm(const MatrixView& x, const float* weight, float epsilon, const MatrixView& out,
                     const Bf16Copy& copy, cudaStream_t stream) {
  NormArgs args = norm_args(x, weight, epsilon, out);
  args.copy = copy;
  launch_norm(args, x.rows, stream);
}

void launch_add_rms_norm(const MatrixView& x, const MatrixView& y, const float* weight,
                         float epsilon, const MatrixView& out, const Bf16Copy& copy,
                         cudaStream_t stream) {
  NormArgs args = norm_args(x, weight, epsilon, out);
  args.copy = copy;
  args.sum = x.row<float>(0);
  args.y = y.row<const float>(0);
  args.y_stride = y.stride;
  launch_norm(args, x.rows, stream);
}

void launch_add(const MatrixView& x, const MatrixView& y, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(x.rows), blocks_for(x.cols));
  launch_overlapped(add_kernel, dim3(grid), dim3(kThreads), 0, stream, x.row<float>(0), x.stride,
                    y.row<float>(0), y.stride, x.cols);
}

namespace {

RotaryArgs rotary_args(const MatrixView& q, const MlaShape& shape, const RopeTable& rope,
                       const int32_t* positions) {
  return {q.row<float>(0),
          q.stride,
          shape.num_heads,
          shape.qk_head_dim(),
          shape.qk_nope_head_dim,
          rope.cos,
          rope.sin,
          rope.half_dim,
          positions};
}

CacheWriteArgs write_args(const MatrixView& kv_a, const float* kv_a_layernorm, float epsilon,
                          const MlaShape& shape, const RopeTable& rope, const int32_t* positions,
                          const int64_t* entries, const KvCacheView& cache) {
  return {kv_a.row<const float>(0),
          kv_a.stride,
          kv_a_layernorm,
          epsilon,
          shape.kv_lora_rank,
          rope.cos,
          rope.sin,
          rope.half_dim,
          positions,
          entries,
          cache.data,
          cache.dtype};
}

}  // namespace

void launch_rotary_query(const MatrixView& q, const MlaShape& shape, const RopeTable& rope,
                         const int32_t* positions, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(q.rows), blocks_for(shape.num_heads * rope.half_dim));
  launch_overlapped(rotary_query_kernel, dim3(grid), dim3(kThreads), 0, stream,
                    rotary_args(q, shape, rope, positions));
}

void launch_mla_cache_write(const MatrixView& kv_a, const float* kv_a_layernorm, float epsilon,
                            const MlaShape& shape, const RopeTable& rope, const int32_t* positions,
                            const int64_t* entries, const KvCacheView& cache, cudaStream_t stream) {
  launch_overlapped(
      mla_cache_write_kernel, dim3(static_cast<unsigned>(kv_a.rows)), dim3(kThreads), 0, stream,
      write_args(kv_a, kv_a_layernorm, epsilon, shape, rope, positions, entries, cache));
}

void launch_mla_prepare(const MatrixView& q, const MatrixView& kv_a, const float* kv_a_layernorm,
                        float epsilon, const MlaShape& shape, const RopeTable& rope,
                        const int32_t* positions, const int64_t* entries, const KvCacheView& cache,
                        cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(q.rows), blocks_for(shape.num_heads * rope.half_dim) + 1);
  launch_overlapped(
      mla_prepare_kernel, dim3(grid), dim3(kThreads), 0, stream,
      rotary_args(q, shape, rope, positions),
      write_args(kv_a, kv_a_layernorm, epsilon, shape, rope, positions, entries, cache));
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

void launch_swiglu_bf16(const float* gate, const float* up, int64_t rows, int64_t cols,
                        int64_t padded_cols, uint16_t* out, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(rows), blocks_for(padded_cols));
  launch_overlapped(swiglu_bf16_kernel, dim3(grid), dim3(kThreads), 0, stream, gate, up, cols,
                    padded_cols, out);
}

}  // namespace nibble::cuda
