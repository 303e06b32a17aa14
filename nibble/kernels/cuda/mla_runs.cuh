// What the kernels of absorbed attention share: mla_decode.cu (mma.sync), mla_wide_bf16.cu,
// mla_wide_fp8.cu and mla_narrow.cu (wgmma).
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "nibble/kernels/cuda/mla_attend.h"
#include "nibble/kernels/cuda/ptx.cuh"

namespace nibble::cuda {

constexpr int kRank = 512;
constexpr int kRope = 64;
constexpr int kEntry = kRank + kRope;
constexpr int kRowBytes = 2 * kEntry;
constexpr int kRunTile = 64;       // runs are multiples of it
constexpr int kRunPositions = 64;  // at least, where there are several runs
constexpr float kLog2E = 1.4426950408889634f;

struct DecodeArgs {
  AttendArgs attend;
  int64_t first_token = 0;
  int runs = 1;              // the grid's; a token may have fewer
  int max_runs = 1;          // of any token
  bool split = false;        // several runs a token
  float* partial = nullptr;  // [token - first][run][heads][512]
  float2* stats = nullptr;   // [token - first][run][heads]: maximum (times log2 e), sum
};

// Positions of one run of a token that sees `visible`: by that number alone.
__device__ inline int64_t run_length(int64_t visible, int max_runs) {
  if (max_runs == 1) return visible;
  const int64_t runs =
      min(static_cast<int64_t>(max_runs), max(static_cast<int64_t>(1), visible / kRunPositions));
  const int64_t length = (visible + runs - 1) / runs;
  return (length + kRunTile - 1) / kRunTile * kRunTile;
}

// 16-byte chunks of a row trade places by the row's number, so that 8 neighbouring rows of one
// chunk lie in different banks.
__device__ inline int swizzled(int row, int chunk, int row_bytes) {
  return row * row_bytes + ((chunk ^ (row & 7)) << 4);
}

// Eight values of head `head` of the query, as keys are compared with it: the latent part, then the
// rotated one.
__device__ inline const float* query_values(const AttendArgs& a, int64_t token, int64_t head,
                                            int chunk) {
  return chunk < kRank / 8 ? a.absorbed + (token * a.shape.num_heads + head) * kRank + 8 * chunk
                           : a.q + token * a.q_stride + head * (a.shape.qk_nope_head_dim + kRope) +
                                 a.shape.qk_nope_head_dim + 8 * chunk - kRank;
}

// Two neighbouring values of a head's latent sum, times `factor`.
__device__ inline void store_latents(const AttendArgs& a, int64_t token, int64_t head, int col,
                                     float low, float high, float factor) {
  const int64_t at = (token * a.shape.num_heads + head) * kRank + col;
  if (a.out_bf16 != nullptr) {
    *reinterpret_cast<uint32_t*>(a.out_bf16 + at) = bf16x2(low * factor, high * factor);
  } else {
    *reinterpret_cast<float2*>(a.out + at) = make_float2(low * factor, high * factor);
  }
}

// The positions of a block's run, as they lie in the cache.
template <typename T>
struct RunEntries {
  const DecodeArgs& a;
  const TokenView& view;
  int begin;
  int end;

  // Entries that lie together from `position` on, in its block.
  __device__ int entries_from(int position) const {
    const auto slot = static_cast<uint32_t>(position + view.slot_offset);
    const auto block_size = static_cast<uint32_t>(a.attend.cache.block_size);
    return static_cast<int>(block_size - slot % block_size);
  }

  __device__ const int32_t* table_entry(int position) const {
    const auto slot = static_cast<uint32_t>(position + view.slot_offset);
    return a.attend.tables + view.table + slot / static_cast<uint32_t>(a.attend.cache.block_size);
  }

  __device__ const T* entry(int position) const {
    const KvCacheView& cache = a.attend.cache;
    const auto* const data = static_cast<const T*>(cache.data);
    if (position >= end) return data;
    const auto slot = static_cast<uint32_t>(position + view.slot_offset);
    const auto block_size = static_cast<uint32_t>(cache.block_size);
    const int64_t block = __ldg(table_entry(position));
    return data + (block * block_size + slot % block_size) * kEntry;
  }
};

// On wgmma, 64 heads a block (mla_wide_bf16.cu, mla_wide_fp8.cu); partial results as mla_decode.cu
// leaves them.
constexpr int kWideHeads = 64;
cudaError_t launch_mla_wide_bf16(const DecodeArgs& args, int64_t tokens, cudaStream_t stream);
cudaError_t launch_mla_wide_fp8(const DecodeArgs& args, int64_t tokens, cudaStream_t stream);
bool mla_wide_runs_here();

// On wgmma (mla_narrow.cu), of FP8 entries, 16 or 32 heads a block; runs where those do.
constexpr int kNarrowHeads = 32;
cudaError_t launch_mla_narrow(const DecodeArgs& args, int64_t tokens, cudaStream_t stream);

}  // namespace nibble::cuda
