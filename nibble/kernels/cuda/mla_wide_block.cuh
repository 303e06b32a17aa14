// What a block of 64 heads needs in mla_wide_bf16.cu and mla_wide_fp8.cu: its queries in shared
// memory, and the way its results take. Both have three warpgroups, of which two hold the results.
#pragma once

#include <cstdint>

#include "nibble/kernels/cuda/mla_runs.cuh"
#include "nibble/kernels/cuda/ptx.cuh"
#include "nibble/kernels/cuda/wgmma.cuh"

namespace nibble::cuda {

constexpr int kWideThreads = 384;
constexpr int kWideBlocks = kEntry / 64;  // of 64 columns
constexpr int kWideQueryBlockBytes = kWideHeads * 128;
constexpr int kWideQueryBytes = kWideBlocks * kWideQueryBlockBytes;

// Brings the block's queries, rounded to BF16; rows behind the last
// head are zero.
__device__ inline void bring_wide_queries(const DecodeArgs& a, int64_t token, int64_t first_head,
                                          uint8_t* queries) {
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t heads = a.attend.shape.num_heads;
  constexpr int kChunks = kWideHeads * (kEntry / 8);
  constexpr int kAtOnce = 6;
  static_assert(kChunks % (kAtOnce * kWideThreads) == 0);
  for (int first = thread; first < kChunks; first += kAtOnce * kWideThreads) {
    float4 q[kAtOnce][2];
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      const int i = first + k * kWideThreads;
      const int64_t head = first_head + i / (kEntry / 8);
      q[k][0] = q[k][1] = make_float4(0, 0, 0, 0);
      if (head >= heads) continue;
      const float* const source = query_values(a.attend, token, head, i % (kEntry / 8));
      if (i % (kEntry / 8) < kRank / 8) {
        q[k][0] = reinterpret_cast<const float4*>(source)[0];
        q[k][1] = reinterpret_cast<const float4*>(source)[1];
      } else {  // of a row of any stride
        q[k][0] = make_float4(source[0], source[1], source[2], source[3]);
        q[k][1] = make_float4(source[4], source[5], source[6], source[7]);
      }
    }
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      const int i = first + k * kWideThreads;
      const int chunk = i % (kEntry / 8);
      *reinterpret_cast<uint4*>(queries + chunk / 8 * kWideQueryBlockBytes +
                                swizzled(i / (kEntry / 8), chunk % 8, 128)) =
          make_uint4(bf16x2(q[k][0].x, q[k][0].y), bf16x2(q[k][0].z, q[k][0].w),
                     bf16x2(q[k][1].x, q[k][1].y), bf16x2(q[k][1].z, q[k][1].w));
    }
  }
  fence_shared_for_wgmma();
  sync_warps(1, kWideThreads);
}

// A block's run: out of the half of a warpgroup, or partial results. Those of a run go through
// `staging` in shared memory, 64 KB a warpgroup, so that a row's values leave together.
__device__ inline void store_wide_values(const DecodeArgs& a, int64_t token, int run,
                                         int64_t first_head, int group, const float2* stats,
                                         const float (&out)[128], uint8_t* staging) {
  const int thread = static_cast<int>(threadIdx.x) % 128;
  const int64_t heads = a.attend.shape.num_heads;
  const int lane = thread % 32;
  const int first_row = thread / 32 * 16;  // of the warp
  const int rows = static_cast<int>(min(heads - first_head - first_row, int64_t{16}));
  if (rows <= 0) return;
  if (!a.split) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = lane / 4 + 8 * r;
      if (row >= rows) continue;
      const float factor = 1 / stats[first_row + row].y;
#pragma unroll
      for (int n = 0; n < 32; ++n) {
        store_latents(a.attend, token, first_head + first_row + row,
                      256 * group + 8 * n + 2 * (lane % 4), out[4 * n + 2 * r],
                      out[4 * n + 2 * r + 1], factor);
      }
    }
    return;
  }
  // The warp's 16 rows of 256 values; chunks of 16 bytes trade places by the row's number.
  constexpr int kStagedRowBytes = 1024;
  uint8_t* const mine = staging + (8 * group + 2 * (thread / 32)) * (8 * kStagedRowBytes);
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = lane / 4 + 8 * r;
#pragma unroll
    for (int n = 0; n < 32; ++n) {
      *reinterpret_cast<float2*>(mine + swizzled(row, 2 * n + lane % 4 / 2, kStagedRowBytes) +
                                 8 * (lane % 2)) =
          make_float2(out[4 * n + 2 * r], out[4 * n + 2 * r + 1]);
    }
  }
  __syncwarp();
  const int64_t at = (int64_t{blockIdx.z} * a.runs + run) * heads + first_head + first_row;
  if (group == 0 && lane < rows) a.stats[at + lane] = stats[first_row + lane];
  float* const to = a.partial + at * kRank + 256 * group;
#pragma unroll 4
  for (int i = 0; i < 2 * rows; ++i) {
    const int row = i / 2;
    const int chunk = i % 2 * 32 + lane;
    *reinterpret_cast<float4*>(to + row * kRank + 4 * chunk) =
        *reinterpret_cast<const float4*>(mine + swizzled(row, chunk, kStagedRowBytes));
  }
}

}  // namespace nibble::cuda
