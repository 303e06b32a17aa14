// A block for each token and head. Its warps take every 8th position, each with a running maximum,
// a running sum and its share of the output in registers, and are merged in their order at the end.
// Bound: reads of the cache from L2, heads times over; mla_decode.cu reads it once.
#include <cuda_fp8.h>

#include "nibble/kernels/cuda/mla_attend.h"
#include "nibble/kernels/cuda/numeric.cuh"

namespace nibble::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = 32 * kWarps;

template <typename T>
__device__ float load(const T* data, int64_t i);
template <>
__device__ float load(const float* data, int64_t i) {
  return data[i];
}
template <>
__device__ float load(const uint16_t* data, int64_t i) {
  return bf16_value(data[i]);
}
template <>
__device__ float load(const uint8_t* data, int64_t i) {
  const __half_raw half = __nv_cvt_fp8_to_halfraw(data[i], __NV_E4M3);
  return __half2float(half);
}

// Each lane holds N values of the query and of the output: elements lane, lane + 32, ...
template <typename T, int N>
__global__ void mla_attend_kernel(AttendArgs a) {
  extern __shared__ float attend_shared[];  // [kWarps][rank], then maxima and sums
  const int rank = static_cast<int>(a.shape.kv_lora_rank);
  const int rope = static_cast<int>(a.shape.qk_rope_head_dim);
  const int64_t heads = a.shape.num_heads;
  const int64_t t = blockIdx.x / heads;
  const int64_t head = blockIdx.x % heads;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const TokenView view = a.views[t];
  const int32_t* const table = a.tables + view.table;
  const float* const q_latent = a.absorbed + (t * heads + head) * rank;
  const float* const q_rope =
      a.q + t * a.q_stride + head * (a.shape.qk_nope_head_dim + rope) + a.shape.qk_nope_head_dim;

  float query[N];
  float sum[N];
  for (int i = 0; i < N; ++i) {
    const int at = lane + 32 * i;
    query[i] = at < rank ? q_latent[at] : at < rank + rope ? q_rope[at - rank] : 0;
    sum[i] = 0;
  }
  float peak = -INFINITY;
  float total = 0;
  for (int64_t p = warp; p < view.visible; p += kWarps) {
    const int64_t slot = p + view.slot_offset;
    const int64_t index =
        table[slot / a.cache.block_size] * a.cache.block_size + slot % a.cache.block_size;
    const T* const entry = static_cast<const T*>(a.cache.data) + index * a.cache.entry_size;
    float value[N];
    float score = 0;
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const int at = lane + 32 * i;
      value[i] = at < rank + rope ? load(entry, at) : 0;
      score = fmaf(query[i], value[i], score);
    }
    for (int offset = 16; offset > 0; offset /= 2) {
      score += __shfl_xor_sync(~0u, score, offset);
    }
    score *= a.shape.softmax_scale;
    const float new_peak = fmaxf(peak, score);
    const float keep = expf(peak - new_peak);
    const float weight = expf(score - new_peak);
    peak = new_peak;
    total = fmaf(total, keep, weight);
#pragma unroll
    for (int i = 0; i < N; ++i) sum[i] = fmaf(weight, value[i], sum[i] * keep);
  }

  float* const peaks = attend_shared + kWarps * rank;
  float* const totals = peaks + kWarps;
  for (int i = 0; i < N; ++i) {
    const int at = lane + 32 * i;
    if (at < rank) attend_shared[warp * rank + at] = sum[i];
  }
  if (lane == 0) {
    peaks[warp] = peak;
    totals[warp] = total;
  }
  __syncthreads();
  float all_peak = -INFINITY;
  for (int w = 0; w < kWarps; ++w) all_peak = fmaxf(all_peak, peaks[w]);
  float all_total = 0;
  float factor[kWarps];
  for (int w = 0; w < kWarps; ++w) {
    factor[w] = peaks[w] == -INFINITY ? 0 : expf(peaks[w] - all_peak);
    all_total = fmaf(factor[w], totals[w], all_total);
  }
  for (int at = static_cast<int>(threadIdx.x); at < rank; at += kThreads) {
    float latent = 0;
    for (int w = 0; w < kWarps; ++w) latent = fmaf(factor[w], attend_shared[w * rank + at], latent);
    a.out[(t * heads + head) * rank + at] = latent / all_total;
  }
}

template <typename T>
void launch_typed(const AttendArgs& args, cudaStream_t stream) {
  const auto grid = static_cast<unsigned>(args.tokens * args.shape.num_heads);
  const int64_t entry = args.shape.entry_size();
  const size_t bytes = static_cast<size_t>(kWarps) *
                       static_cast<size_t>(args.shape.kv_lora_rank + 2) * sizeof(float);
  if (entry <= 32 * 4) {
    mla_attend_kernel<T, 4><<<grid, kThreads, bytes, stream>>>(args);
  } else if (entry <= 32 * 18) {
    mla_attend_kernel<T, 18><<<grid, kThreads, bytes, stream>>>(args);
  } else {
    mla_attend_kernel<T, 40><<<grid, kThreads, bytes, stream>>>(args);
  }
}

}  // namespace

cudaError_t launch_mla_attend(const AttendArgs& args, cudaStream_t stream) {
  if (args.shape.entry_size() > kMaxEntrySize) return cudaErrorInvalidValue;
  if (args.cache.dtype == DType::kF32) {
    launch_typed<float>(args, stream);
  } else if (args.cache.dtype == DType::kBf16) {
    launch_typed<uint16_t>(args, stream);
  } else {
    launch_typed<uint8_t>(args, stream);
  }
  return cudaGetLastError();
}

}  // namespace nibble::cuda
