// Absorbed attention for many heads and a BF16 cache on wgmma: 64 heads of a token and a run of its
// positions a block, 64 positions at a time.
//
// Three warpgroups. One has most of the queries in its registers and computes scores and weights;
// two multiply the weights with the left and the right half of the latents, 64 x 256
// sums each, and bring the next entries. The values of a tile begin when the scores of the next
// tile are there: so tensor cores work on scores and on values in turn, and a softmax runs beside
// values. Keys and values are the same bytes in shared memory: nine blocks of 64 columns, 128
// swizzled bytes a row; three tiles, so that the next one has a whole turn to come, but one place
// for rope keys, which are done with a tile's scores.
//
// Bound: products, 2176 cycles for 64 positions at the tensor cores' full rate.
#include "nibble/kernels/cuda/launch.cuh"
#include "nibble/kernels/cuda/mla_runs.cuh"
#include "nibble/kernels/cuda/mla_wide_block.cuh"
#include "nibble/kernels/cuda/ptx.cuh"
#include "nibble/kernels/cuda/wgmma.cuh"

namespace nibble::cuda {
namespace {

constexpr int kTile = 64;       // positions
constexpr int kTiles = 3;       // in shared memory
constexpr int kHeldBlocks = 7;  // of 64 columns of a query, in registers
constexpr int kKeyBlockBytes = kTile * 128;
constexpr int kTileBytes = kRank / 64 * kKeyBlockBytes;
constexpr int kKeptBlocks = kWideBlocks - kHeldBlocks;
// A maximum replaces the one before when it exceeds it by so many powers of two: until then weights
// are up to 2^8, which BF16 and binary32 hold as well as those up to 1.
constexpr float kHeadroom = 8;

// Queries come by way of the last tile's place, so that their last blocks lie where they stay.
constexpr int kQueriesAt = kTileBytes - kHeldBlocks * kWideQueryBlockBytes;

struct Shared {
  uint8_t tiles[kTiles][kTileBytes];  // latents: columns by 64, positions, 64 columns
  uint8_t query[kKeptBlocks][kWideQueryBlockBytes];  // the rest of the queries: heads, 64 columns
  uint8_t rope[kKeyBlockBytes];                      // of one tile: positions, 64 columns
  uint8_t weights[kWideHeads * 128];                 // heads, positions
  int rows[2][kTiles][kTile];  // where a half's next entries lie in the cache, or -1
  const int32_t* table;        // the sequence's blocks
  uint32_t first_slot;         // of the run
  int positions;               // of the run
  float factors[kWideHeads];   // of the sums so far
  float2 stats[kWideHeads];
  uint64_t full[kTiles];
  uint64_t rope_full;
  uint64_t rope_empty;  // of the first tile; others are known by their weights
  uint64_t weights_full;
  uint64_t weights_empty;
};

struct Softmax {
  float peak[2] = {-INFINITY, -INFINITY};  // of rows g and g + 8, times log2 e
  float sum[2] = {0, 0};                   // this lane's share
};

// Scores of `left` positions become weights; `factors` are those of the sums so far.
__device__ void weigh(float (&score)[32], int left, float scale, int lane, float (&factors)[2],
                      Softmax& state) {
  if (left < kTile) {
#pragma unroll
    for (int i = 0; i < 32; ++i) {
      if (i / 4 * 8 + 2 * (lane % 4) + i % 2 >= left) score[i] = -INFINITY;
    }
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float largest = -INFINITY;
#pragma unroll
    for (int i = 0; i < 16; ++i) largest = fmaxf(largest, score[i / 2 * 4 + 2 * r + i % 2]);
    largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 1));
    largest = scale * fmaxf(largest, __shfl_xor_sync(~0u, largest, 2));
    const float peak = largest > state.peak[r] + kHeadroom ? largest : state.peak[r];
    factors[r] = fast_exp2(state.peak[r] - peak);
    state.peak[r] = peak;
    float sum = 0;
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      float& of = score[i / 2 * 4 + 2 * r + i % 2];
      of = fast_exp2(fmaf(of, scale, -peak));
      sum += of;
    }
    state.sum[r] = fmaf(state.sum[r], factors[r], sum);
  }
}

__device__ inline void store_word(uint32_t address, uint32_t value) {
  asm volatile("st.shared.b32 [%0], %1;" ::"r"(address), "r"(value) : "memory");
}

__device__ void score_tiles(const DecodeArgs& a, int positions, Shared& s) {
  const int warp = static_cast<int>(threadIdx.x) / 32 % 4;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  uint32_t query[4 * kHeldBlocks][4];
#pragma unroll
  for (int step = 0; step < 4 * kHeldBlocks; ++step) {
    const int row = 16 * warp + lane / 8 % 2 * 8 + lane % 8;
    load_matrices(query[step], shared_address(s.tiles[kTiles - 1] + kQueriesAt +
                                              step / 4 * kWideQueryBlockBytes +
                                              swizzled(row, step % 4 * 2 + lane / 16, 128)));
  }
  sync_warps(2, kWideThreads);  // that tile's place is free
  const uint64_t kept = swizzled_descriptor(shared_address(s.query[0]));
  const uint64_t rope = swizzled_descriptor(shared_address(s.rope));
  Softmax state;
  int slot = 0;
  uint32_t phase = 0;
  uint32_t odd = 0;  // whether the tile's number is
  for (int left = positions; left > 0; left -= kTile) {
    barrier_wait(&s.full[slot], phase);
    fence_shared_for_wgmma();
    const uint64_t keys = swizzled_descriptor(shared_address(s.tiles[slot]));
    float score[32];
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < 4 * kHeldBlocks; ++step) {
      wgmma_registers<64>(score, query[step],
                          keys + (step / 4 * kKeyBlockBytes >> 4) + step % 4 * 2, step > 0 ? 1 : 0);
    }
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      wgmma_scores(score, kept + 2 * step, keys + (kHeldBlocks * kKeyBlockBytes >> 4) + 2 * step,
                   1);
    }
    barrier_wait(&s.rope_full, odd);
    fence_shared_for_wgmma();
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      wgmma_scores(score, kept + (kWideQueryBlockBytes >> 4) + 2 * step, rope + 2 * step, 1);
    }
    wgmma_commit();
    wgmma_wait<0>();
    wgmma_hold(score);
    if (left < positions) {
      warp_arrive(&s.weights_full);  // of the tile before
    } else {
      warp_arrive(&s.rope_empty);
    }
    float factors[2];
    weigh(score, left, a.attend.shape.softmax_scale * kLog2E, lane, factors, state);
    barrier_wait(&s.weights_empty, odd ^ 1);  // the weights' place starts empty
    const int row = 16 * warp + lane / 4;
    const uint32_t weights = shared_address(s.weights) + row * 128 + 4 * (lane % 4);
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      store_word(weights + i % 2 * 1024 + (((i / 2) ^ (row & 7)) << 4),
                 bf16x2(score[2 * i], score[2 * i + 1]));
    }
    if (lane % 4 == 0) {
      s.factors[row] = factors[0];
      s.factors[row + 8] = factors[1];
    }
    fence_shared_for_wgmma();
    odd ^= 1;
    if (++slot == kTiles) {
      slot = 0;
      phase ^= 1;
    }
  }
  warp_arrive(&s.weights_full);
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float sum = state.sum[r];
    sum += __shfl_xor_sync(~0u, sum, 1);
    sum += __shfl_xor_sync(~0u, sum, 2);
    if (lane % 4 == 0) s.stats[16 * warp + lane / 4 + 8 * r] = make_float2(state.peak[r], sum);
  }
}

// Where the entry of the run's position `i` lies in the cache; -1 behind the end.
__device__ inline int row_of(const DecodeArgs& a, const Shared& s, int i) {
  if (i >= s.positions) return -1;
  const uint32_t slot = s.first_slot + static_cast<uint32_t>(i);
  const auto block_size = static_cast<uint32_t>(a.attend.cache.block_size);
  return __ldg(s.table + slot / block_size) * static_cast<int>(block_size) +
         static_cast<int>(slot % block_size);
}

// A warpgroup's columns of the entries in s.rows come to a tile's place: the left half of the
// latents, or the right one.
template <int kHalf>
__device__ void bring_tile(const void* cache, int slot, Shared& s) {
  const int thread = static_cast<int>(threadIdx.x) % 128;
  const int row = thread / 8;
  const int column = 256 * kHalf + 8 * (thread % 8);
  const uint32_t at = swizzled(row, thread % 8, 128);
  const uint32_t to = shared_address(s.tiles[slot] + 4 * kHalf * kKeyBlockBytes) + at;
#pragma unroll
  for (int i = 0; i < kTile / 16; ++i) {
    const int entry = s.rows[kHalf][slot][row + 16 * i];
    const bool is_there = entry >= 0;
    const uint16_t* const from =
        static_cast<const uint16_t*>(cache) + int64_t{is_there ? entry : 0} * kEntry + column;
#pragma unroll
    for (int b = 0; b < 4; ++b) {
      copy_async(to + b * kKeyBlockBytes + i * 2048, from + 64 * b, is_there);
    }
  }
  asm volatile(
      "cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(shared_address(&s.full[slot]))
      : "memory");
}

// Their rope keys come.
__device__ void bring_rope(const void* cache, const int (&rows)[kTile], Shared& s) {
  const int thread = static_cast<int>(threadIdx.x) % 128;
  const int row = thread / 8;
#pragma unroll
  for (int i = 0; i < kTile / 16; ++i) {
    const int entry = rows[row + 16 * i];
    const bool is_there = entry >= 0;
    copy_async(shared_address(s.rope) + swizzled(row, thread % 8, 128) + i * 2048,
               static_cast<const uint16_t*>(cache) + int64_t{is_there ? entry : 0} * kEntry +
                   kRank + 8 * (thread % 8),
               is_there);
  }
  asm volatile(
      "cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(shared_address(&s.rope_full))
      : "memory");
}

template <int kHalf>
__device__ void sum_values(const DecodeArgs& a, int positions, Shared& s, float (&out)[128]) {
  const int thread = static_cast<int>(threadIdx.x) % 128;
  const uint64_t weight = swizzled_descriptor(shared_address(s.weights));
#pragma unroll
  for (int i = 0; i < 128; ++i) out[i] = 0;
  int slot = 0;
  uint32_t odd = 0;  // whether the tile's number is
  for (int first = 0; first < positions; first += kTile) {
    const int next = first + kTiles * kTile;  // what comes to this tile's place
    int entry = -1;
    if (thread < kTile) entry = row_of(a, s, next + thread);
    barrier_wait(&s.weights_full, odd);
    odd ^= 1;
    fence_shared_for_wgmma();
    const int row = thread / 32 * 16 + thread % 32 / 4;
    const float low = s.factors[row];
    const float high = s.factors[row + 8];
    if (__any_sync(~0u, low != 1 || high != 1)) {
#pragma unroll
      for (int i = 0; i < 128; ++i) out[i] *= i / 2 % 2 == 0 ? low : high;
    }
    const uint64_t values = swizzled_descriptor(
        shared_address(s.tiles[slot] + 4 * kHalf * kKeyBlockBytes), kKeyBlockBytes);
    wgmma_hold(out);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < kTile / 16; ++step) {
      wgmma_values(out, weight + 2 * step, values + (step * 2048 >> 4), 1);
    }
    wgmma_commit();
    // The scores of the next tile are there, so the rope keys of the one behind it may come.
    if (kHalf == 1 && first + 2 * kTile < positions) {
      bring_rope(a.attend.cache.data, s.rows[1][slot == 0 ? kTiles - 1 : slot - 1], s);
    }
    if (thread < kTile) s.rows[kHalf][slot][thread] = entry;
    wgmma_wait<0>();
    wgmma_hold(out);
    warp_arrive(&s.weights_empty);
    if (next < positions) {
      sync_warps(3 + kHalf, 128);  // all four warps have read this half of the tile
      bring_tile<kHalf>(a.attend.cache.data, slot, s);
    }
    if (++slot == kTiles) slot = 0;
  }
}

// What the warpgroups of values do.
template <int kHalf>
__device__ void bring_and_sum(const DecodeArgs& a, int64_t token, int run, int64_t first_head,
                              int positions, Shared& s) {
  const int thread = static_cast<int>(threadIdx.x) % 128;
  if (thread < kTile) {
    for (int i = 0; i < kTiles; ++i) s.rows[kHalf][i][thread] = row_of(a, s, i * kTile + thread);
  }
  wait_for_previous();
  sync_warps(3 + kHalf, 128);
  for (int i = 0; i < kTiles - 1; ++i) bring_tile<kHalf>(a.attend.cache.data, i, s);
  if (kHalf == 1) bring_rope(a.attend.cache.data, s.rows[1][0], s);
  bring_wide_queries(a, token, first_head, s.tiles[kTiles - 1] + kQueriesAt);
  sync_warps(2, kWideThreads);  // the queries are in registers
  bring_tile<kHalf>(a.attend.cache.data, kTiles - 1, s);
  if (kHalf == 1 && positions > kTile) {
    barrier_wait(&s.rope_empty, 0);
    bring_rope(a.attend.cache.data, s.rows[1][1], s);
  }
  float out[128];
  sum_values<kHalf>(a, positions, s, out);
  asm volatile("cp.async.wait_all;" ::: "memory");
  sync_warps(2, kWideThreads);  // the sums of weights are there, and nobody reads the tiles
  store_wide_values(a, token, run, first_head, kHalf, s.stats, out, s.tiles[0]);
}

__global__ __launch_bounds__(kWideThreads,
                             1) void mla_wide_bf16_kernel(const __grid_constant__ DecodeArgs a) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ __align__(1024) uint8_t raw[];
  auto& s = *reinterpret_cast<Shared*>(raw);
  const int thread = static_cast<int>(threadIdx.x);
  if (thread == 0) {
    for (int i = 0; i < kTiles; ++i) barrier_init(&s.full[i], 256);
    barrier_init(&s.rope_full, 128);
    barrier_init(&s.rope_empty, 4 * kWarpArrivals);
    barrier_init(&s.weights_full, 4 * kWarpArrivals);
    barrier_init(&s.weights_empty, 8 * kWarpArrivals);
    fence_barrier_init();
  }
  let_next_start();
  const int64_t token = a.first_token + blockIdx.z;
  const int run = static_cast<int>(blockIdx.x);
  const int64_t first_head = int64_t{blockIdx.y} * kWideHeads;
  // What is known of the batch was there before the step's launches.
  const TokenView view = a.attend.views[token];
  const int64_t length = run_length(view.visible, a.max_runs);
  const int begin = static_cast<int>(min(run * length, view.visible));
  const int end = static_cast<int>(min(begin + length, view.visible));
  if (begin >= end) return;
  if (thread == 0) {
    s.table = a.attend.tables + view.table;
    s.first_slot = static_cast<uint32_t>(begin + view.slot_offset);
    s.positions = end - begin;
  }
  __syncthreads();
  if (thread >= 256) {
    take_registers<184>();
    wait_for_previous();
    bring_wide_queries(a, token, first_head, s.tiles[kTiles - 1] + kQueriesAt);
    score_tiles(a, end - begin, s);
    sync_warps(2, kWideThreads);
  } else if (thread < 128) {
    give_registers<160>();
    bring_and_sum<0>(a, token, run, first_head, end - begin, s);
  } else {
    give_registers<160>();
    bring_and_sum<1>(a, token, run, first_head, end - begin, s);
  }
#endif
}

}  // namespace

cudaError_t launch_mla_wide_bf16(const DecodeArgs& args, int64_t tokens, cudaStream_t stream) {
  constexpr int kShared = static_cast<int>(sizeof(Shared));
  static_assert(kShared <= 227 * 1024);
  const auto head_blocks =
      static_cast<unsigned>((args.attend.shape.num_heads + kWideHeads - 1) / kWideHeads);
  const dim3 grid(static_cast<unsigned>(args.runs), head_blocks, static_cast<unsigned>(tokens));
  const cudaError_t configured = allow_shared<mla_wide_bf16_kernel>(kShared);
  if (configured != cudaSuccess) return configured;
  return launch_overlapped(mla_wide_bf16_kernel, grid, dim3(kWideThreads), kShared, stream, args);
}

}  // namespace nibble::cuda
