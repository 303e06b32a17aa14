#include "nibble/kernels/cuda/launch.cuh"
#include "nibble/kernels/cuda/numeric.cuh"
#include "nibble/kernels/cuda/packed_layout.h"
#include "nibble/kernels/cuda/route.h"

namespace nibble::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;

// Which of two candidates comes first: the larger, then the one of lower index.
__device__ bool before(float a, int a_index, float b, int b_index) {
  return a > b || (a == b && a_index < b_index);
}

size_t route_shared_bytes(const RouterShape& shape) {
  const auto experts = static_cast<size_t>(shape.n_routed_experts);
  const auto groups = static_cast<size_t>(shape.n_group);
  return (2 * experts + groups + static_cast<size_t>(shape.num_experts_per_tok)) * sizeof(float) +
         groups;
}

// The experts of one token, by all threads of a block. A group's and an expert's place in the order
// is the number of those that come before it, which all threads count at once.
template <class Logit>
__device__ void choose_experts(const Logit& logit_of, const float* bias, const RouterShape& shape,
                               float* route_shared, int32_t* expert_ids, float* weights) {
  const int experts = shape.n_routed_experts;
  const int groups = shape.n_group;
  const int group_size = experts / groups;
  float* const score = route_shared;
  float* const biased = score + experts;
  float* const group_score = biased + experts;
  float* const chosen = group_score + groups;  // scores, in order of choice
  bool* const group_taken = reinterpret_cast<bool*>(chosen + shape.num_experts_per_tok);
  const int thread = static_cast<int>(threadIdx.x);
  for (int e = thread; e < experts; e += kThreads) {
    const double logit = static_cast<double>(logit_of(e));
    score[e] = static_cast<float>(1 / (1 + exp(-logit)));
    const float b = score[e] + bias[e];
    biased[e] = isnan(b) ? -INFINITY : b;  // no place in an order: last
  }
  __syncthreads();
  // A warp a group: its two largest.
  for (int g = thread / 32; g < groups; g += kThreads / 32) {
    float first = -INFINITY;
    float second = -INFINITY;
    const auto add = [&](float b) {
      second = fmaxf(second, fminf(first, b));
      first = fmaxf(first, b);
    };
    for (int i = thread % 32; i < group_size; i += 32) add(biased[g * group_size + i]);
    for (int offset = 16; offset > 0; offset /= 2) {
      const float other = __shfl_xor_sync(~0u, first, offset);
      const float other_second = __shfl_xor_sync(~0u, second, offset);
      add(other);
      add(other_second);
    }
    if (thread % 32 == 0) group_score[g] = first + second;
  }
  __syncthreads();
  for (int g = thread; g < groups; g += kThreads) {
    int place = 0;
    for (int i = 0; i < groups; ++i) {
      place += before(group_score[i], i, group_score[g], g) ? 1 : 0;
    }
    group_taken[g] = place < shape.topk_group;
  }
  __syncthreads();
  for (int e = thread; e < experts; e += kThreads) {
    if (!group_taken[e / group_size]) continue;
    int place = 0;
    for (int g = 0; g < groups; ++g) {
      if (!group_taken[g]) continue;
      for (int i = g * group_size; i < (g + 1) * group_size; ++i) {
        place += before(biased[i], i, biased[e], e) ? 1 : 0;
      }
    }
    if (place >= shape.num_experts_per_tok) continue;
    chosen[place] = score[e];
    expert_ids[place] = e;
  }
  __syncthreads();
  for (int j = thread; j < shape.num_experts_per_tok; j += kThreads) {
    float sum = 0;
    for (int i = 0; i < shape.num_experts_per_tok; ++i) sum = __fadd_rn(sum, chosen[i]);
    float weight = chosen[j];
    if (shape.norm_topk_prob) weight = __fdiv_rn(weight, __fadd_rn(sum, 1e-20f));
    weights[j] = __fmul_rn(weight, shape.routed_scaling_factor);
  }
}

__global__ __launch_bounds__(kThreads) void route_kernel(const float* logits, const float* bias,
                                                         RouterShape shape, int32_t* expert_ids,
                                                         float* weights) {
  extern __shared__ float route_shared[];
  let_next_start();
  wait_for_previous();
  const int64_t token = blockIdx.x;
  const int64_t k = shape.num_experts_per_tok;
  const float* const row = logits + token * shape.n_routed_experts;
  choose_experts([&](int e) { return row[e]; }, bias, shape, route_shared, expert_ids + token * k,
                 weights + token * k);
}

// grid (row tiles x splits of the columns, tokens), a warp a unit of a tile: 16 experts, 128
// columns, binary32 throughout. Each block leaves the sums of its units; the last one of a token
// adds them up, in the order of the splits, and chooses.
__global__ __launch_bounds__(kThreads) void route_few_kernel(RouteFewArgs a, int splits) {
  extern __shared__ float route_shared[];
  __shared__ float sums[kWarps][kTileRows];
  __shared__ bool is_last;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int tile = static_cast<int>(blockIdx.x) / splits;
  const int split = static_cast<int>(blockIdx.x) % splits;
  const int64_t token = blockIdx.y;
  const int64_t unit = split * kWarps + warp;
  const bool has_unit = unit < a.units;
  uint4 w[2][4];  // half, step: rows g and g + 8 of columns 4s, 4s + 1, then of 4s + 2, 4s + 3
  if (has_unit) {
    const uint8_t* const source = a.gate + (tile * a.units + unit) * kBf16UnitBytes + 16 * lane;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int step = 0; step < 4; ++step) {
        w[half][step] = *reinterpret_cast<const uint4*>(source + 2048 * half + 512 * step);
      }
    }
  }
  let_next_start();
  wait_for_previous();
  float low = 0;   // row g
  float high = 0;  // row g + 8
  if (has_unit) {
    const float* const x = a.x + token * a.x_stride + unit * kUnitCols + 16 * (lane % 4);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int step = 0; step < 4; ++step) {
        const float4 v = *reinterpret_cast<const float4*>(x + 64 * half + 4 * step);
        const uint4& u = w[half][step];
        const auto first = [](uint32_t pair) { return __uint_as_float(pair << 16); };
        const auto second = [](uint32_t pair) { return __uint_as_float(pair & 0xffff0000u); };
        low = fmaf(first(u.x), v.x, low);
        low = fmaf(second(u.x), v.y, low);
        low = fmaf(first(u.z), v.z, low);
        low = fmaf(second(u.z), v.w, low);
        high = fmaf(first(u.y), v.x, high);
        high = fmaf(second(u.y), v.y, high);
        high = fmaf(first(u.w), v.z, high);
        high = fmaf(second(u.w), v.w, high);
      }
    }
  }
  for (int offset = 1; offset < 4; offset *= 2) {
    low += __shfl_xor_sync(~0u, low, offset);
    high += __shfl_xor_sync(~0u, high, offset);
  }
  if (lane % 4 == 0) {
    sums[warp][lane / 4] = low;
    sums[warp][lane / 4 + 8] = high;
  }
  __syncthreads();
  const int experts = a.shape.n_routed_experts;
  float* const parts = a.parts + token * splits * experts;  // [splits][experts]
  if (threadIdx.x < kTileRows) {
    float sum = 0;
#pragma unroll
    for (int i = 0; i < kWarps; ++i) sum += sums[i][threadIdx.x];
    parts[split * experts + tile * kTileRows + static_cast<int>(threadIdx.x)] = sum;
    __threadfence();
  }
  __syncthreads();
  // Back to zero by itself for the next launch.
  if (threadIdx.x == 0) is_last = atomicInc(a.arrivals + token, gridDim.x - 1) == gridDim.x - 1;
  __syncthreads();
  if (!is_last) return;
  __threadfence();
  const int64_t k = a.shape.num_experts_per_tok;
  choose_experts(
      [&](int e) {
        float logit = 0;
        for (int i = 0; i < splits; ++i) logit += __ldcg(parts + i * experts + e);
        return logit;
      },
      a.bias, a.shape, route_shared, a.expert_ids + token * k, a.weights + token * k);
}

int64_t route_few_splits(int64_t units) { return ceil_div(units, kWarps); }

}  // namespace

void launch_route(const float* logits, int64_t tokens, const float* bias, const RouterShape& shape,
                  int32_t* expert_ids, float* weights, cudaStream_t stream) {
  launch_overlapped(route_kernel, dim3(static_cast<unsigned>(tokens)), dim3(kThreads),
                    route_shared_bytes(shape), stream, logits, bias, shape, expert_ids, weights);
}

bool route_few_takes(const LinearWeight& gate, const MatrixView& x, const RouterShape& shape) {
  return gate.format == LinearFormat::kBf16 && x.rows <= kMaxRouteFewTokens &&
         gate.cols % kUnitCols == 0 && gate.rows % kTileRows == 0 && x.stride % 4 == 0 &&
         reinterpret_cast<uintptr_t>(x.data) % 16 == 0 && shape.n_routed_experts == gate.rows;
}

int64_t route_few_floats(int64_t tokens, int64_t units, const RouterShape& shape) {
  return tokens * route_few_splits(units) * shape.n_routed_experts;
}

cudaError_t launch_route_few(const RouteFewArgs& args, int64_t tokens, cudaStream_t stream) {
  const int64_t splits = route_few_splits(args.units);
  const int64_t tiles = args.shape.n_routed_experts / kTileRows;
  return launch_overlapped(
      route_few_kernel, dim3(static_cast<unsigned>(tiles * splits), static_cast<unsigned>(tokens)),
      dim3(kThreads), route_shared_bytes(args.shape), stream, args, static_cast<int>(splits));
}

}  // namespace nibble::cuda
