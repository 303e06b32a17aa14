// Absorbed attention for many heads and an FP8 cache on wgmma: 64 heads of a token and a run of its
// positions a block, 32 positions at a time.
//
// Three warpgroups: one computes scores and the running softmax; two multiply the weights with the
// left and the right half of the latents, 64 x 256 sums each in registers, and bring the next cache
// entries (mla_wide_fp8_loader.cuh). Tiles are passed on through mbarriers, so that the scores
// of one tile and the values of the one before are computed at the same time. Keys and values are
// the same bytes in shared memory: nine blocks of 64 columns, 128 swizzled bytes a row.
//
// Bound: the chain of a tile's scores and softmax, of which only the scores overlap with another
// tile's values, and products of 32 positions, which are too small for the tensor cores' full rate.
#include <algorithm>

#include "nibble/kernels/cuda/launch.cuh"
#include "nibble/kernels/cuda/mla_runs.cuh"
#include "nibble/kernels/cuda/mla_wide_block.cuh"
#include "nibble/kernels/cuda/mla_wide_fp8_loader.cuh"
#include "nibble/kernels/cuda/ptx.cuh"
#include "nibble/kernels/cuda/wgmma.cuh"

namespace nibble::cuda {
namespace {

constexpr int kHeads = kWideHeads;
constexpr int kTile = kWideTile;
constexpr int kThreads = kWideThreads;
constexpr int kBlocks = kWideBlocks;
constexpr int kHeldBlocks = 4;  // of the queries, in registers
constexpr int kQueryBlockBytes = kWideQueryBlockBytes;
constexpr int kKeyBlockBytes = kWideKeyBlockBytes;
constexpr int kQueryBytes = kWideQueryBytes;
constexpr int kTileBytes = kWideTileBytes;
constexpr int kWeightBytes = kHeads * 128;  // two tiles' weights, side by side
constexpr int kShared = kQueryBytes + kWideRingBytes + kWeightBytes + 1024;

struct Softmax {
  float peak[2] = {-INFINITY, -INFINITY};  // of rows g and g + 8, times log2 e
  float sum[2] = {0, 0};                   // this lane's share
};

// Scores of `left` positions become weights in shared memory.
__device__ void weigh(const float (&score)[16], int left, float scale, int buffer, int warp,
                      int lane, uint8_t* weights, float* factors, Softmax& state) {
  float s[16];
  float largest[2] = {-INFINITY, -INFINITY};
#pragma unroll
  for (int i = 0; i < 16; ++i) {
    const int position = i / 4 * 8 + 2 * (lane % 4) + i % 2;
    s[i] = position < left ? score[i] * scale : -INFINITY;
    largest[i / 2 % 2] = fmaxf(largest[i / 2 % 2], s[i]);
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    largest[r] = fmaxf(largest[r], __shfl_xor_sync(~0u, largest[r], 1));
    largest[r] = fmaxf(largest[r], __shfl_xor_sync(~0u, largest[r], 2));
    const float peak = fmaxf(state.peak[r], largest[r]);
    const float factor = fast_exp2(state.peak[r] - peak);
    state.peak[r] = peak;
    state.sum[r] *= factor;
    if (lane % 4 == 0) factors[buffer * kHeads + 16 * warp + lane / 4 + 8 * r] = factor;
  }
#pragma unroll
  for (int i = 0; i < 16; i += 2) {
    const int r = i / 2 % 2;
    const float low = fast_exp2(s[i] - state.peak[r]);
    const float high = fast_exp2(s[i + 1] - state.peak[r]);
    state.sum[r] += low + high;
    const int row = 16 * warp + lane / 4 + 8 * r;
    *reinterpret_cast<uint32_t*>(weights + swizzled(row, 4 * buffer + i / 4, 128) +
                                 4 * (lane % 4)) = bf16x2(low, high);
  }
}

__device__ void score_tiles(const DecodeArgs& a, int begin, int end, const uint8_t* queries,
                            const uint8_t* tiles, uint8_t* weights, float* factors, float2* stats,
                            WideBarriers& barriers) {
  const int warp = static_cast<int>(threadIdx.x) / 32 % 4;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const float scale = a.attend.shape.softmax_scale * kLog2E;
  const uint64_t query = swizzled_descriptor(shared_address(queries));
  // Most of the queries stay in registers, which leaves shared memory's bandwidth to the keys.
  uint32_t held[4 * kHeldBlocks][4];
#pragma unroll
  for (int step = 0; step < 4 * kHeldBlocks; ++step) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = 16 * warp + lane / 4 + i % 2 * 8;
      held[step][i] = *reinterpret_cast<const uint32_t*>(queries + step / 4 * kQueryBlockBytes +
                                                         swizzled(row, step % 4 * 2 + i / 2, 128) +
                                                         4 * (lane % 4));
    }
  }
  const uint64_t keys = swizzled_descriptor(shared_address(tiles));
  Turn turn;
  // Even and odd steps have sums of their own, which do not wait for each other.
  const auto multiply = [&](float(&even)[16], float(&odd)[16]) {
    barrier_wait(&barriers.full[turn.slot], turn.phase);
    fence_shared_for_wgmma();
    wgmma_fence();
    const uint64_t key = keys + (turn.slot * kTileBytes >> 4);
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) {
#pragma unroll
      for (int step = 0; step < 4; ++step) {
        const uint64_t k = key + (b * kKeyBlockBytes >> 4) + 2 * step;
        float(&c)[16] = step % 2 == 0 ? even : odd;
        if (b < kHeldBlocks) {
          wgmma_registers<32>(c, held[4 * b + step], k, b > 0 || step > 1 ? 1 : 0);
        } else {
          wgmma_scores(c, query + (b * kQueryBlockBytes >> 4) + 2 * step, k, 1);
        }
      }
    }
    wgmma_commit();
    turn.advance(kWideTiles);
  };
  Softmax state;
  Turn buffer;
  buffer.phase = 1;  // the buffers start empty
  for (int first = begin; first < end; first += kTile) {
    float score[16];
    float odd[16];
    multiply(score, odd);
    wgmma_wait<0>();
    wgmma_hold(score);
    wgmma_hold(odd);
#pragma unroll
    for (int i = 0; i < 16; ++i) score[i] += odd[i];
    barrier_wait(&barriers.weights_empty[buffer.slot], buffer.phase);
    weigh(score, end - first, scale, buffer.slot, warp, lane, weights, factors, state);
    fence_shared_for_wgmma();
    warp_arrive(&barriers.weights_full[buffer.slot]);
    buffer.advance(2);
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float sum = state.sum[r];
    sum += __shfl_xor_sync(~0u, sum, 1);
    sum += __shfl_xor_sync(~0u, sum, 2);
    if (lane % 4 == 0) stats[16 * warp + lane / 4 + 8 * r] = make_float2(state.peak[r], sum);
  }
}

__device__ void sum_values(int begin, int end, int half, const uint8_t* tiles,
                           const uint8_t* weights, const float* factors, WideBarriers& barriers,
                           WideLoader& loader, float (&out)[128]) {
  const int warp = static_cast<int>(threadIdx.x) / 32 % 4;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int row = 16 * warp + lane / 4;
  const uint64_t weight = swizzled_descriptor(shared_address(weights));
  const uint64_t values =
      swizzled_descriptor(shared_address(tiles + 4 * half * kKeyBlockBytes), kKeyBlockBytes);
#pragma unroll
  for (int i = 0; i < 128; ++i) out[i] = 0;
  // FP8 entries are converted to a slot of their own while the tensor cores read another one.
  Turn tile;
  Turn next;
  next.slot = kWideTiles - 1;
  Turn buffer;
  for (int first = begin; first < end; first += kTile) {
    barrier_wait(&barriers.weights_full[buffer.slot], buffer.phase);
    fence_shared_for_wgmma();
    const float low = factors[buffer.slot * kHeads + row];
    const float high = factors[buffer.slot * kHeads + row + 8];
    if (__any_sync(~0u, low != 1 || high != 1)) {
#pragma unroll
      for (int i = 0; i < 128; ++i) out[i] *= i / 2 % 2 == 0 ? low : high;
    }
    wgmma_hold(out);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < 2; ++step) {
      wgmma_values(out, weight + 4 * buffer.slot + 2 * step,
                   values + (tile.slot * kTileBytes >> 4) + (step * 2048 >> 4), 1);
    }
    wgmma_commit();
    sync_warps(3 + half, 128);  // all four warps are done with the tile before this one
    loader.bring(next.slot);
    next.advance(kWideTiles);
    wgmma_wait<0>();
    wgmma_hold(out);
    warp_arrive(&barriers.weights_empty[buffer.slot]);  // all lanes have read the factors
    tile.advance(kWideTiles);
    buffer.advance(2);
  }
}

__global__ __launch_bounds__(kThreads, 1) void mla_wide_fp8_kernel(const DecodeArgs a) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ uint8_t raw[];
  __shared__ WideBarriers barriers;
  __shared__ float factors[2 * kHeads];
  __shared__ float2 stats[kHeads];
  uint8_t* const queries = raw + (1024 - (shared_address(raw) & 1023)) % 1024;
  uint8_t* const weights = queries + kQueryBytes;
  uint8_t* const tiles = weights + kWeightBytes;
  const int thread = static_cast<int>(threadIdx.x);
  if (thread < kWideTiles) barrier_init(&barriers.full[thread], 256);
  if (thread < kWideRawTiles) {
    barrier_init(&barriers.raw_full[thread], 1);
    barrier_init(&barriers.raw_empty[thread], 8 * kWarpArrivals);
  }
  if (thread < 2) {
    barrier_init(&barriers.weights_full[thread], 4 * kWarpArrivals);
    barrier_init(&barriers.weights_empty[thread], 8 * kWarpArrivals);
  }
  if (thread < kWideTiles) fence_barrier_init();
  let_next_start();
  const int64_t token = a.first_token + blockIdx.z;
  const int run = static_cast<int>(blockIdx.x);
  const int64_t first_head = int64_t{blockIdx.y} * kHeads;
  // What is known of the batch was there before the step's launches.
  const TokenView view = a.attend.views[token];
  const int64_t length = run_length(view.visible, a.max_runs);
  const int begin = static_cast<int>(min(run * length, view.visible));
  const int end = static_cast<int>(min(begin + length, view.visible));
  if (begin >= end) return;

  if (thread >= 256) {
    wait_for_previous();
    __syncthreads();  // the barriers are there
    bring_wide_queries(a, token, first_head, queries);
    score_tiles(a, begin, end, queries, tiles, weights, factors, stats, barriers);
    sync_warps(2, kThreads);
  } else {
    const int half = thread / 128;
    const RunEntries<uint8_t> positions{a, view, begin, end};
    WideLoader loader(positions, half, tiles, barriers);
    wait_for_previous();
    __syncthreads();  // the barriers are there
    loader.ask_first();
    bring_wide_queries(a, token, first_head, queries);
    loader.bring_first();
    float out[128];
    sum_values(begin, end, half, tiles, weights, factors, barriers, loader, out);
    sync_warps(2, kThreads);  // the sums of weights are there, and nobody reads the tiles
    store_wide_values(a, token, run, first_head, half, stats, out, tiles);
  }
#endif
}

}  // namespace

bool mla_wide_runs_here() {
  static const bool runs = has_body(mla_wide_fp8_kernel);
  return runs;
}

cudaError_t launch_mla_wide_fp8(const DecodeArgs& args, int64_t tokens, cudaStream_t stream) {
  const cudaError_t configured = allow_shared<mla_wide_fp8_kernel>(kShared);
  if (configured != cudaSuccess) return configured;
  const auto head_blocks =
      static_cast<unsigned>((args.attend.shape.num_heads + kHeads - 1) / kHeads);
  const dim3 grid(static_cast<unsigned>(args.runs), head_blocks, static_cast<unsigned>(tokens));
  return launch_overlapped(mla_wide_fp8_kernel, grid, dim3(kThreads), kShared, stream, args);
}

}  // namespace nibble::cuda
