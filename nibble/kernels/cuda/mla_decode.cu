// Absorbed attention of R1's widths (latent 512, rope 64) on tensor cores: the heads of a token
// share its sequence's cache entries, which are read once for up to 64 heads.
//
// A block takes one token, 16 or 64 of its heads and a run of its positions. 64 positions at a time
// come to shared memory (two buffers, the next one on its way) and serve twice: all 576 values as
// keys, the first 512 as values. Scores, running maximum and weights in binary32; weights go to the
// second product as BF16. Runs of one token are merged by a second kernel, always in one order. How
// a token's positions fall into runs depends on their number and max_runs alone.
//
// Bound: with 16 heads, the bytes of the cache; with 128, shared memory's bandwidth: each fragment
// is read by mma.sync's ldmatrix, 0.6 MB for 64 x 64. On Hopper mla_wide_*.cu take more than 16
// heads, and every FP8 cache.
#include <cuda_fp8.h>

#include <algorithm>

#include "nibble/kernels/cuda/launch.cuh"
#include "nibble/kernels/cuda/mla_attend.h"
#include "nibble/kernels/cuda/mla_runs.cuh"
#include "nibble/kernels/cuda/numeric.cuh"
#include "nibble/kernels/cuda/ptx.cuh"

namespace nibble::cuda {
namespace {

constexpr int kTile = 64;  // positions at a time
constexpr int kWarps = 8;
constexpr int kThreads = 32 * kWarps;
constexpr int kTileBytes = kTile * kRowBytes;

// Four threads bring a row of a tile: the row's entry, or null behind the end.
template <typename T>
__device__ const T* entry_of(const DecodeArgs& a, const TokenView& view, int64_t first) {
  const KvCacheView& cache = a.attend.cache;
  const int64_t position = first + static_cast<int>(threadIdx.x) / 4;
  if (position >= view.visible) return nullptr;
  const auto slot = static_cast<uint32_t>(position + view.slot_offset);
  const auto block_size = static_cast<uint32_t>(cache.block_size);
  const int64_t block = __ldg(a.attend.tables + view.table + slot / block_size);
  return static_cast<const T*>(cache.data) + (block * block_size + slot % block_size) * kEntry;
}

// Starts to bring 64 cache entries; a null entry becomes zero.
template <typename T>
__device__ void load_tile(const T* entry, uint8_t* tile) {
  const int row = static_cast<int>(threadIdx.x) / 4;
  constexpr int kPerChunk = 16 / static_cast<int>(sizeof(T));  // values of a 16-byte read
  constexpr int kChunks = kEntry / kPerChunk;
#pragma unroll
  for (int i = 0; i < kChunks / 4; ++i) {
    const int chunk = 4 * i + static_cast<int>(threadIdx.x) % 4;
    if constexpr (sizeof(T) == 2) {
      uint8_t* const at = tile + swizzled(row, chunk, kRowBytes);
      if (entry != nullptr) {
        copy_async(shared_address(at), entry + chunk * kPerChunk);
      } else {
        *reinterpret_cast<uint4*>(at) = make_uint4(0, 0, 0, 0);
      }
    } else {
      uint32_t out[8] = {};
      if (entry != nullptr) {
        const uint4 bytes = *reinterpret_cast<const uint4*>(entry + chunk * kPerChunk);
#pragma unroll
        for (int w = 0; w < 4; ++w) {
#pragma unroll
          for (int h = 0; h < 2; ++h) {
            const auto pair = static_cast<__nv_fp8x2_storage_t>(word(bytes, w) >> (16 * h));
            const __half2_raw halves = __nv_cvt_fp8x2_to_halfraw2(pair, __NV_E4M3);
            const float2 values = __half22float2(halves);
            out[2 * w + h] = bf16x2(values.x, values.y);  // exact
          }
        }
      }
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        *reinterpret_cast<uint4*>(tile + swizzled(row, 2 * chunk + h, kRowBytes)) =
            make_uint4(out[4 * h], out[4 * h + 1], out[4 * h + 2], out[4 * h + 3]);
      }
    }
  }
  asm volatile("cp.async.commit_group;" ::: "memory");
}

// kWarpsM x kWarpsN warps; each takes kTilesM tiles of 16 heads, a share of a tile's positions for
// the scores and a share of the 512 output values.
template <typename T, int kWarpsM, int kTilesM>
__global__ __launch_bounds__(kThreads, 1) void mla_decode_kernel(const DecodeArgs a) {
  constexpr int kWarpsN = kWarps / kWarpsM;
  constexpr int kRows = 16 * kWarpsM * kTilesM;
  constexpr int kScoreTiles = kTile / kWarpsN / 8;  // of 8 positions
  constexpr int kValueTiles = kRank / kWarpsN / 8;  // of 8 values
  extern __shared__ __align__(1024) uint8_t shared[];
  uint8_t* const queries = shared;
  uint8_t* const tiles = queries + kRows * kRowBytes;
  uint8_t* const weights = tiles + 2 * kTileBytes;                              // [rows][64] BF16
  float* const maxima = reinterpret_cast<float*>(weights + kRows * kTile * 2);  // [rows][kWarpsN]

  let_next_start();
  wait_for_previous();
  const int64_t heads = a.attend.shape.num_heads;
  const int64_t token = a.first_token + blockIdx.z;
  const int run = static_cast<int>(blockIdx.x);
  const int64_t first_head = int64_t{blockIdx.y} * kRows;
  const TokenView view = a.attend.views[token];
  const int64_t length = run_length(view.visible, a.max_runs);
  const int64_t begin = run * length;
  const int64_t end = min(begin + length, view.visible);
  if (begin >= end) return;

  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp_m = warp % kWarpsM;
  const int warp_n = warp / kWarpsM;
  load_tile<T>(entry_of<T>(a, view, begin), tiles);
  const T* next_entry = entry_of<T>(a, view, begin + kTile);

  for (int i = static_cast<int>(threadIdx.x); i < kRows * (kEntry / 8); i += kThreads) {
    const int row = i / (kEntry / 8);
    const int chunk = i % (kEntry / 8);
    const int64_t head = first_head + row;
    uint4 out = make_uint4(0, 0, 0, 0);
    if (head < heads) {
      const float* const source = query_values(a.attend, token, head, chunk);
      out = make_uint4(bf16x2(source[0], source[1]), bf16x2(source[2], source[3]),
                       bf16x2(source[4], source[5]), bf16x2(source[6], source[7]));
    }
    *reinterpret_cast<uint4*>(queries + swizzled(row, chunk, kRowBytes)) = out;
  }

  float4 out[kTilesM][kValueTiles];
  float peak[kTilesM][2];
  float sum[kTilesM][2];
#pragma unroll
  for (int m = 0; m < kTilesM; ++m) {
#pragma unroll
    for (int n = 0; n < kValueTiles; ++n) out[m][n] = make_float4(0, 0, 0, 0);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      peak[m][i] = -INFINITY;
      sum[m][i] = 0;
    }
  }
  const float scale = a.attend.shape.softmax_scale * kLog2E;
  const int matrix = lane / 8;
  const int row8 = lane % 8;

  int buffer = 0;
  for (int64_t first = begin; first < end; first += kTile, buffer ^= 1) {
    asm volatile("cp.async.wait_group 0;" ::: "memory");
    __syncthreads();  // this tile is here, and the other buffer is free
    const uint8_t* const tile = tiles + buffer * kTileBytes;
    if (first + kTile < end) {
      load_tile<T>(next_entry, tiles + (buffer ^ 1) * kTileBytes);
      next_entry = entry_of<T>(a, view, first + 2 * kTile);
    }

    // Scores of this warp's heads and positions.
    float4 score[kTilesM][kScoreTiles];
#pragma unroll
    for (int m = 0; m < kTilesM; ++m) {
#pragma unroll
      for (int n = 0; n < kScoreTiles; ++n) score[m][n] = make_float4(0, 0, 0, 0);
    }
    float4 other[3];  // of every second, third and fourth step, where a chain of sums is alone
#pragma unroll
    for (int i = 0; i < 3; ++i) other[i] = make_float4(0, 0, 0, 0);
    const int first_position = warp_n * 8 * kScoreTiles;
#pragma unroll 6
    for (int step = 0; step < kEntry / 16; step += 2) {
      uint32_t keys[2][4];  // two steps of 8 positions, or a step of 16 each
      if constexpr (kScoreTiles == 1) {
        load_matrices(keys[0], shared_address(tile + swizzled(first_position + row8,
                                                              2 * step + matrix, kRowBytes)));
      } else {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          load_matrices(keys[i],
                        shared_address(tile + swizzled(first_position + matrix / 2 * 8 + row8,
                                                       2 * (step + i) + matrix % 2, kRowBytes)));
        }
      }
#pragma unroll
      for (int i = 0; i < 2; ++i) {
#pragma unroll
        for (int m = 0; m < kTilesM; ++m) {
          uint32_t q[4];
          const int row = (warp_m * kTilesM + m) * 16 + matrix % 2 * 8 + row8;
          load_matrices(
              q, shared_address(queries + swizzled(row, 2 * (step + i) + matrix / 2, kRowBytes)));
          if constexpr (kScoreTiles == 1) {
            const int chain = (step + i) % 4;
            mma_bf16(chain == 0 ? score[m][0] : other[chain - 1], q, keys[0][2 * i],
                     keys[0][2 * i + 1]);
          } else {
            mma_bf16(score[m][0], q, keys[i][0], keys[i][1]);
            mma_bf16(score[m][1], q, keys[i][2], keys[i][3]);
          }
        }
      }
    }

    if constexpr (kScoreTiles == 1) {
#pragma unroll
      for (int i = 0; i < 3; ++i) {
        score[0][0].x += other[i].x;
        score[0][0].y += other[i].y;
        score[0][0].z += other[i].z;
        score[0][0].w += other[i].w;
      }
    }

    // The maximum over all positions of the tile, from all warps.
    const int64_t left = end - first;
#pragma unroll
    for (int m = 0; m < kTilesM; ++m) {
      float largest[2] = {-INFINITY, -INFINITY};
#pragma unroll
      for (int n = 0; n < kScoreTiles; ++n) {
        const int position = first_position + 8 * n + 2 * (lane % 4);
        float4& s = score[m][n];
        s.x = position < left ? s.x * scale : -INFINITY;
        s.y = position + 1 < left ? s.y * scale : -INFINITY;
        s.z = position < left ? s.z * scale : -INFINITY;
        s.w = position + 1 < left ? s.w * scale : -INFINITY;
        largest[0] = fmaxf(largest[0], fmaxf(s.x, s.y));
        largest[1] = fmaxf(largest[1], fmaxf(s.z, s.w));
      }
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        largest[i] = fmaxf(largest[i], __shfl_xor_sync(~0u, largest[i], 1));
        largest[i] = fmaxf(largest[i], __shfl_xor_sync(~0u, largest[i], 2));
        const int row = (warp_m * kTilesM + m) * 16 + lane / 4 + 8 * i;
        if (lane % 4 == 0) maxima[row * kWarpsN + warp_n] = largest[i];
      }
    }
    __syncthreads();
#pragma unroll
    for (int m = 0; m < kTilesM; ++m) {
      float keep[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int row = (warp_m * kTilesM + m) * 16 + lane / 4 + 8 * i;
        float now = peak[m][i];
#pragma unroll
        for (int w = 0; w < kWarpsN; ++w) now = fmaxf(now, maxima[row * kWarpsN + w]);
        keep[i] = exp2f(peak[m][i] - now);
        peak[m][i] = now;
        sum[m][i] *= keep[i];
      }
#pragma unroll
      for (int n = 0; n < kScoreTiles; ++n) {
        float4& s = score[m][n];
        s.x = exp2f(s.x - peak[m][0]);
        s.y = exp2f(s.y - peak[m][0]);
        s.z = exp2f(s.z - peak[m][1]);
        s.w = exp2f(s.w - peak[m][1]);
        sum[m][0] += s.x + s.y;
        sum[m][1] += s.z + s.w;
        const int row = (warp_m * kTilesM + m) * 16 + lane / 4;
        const int chunk = first_position / 8 + n;
        const int inner = 4 * (lane % 4);
        *reinterpret_cast<uint32_t*>(weights + swizzled(row, chunk, 2 * kTile) + inner) =
            bf16x2(s.x, s.y);
        *reinterpret_cast<uint32_t*>(weights + swizzled(row + 8, chunk, 2 * kTile) + inner) =
            bf16x2(s.z, s.w);
      }
#pragma unroll
      for (int n = 0; n < kValueTiles; ++n) {
        out[m][n].x *= keep[0];
        out[m][n].y *= keep[0];
        out[m][n].z *= keep[1];
        out[m][n].w *= keep[1];
      }
    }
    __syncthreads();

    // Values: the weights of all positions times this warp's share of the latents.
#pragma unroll
    for (int step = 0; step < kTile / 16; ++step) {
      uint32_t p[kTilesM][4];
#pragma unroll
      for (int m = 0; m < kTilesM; ++m) {
        const int row = (warp_m * kTilesM + m) * 16 + matrix % 2 * 8 + row8;
        load_matrices(p[m],
                      shared_address(weights + swizzled(row, 2 * step + matrix / 2, 2 * kTile)));
      }
#pragma unroll
      for (int n = 0; n < kValueTiles; n += 2) {
        uint32_t v[4];
        const int row = 16 * step + matrix % 2 * 8 + row8;
        const int chunk = warp_n * kValueTiles + n + matrix / 2;
        load_matrices_transposed(v, shared_address(tile + swizzled(row, chunk, kRowBytes)));
#pragma unroll
        for (int m = 0; m < kTilesM; ++m) {
          mma_bf16(out[m][n], p[m], v[0], v[1]);
          mma_bf16(out[m][n + 1], p[m], v[2], v[3]);
        }
      }
    }
  }

  // Sums over the lanes and warps that shared a head's positions.
  __syncthreads();
#pragma unroll
  for (int m = 0; m < kTilesM; ++m) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      sum[m][i] += __shfl_xor_sync(~0u, sum[m][i], 1);
      sum[m][i] += __shfl_xor_sync(~0u, sum[m][i], 2);
      const int row = (warp_m * kTilesM + m) * 16 + lane / 4 + 8 * i;
      if (lane % 4 == 0) maxima[row * kWarpsN + warp_n] = sum[m][i];
    }
  }
  __syncthreads();
#pragma unroll
  for (int m = 0; m < kTilesM; ++m) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = (warp_m * kTilesM + m) * 16 + lane / 4 + 8 * i;
      const int64_t head = first_head + row;
      if (head >= heads) continue;
      float total = 0;
#pragma unroll
      for (int w = 0; w < kWarpsN; ++w) total += maxima[row * kWarpsN + w];
      const int64_t at = (int64_t{blockIdx.z} * a.runs + run) * heads + head;
      if (a.split && lane % 4 == 0 && warp_n == 0) a.stats[at] = make_float2(peak[m][i], total);
#pragma unroll
      for (int n = 0; n < kValueTiles; ++n) {
        const int col = (warp_n * kValueTiles + n) * 8 + 2 * (lane % 4);
        const float4& o = out[m][n];
        const float2 pair = i == 0 ? make_float2(o.x, o.y) : make_float2(o.z, o.w);
        if (a.split) {
          *reinterpret_cast<float2*>(a.partial + at * kRank + col) = pair;
        } else {
          store_latents(a.attend, token, head, col, pair.x, pair.y, 1 / total);
        }
      }
    }
  }
}

// 128 columns of a token and head, 4 a lane, by kWarps warps. A warp adds up every kWarps-th run,
// up to kEach of them, all of which it asks for at once; the warps' sums are added in their order.
constexpr int kMergeCols = 128;
constexpr int kMergeWarps = 8;  // of a block
constexpr int kFewRuns = 8;
template <int kWarps, int kEach>
__global__ __launch_bounds__(32 * kMergeWarps) void mla_merge_kernel(
    const __grid_constant__ DecodeArgs a, int64_t pieces) {
  __shared__ float4 sums[kWarps][32];
  constexpr int kPieces = kRank / kMergeCols;
  const int warp = static_cast<int>(threadIdx.x) / 32 % kWarps;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t piece =
      int64_t{blockIdx.x} * (kMergeWarps / kWarps) + static_cast<int>(threadIdx.x) / 32 / kWarps;
  let_next_start();
  if (kWarps == 1 && piece >= pieces) return;
  const int64_t heads = a.attend.shape.num_heads;
  const int64_t local = piece / kPieces / heads;
  const int64_t head = piece / kPieces % heads;
  const int64_t token = a.first_token + local;
  const int col = static_cast<int>(piece % kPieces) * kMergeCols + 4 * lane;
  const int64_t visible = a.attend.views[token].visible;  // older than the launch in front
  const int64_t length = run_length(visible, a.max_runs);
  const int runs = static_cast<int>((visible + length - 1) / length);
  wait_for_previous();
  float4 parts[kEach];
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int run = warp + i * kWarps;
    parts[i] = run < runs ? *reinterpret_cast<const float4*>(
                                a.partial + ((local * a.runs + run) * heads + head) * kRank + col)
                          : make_float4(0, 0, 0, 0);
  }
  constexpr int kStats = (kWarps * kEach + 31) / 32;  // a lane's
  float2 stats[kStats];
  float peak = -INFINITY;
#pragma unroll
  for (int i = 0; i < kStats; ++i) {
    const int run = lane + 32 * i;
    stats[i] =
        run < runs ? a.stats[(local * a.runs + run) * heads + head] : make_float2(-INFINITY, 0);
    peak = fmaxf(peak, stats[i].x);
  }
  for (int offset = 16; offset > 0; offset /= 2) {
    peak = fmaxf(peak, __shfl_xor_sync(~0u, peak, offset));
  }
  float factors[kStats];
  float total = 0;
#pragma unroll
  for (int i = 0; i < kStats; ++i) {
    factors[i] = exp2f(stats[i].x - peak);
    total = fmaf(factors[i], stats[i].y, total);
  }
  for (int offset = 16; offset > 0; offset /= 2) total += __shfl_xor_sync(~0u, total, offset);
  float4 sum = make_float4(0, 0, 0, 0);
  const auto add = [&](float factor, const float4& p) {
    sum.x = fmaf(factor, p.x, sum.x);
    sum.y = fmaf(factor, p.y, sum.y);
    sum.z = fmaf(factor, p.z, sum.z);
    sum.w = fmaf(factor, p.w, sum.w);
  };
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int run = i * kWarps;  // and `warp` behind
    add(__shfl_sync(~0u, factors[run / 32], run % 32 + warp), parts[i]);
  }
  if constexpr (kWarps > 1) {
    sums[warp][lane] = sum;
    __syncthreads();
    if (warp > 0) return;
    sum = make_float4(0, 0, 0, 0);
#pragma unroll
    for (int w = 0; w < kWarps; ++w) add(1, sums[w][lane]);
  }
  store_latents(a.attend, token, head, col, sum.x, sum.y, 1 / total);
  store_latents(a.attend, token, head, col + 2, sum.z, sum.w, 1 / total);
}

cudaError_t launch_merge(const DecodeArgs& args, int64_t tokens, cudaStream_t stream) {
  const int64_t pieces = tokens * args.attend.shape.num_heads * (kRank / kMergeCols);
  // Not by the batch's longest context (args.runs), which a token's bits may not depend on.
  const bool few = args.max_runs <= kFewRuns;
  const int64_t blocks = few ? (pieces + kMergeWarps - 1) / kMergeWarps : pieces;
  return launch_overlapped(few ? mla_merge_kernel<1, kFewRuns>
                               : mla_merge_kernel<kMergeWarps, kMaxMlaRuns / kMergeWarps>,
                           dim3(static_cast<unsigned>(blocks)), dim3(32 * kMergeWarps), 0, stream,
                           args, pieces);
}

template <typename T, int kWarpsM, int kTilesM>
cudaError_t launch_typed(const DecodeArgs& args, int64_t tokens, cudaStream_t stream) {
  constexpr int kRows = 16 * kWarpsM * kTilesM;
  constexpr int kShared =
      kRows * kRowBytes + 2 * kTileBytes + kRows * kTile * 2 + kRows * (kWarps / kWarpsM) * 4;
  constexpr auto kernel = mla_decode_kernel<T, kWarpsM, kTilesM>;
  const cudaError_t configured = allow_shared<kernel>(kShared);
  if (configured != cudaSuccess) return configured;
  const auto row_blocks = static_cast<unsigned>((args.attend.shape.num_heads + kRows - 1) / kRows);
  const dim3 grid(static_cast<unsigned>(args.runs), row_blocks, static_cast<unsigned>(tokens));
  return launch_overlapped(kernel, grid, dim3(kThreads), kShared, stream, args);
}

// A cache of FP8 is slow with mma.sync, whatever the number of heads: its values become BF16 on the
// way to shared memory, which nothing hides there. 16 heads fill a quarter of a block of
// mla_wide_bf16.cu, whose products are then done before the next entries are there; its blocks
// begin later than those of mma.sync, which tells for a token or two (measured: docs/cuda.md).
bool goes_wide(const MlaShape& shape, const KvCacheView& cache, int64_t tokens) {
  constexpr int64_t kFew = 2;
  return mla_decode_fits(shape, cache) &&
         (shape.num_heads > 16 || cache.dtype == DType::kF8E4m3 || tokens > kFew) &&
         mla_wide_runs_here();
}

// Few heads and FP8 entries: mla_narrow.cu. A few tokens of more than 16 heads are sooner done by
// mla_wide_fp8.cu, whose blocks begin and end faster (measured: docs/cuda.md).
constexpr int64_t kFewTokens = 12;
bool goes_narrow(const MlaShape& shape, const KvCacheView& cache, int64_t tokens) {
  return shape.num_heads <= kNarrowHeads && cache.dtype == DType::kF8E4m3 &&
         (shape.num_heads <= kNarrowHeads / 2 || tokens >= kFewTokens) && mla_wide_runs_here();
}

cudaError_t launch_runs(const DecodeArgs& args, int64_t tokens, cudaStream_t stream) {
  const MlaShape& shape = args.attend.shape;
  const int64_t as_of = args.attend.batch_invariant ? kFewTokens : tokens;
  if (goes_narrow(shape, args.attend.cache, as_of)) {
    return launch_mla_narrow(args, tokens, stream);
  }
  if (goes_wide(shape, args.attend.cache, as_of)) {
    return args.attend.cache.dtype == DType::kBf16 ? launch_mla_wide_bf16(args, tokens, stream)
                                                   : launch_mla_wide_fp8(args, tokens, stream);
  }
  const bool few = args.attend.shape.num_heads <= 16;
  if (args.attend.cache.dtype == DType::kBf16) {
    return few ? launch_typed<uint16_t, 1, 1>(args, tokens, stream)
               : launch_typed<uint16_t, 2, 2>(args, tokens, stream);
  }
  return few ? launch_typed<uint8_t, 1, 1>(args, tokens, stream)
             : launch_typed<uint8_t, 2, 2>(args, tokens, stream);
}

}  // namespace

bool mla_decode_fits(const MlaShape& shape, const KvCacheView& cache) {
  return shape.kv_lora_rank == kRank && shape.qk_rope_head_dim == kRope &&
         (cache.dtype == DType::kBf16 || cache.dtype == DType::kF8E4m3);
}

int64_t mla_decode_scratch(int64_t tokens, int64_t heads, int max_runs) {
  return tokens * max_runs * heads * (kRank + 2);
}

int mla_runs(int64_t tokens, const MlaShape& shape, const KvCacheView& cache, int64_t max_visible) {
  static const int num_sms = multiprocessors();
  const bool narrow = goes_narrow(shape, cache, tokens);
  const int64_t heads_each = narrow ? kNarrowHeads
                             : goes_wide(shape, cache, tokens) || shape.num_heads > 16 ? kWideHeads
                                                                                       : 16;
  const int64_t blocks = tokens * ((shape.num_heads + heads_each - 1) / heads_each);
  const int64_t places = narrow ? 2 * num_sms : num_sms;  // of blocks on the GPU
  // In positions: what a block needs besides, and the merging of runs.
  constexpr int64_t kBlockCost = 192;
  constexpr int64_t kMergeCost = 128;
  int best = 1;
  int64_t least = INT64_MAX;
  for (int runs = 1; runs <= kMaxMlaRuns; ++runs) {
    const int64_t length = std::max<int64_t>(kRunPositions, (max_visible + runs - 1) / runs);
    const int64_t waves = (blocks * runs + places - 1) / places;
    const int64_t cost = waves * (length + kBlockCost) + (runs > 1 ? kMergeCost + runs : 0);
    if (cost < least) {
      least = cost;
      best = runs;
    }
  }
  return best;
}

cudaError_t launch_mla_decode(const AttendArgs& attend, int64_t first_token, int64_t tokens,
                              int max_runs, float* scratch, cudaStream_t stream) {
  DecodeArgs args;
  args.attend = attend;
  args.first_token = first_token;
  args.max_runs = std::clamp(max_runs, 1, kMaxMlaRuns);
  args.split = args.max_runs > 1;
  args.runs =
      static_cast<int>(std::clamp<int64_t>(attend.max_visible / kRunPositions, 1, args.max_runs));
  args.partial = scratch;
  args.stats =
      reinterpret_cast<float2*>(scratch + tokens * args.runs * attend.shape.num_heads * kRank);
  const cudaError_t code = launch_runs(args, tokens, stream);
  if (code != cudaSuccess || !args.split) return code;
  return launch_merge(args, tokens, stream);
}

}  // namespace nibble::cuda
