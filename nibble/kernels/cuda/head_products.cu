#include <algorithm>

#include "nibble/kernels/cuda/head_products.h"
#include "nibble/kernels/cuda/launch.cuh"
#include "nibble/kernels/cuda/numeric.cuh"
#include "nibble/kernels/cuda/packed_layout.h"
#include "nibble/kernels/cuda/ptx.cuh"

namespace nibble::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;

// Four steps of a tile: half a unit (packed_layout.h).
struct Steps {
  uint4 of[4];
  __device__ void load(const uint8_t* at) {
#pragma unroll
    for (int step = 0; step < 4; ++step)
      of[step] = *reinterpret_cast<const uint4*>(at + 512 * step);
  }
};

// The tokens' activations of a head, in BF16 in shared memory. Rows are 16 bytes longer than their
// values, so that a quarter of a warp reads from different banks.
template <int kCols>
constexpr int kRowBytes = 2 * kCols + 16;

template <int kCols, int kTokens>
__device__ void bring_tokens(const HeadProductArgs& a, int64_t first, int count, int head,
                             uint8_t* to) {
  constexpr int kChunks = kCols / 8;
  for (int i = static_cast<int>(threadIdx.x); i < kTokens * kChunks; i += kThreads) {
    const int token = i / kChunks;
    const int chunk = i % kChunks;
    const int64_t at = (first + token) * a.x_stride + head * a.x_head_stride + 8 * chunk;
    uint4 values = make_uint4(0, 0, 0, 0);
    if (token < count) {
      if (a.x_float != nullptr) {
        const float4 low = *reinterpret_cast<const float4*>(a.x_float + at);
        const float4 high = *reinterpret_cast<const float4*>(a.x_float + at + 4);
        values = make_uint4(bf16x2(low.x, low.y), bf16x2(low.z, low.w), bf16x2(high.x, high.y),
                            bf16x2(high.z, high.w));
      } else {
        values = *reinterpret_cast<const uint4*>(a.x + at);
      }
    }
    *reinterpret_cast<uint4*>(to + token * kRowBytes<kCols> + 16 * chunk) = values;
  }
}

// A block: kTiles row tiles of a head for each of its warps, and 8 NT tokens.
template <int kCols, int NT, int kTiles>
__global__ __launch_bounds__(kThreads) void head_products_kernel(
    const __grid_constant__ HeadProductArgs a) {
  extern __shared__ __align__(16) uint8_t tokens[];
  constexpr int kHalves = kCols / 64;
  constexpr int kTileBytes = kCols / kUnitCols * kBf16UnitBytes;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int head = static_cast<int>(blockIdx.y);
  const int tile = (static_cast<int>(blockIdx.x) * kWarps + warp) * kTiles;
  const int64_t first = int64_t{blockIdx.z} * (8 * NT);
  const int count = static_cast<int>(min(a.tokens - first, int64_t{8 * NT}));
  let_next_start();
  const uint8_t* const weights =
      a.weights + (int64_t{head} * (a.rows / kTileRows) + tile) * kTileBytes + 16 * lane;
  Steps steps[2][kTiles];
#pragma unroll
  for (int i = 0; i < kTiles; ++i) steps[0][i].load(weights + i * kTileBytes);
  wait_for_previous();
  bring_tokens<kCols, 8 * NT>(a, first, count, head, tokens);
  __syncthreads();
  float4 sums[kTiles][NT];
#pragma unroll
  for (int i = 0; i < kTiles; ++i) {
#pragma unroll
    for (int n = 0; n < NT; ++n) sums[i][n] = make_float4(0, 0, 0, 0);
  }
  const uint8_t* const mine = tokens + lane / 4 * kRowBytes<kCols> + 32 * (lane % 4);
#pragma unroll
  for (int half = 0; half < kHalves; ++half) {
    if (half + 1 < kHalves) {
#pragma unroll
      for (int i = 0; i < kTiles; ++i) {
        steps[(half + 1) % 2][i].load(weights + i * kTileBytes + (half + 1) * 2048);
      }
    }
#pragma unroll
    for (int n = 0; n < NT; ++n) {
      const uint8_t* const at = mine + 8 * n * kRowBytes<kCols> + 128 * half;
      const uint4 x[2] = {*reinterpret_cast<const uint4*>(at),
                          *reinterpret_cast<const uint4*>(at + 16)};
#pragma unroll
      for (int step = 0; step < 4; ++step) {
#pragma unroll
        for (int i = 0; i < kTiles; ++i) {
          const uint4& w = steps[half % 2][i].of[step];
          const uint32_t fragment[4] = {w.x, w.y, w.z, w.w};
          mma_bf16(sums[i][n], fragment, word(x[step / 2], step % 2 * 2),
                   word(x[step / 2], step % 2 * 2 + 1));
        }
      }
    }
  }
#pragma unroll
  for (int n = 0; n < NT; ++n) {
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      const int token = 8 * n + 2 * (lane % 4) + k;
      if (token >= count) continue;
      const int64_t column = int64_t{head} * a.rows + tile * kTileRows + lane / 4;
      float* const out = a.out + (first + token) * a.out_stride + column;
#pragma unroll
      for (int i = 0; i < kTiles; ++i) {
        const float4& sum = sums[i][n];
        const float low = (k == 0 ? sum.x : sum.y) * a.scale;
        const float high = (k == 0 ? sum.z : sum.w) * a.scale;
        out[i * kTileRows] = low;
        out[i * kTileRows + 8] = high;
        if (a.out_copy == nullptr) continue;
        uint16_t* const copy = a.out_copy + (first + token) * a.out_copy_stride + column;
        copy[i * kTileRows] = bf16_rounded(low);
        copy[i * kTileRows + 8] = bf16_rounded(high);
      }
    }
  }
}

template <int kCols, int NT, int kTiles>
cudaError_t launch(const HeadProductArgs& args, cudaStream_t stream) {
  constexpr auto kernel = head_products_kernel<kCols, NT, kTiles>;
  constexpr int kShared = 8 * NT * kRowBytes<kCols>;
  const cudaError_t configured = allow_shared<kernel>(kShared);
  if (configured != cudaSuccess) return configured;
  const dim3 grid(static_cast<unsigned>(args.rows / (kTileRows * kWarps * kTiles)),
                  static_cast<unsigned>(args.heads),
                  static_cast<unsigned>((args.tokens + 8 * NT - 1) / (8 * NT)));
  return launch_overlapped(kernel, grid, dim3(kThreads), kShared, stream, args);
}

template <int kCols, int kTiles>
cudaError_t launch(const HeadProductArgs& args, cudaStream_t stream) {
  if (args.tokens <= 16) return launch<kCols, 2, kTiles>(args, stream);
  if (args.tokens <= 32) return launch<kCols, 4, kTiles>(args, stream);
  return launch<kCols, 8, kTiles>(args, stream);
}

}  // namespace

cudaError_t launch_head_products(const HeadProductArgs& args, cudaStream_t stream) {
  if (args.cols == 128 && args.rows % 128 == 0) return launch<128, 2>(args, stream);
  if (args.cols == 512 && args.rows % 64 == 0) return launch<512, 1>(args, stream);
  return cudaErrorInvalidValue;
}

}  // namespace nibble::cuda
