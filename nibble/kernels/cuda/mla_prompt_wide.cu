// Attention of mla_prompt.h on wgmma: a block takes 128 tokens of one head, 128 positions at a
// time.
//
// Two warpgroups have 64 tokens each, with their queries, scores and sums in registers; a third
// one brings keys and values (cp.async into swizzled shared memory, two tiles of each). While one
// warpgroup works on its softmax the other one's products keep the tensor cores busy.
#include "nibble/kernels/cuda/cuda_level.h"
#include "nibble/kernels/cuda/launch.cuh"
#include "nibble/kernels/cuda/mla_prompt.cuh"
#include "nibble/kernels/cuda/mla_runs.cuh"
#include "nibble/kernels/cuda/ptx.cuh"
#include "nibble/kernels/cuda/wgmma.cuh"

namespace nibble::cuda {
namespace {

constexpr int kGroupRows = 64;  // tokens of a warpgroup
constexpr int kGroups = 2;
constexpr int kRows = kGroupRows * kGroups;
constexpr int kThreads = 128 * (kGroups + 1);
constexpr int kTile = 128;                // positions
constexpr int kBlockBytes = kTile * 128;  // 64 columns, 128 swizzled bytes a row
constexpr int kKeyBytes = kKey / 64 * kBlockBytes;
constexpr int kValueBytes = kValue / 64 * kBlockBytes;
constexpr int kStageBytes = kKeyBytes + kValueBytes;
constexpr int kStages = 2;
constexpr int kShared = kStages * kStageBytes + 1024;

struct Barriers {
  uint64_t keys[kStages];
  uint64_t values[kStages];
  uint64_t empty[kStages];
};

// c [64, 128] += a [64, 16] b [16, 128], a in registers, b with neighbouring columns.
__device__ void wgmma_sum(float (&c)[64], const uint32_t (&a)[4], uint64_t b) {
  NIBBLE_WGMMA("wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" NIBBLE_R7
               "}, {%64,%65,%66,%67}, %68, 1, 1, 1, 1;"
               : NIBBLE_C8(c, 0), NIBBLE_C8(c, 8), NIBBLE_C8(c, 16), NIBBLE_C8(c, 24),
                 NIBBLE_C8(c, 32), NIBBLE_C8(c, 40), NIBBLE_C8(c, 48), NIBBLE_C8(c, 56)
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

// A thread's copies so far arrive at the barrier when they are there.
__device__ void arrive_behind_copies(uint64_t* barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(shared_address(barrier))
               : "memory");
}

// `columns` columns of rows first .. first + kTile - 1, `stride` values apart.
template <int kColumns>
__device__ void bring(const uint16_t* rows, int64_t first, int64_t length, uint32_t to) {
  constexpr int kChunks = kColumns / 8;
  const int thread = static_cast<int>(threadIdx.x) % 128;
  const int chunk = thread % kChunks;
#pragma unroll 8
  for (int row = thread / kChunks; row < kTile; row += 128 / kChunks) {
    const bool is_there = first + row < length;
    copy_async(to + chunk / 8 * kBlockBytes + swizzled(row, chunk % 8, 128),
               is_there ? rows + (first + row) * kColumns + 8 * chunk : rows, is_there);
  }
}

[[maybe_unused]] __device__ void bring_tiles(const PromptArgs& a, int64_t head, int64_t end,
                                             uint32_t stages, Barriers& barriers) {
  const uint16_t* const keys = a.keys + head * a.length * kNope;
  const uint16_t* const values = a.values + head * a.length * kValue;
  int stage = 0;
  uint32_t phase = 1;  // the stages start empty
  for (int64_t first = 0; first < end; first += kTile) {
    const uint32_t to = stages + stage * kStageBytes;
    barrier_wait(&barriers.empty[stage], phase);
    bring<kNope>(keys, first, a.length, to);
    bring<kRope>(a.rope, first, a.length, to + kNope / 64 * kBlockBytes);
    arrive_behind_copies(&barriers.keys[stage]);
    bring<kValue>(values, first, a.length, to + kKeyBytes);
    arrive_behind_copies(&barriers.values[stage]);
    if (++stage == kStages) {
      stage = 0;
      phase ^= 1;
    }
  }
}

struct Softmax {
  float peak[2] = {-INFINITY, -INFINITY};  // of rows g and g + 8, times log2 e
  float sum[2] = {0, 0};                   // this lane's share
};

// Scores become weights, and `out` what it is beside the new maximum. Those of positions behind
// last[r] count for nothing.
__device__ void weigh(float (&score)[kTile / 2], float scale, bool is_cut, const int (&last)[2],
                      Softmax& state, float (&out)[kValue / 2],
                      uint32_t (&weights)[kTile / 16][4]) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  float largest[2] = {-INFINITY, -INFINITY};
#pragma unroll
  for (int i = 0; i < kTile / 2; ++i) {
    const int position = i / 4 * 8 + 2 * (lane % 4) + i % 2;
    score[i] *= scale;
    if (is_cut && position > last[i / 2 % 2]) score[i] = -INFINITY;
    largest[i / 2 % 2] = fmaxf(largest[i / 2 % 2], score[i]);
  }
  float base[2];
  float factor[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    largest[r] = fmaxf(largest[r], __shfl_xor_sync(~0u, largest[r], 1));
    largest[r] = fmaxf(largest[r], __shfl_xor_sync(~0u, largest[r], 2));
    const float peak = fmaxf(state.peak[r], largest[r]);
    base[r] = peak == -INFINITY ? 0 : peak;
    factor[r] = fast_exp2(state.peak[r] - base[r]);
    state.peak[r] = peak;
    state.sum[r] *= factor[r];
  }
#pragma unroll
  for (int i = 0; i < kTile / 2; i += 2) {
    const int r = i / 2 % 2;
    const float low = fast_exp2(score[i] - base[r]);
    const float high = fast_exp2(score[i + 1] - base[r]);
    state.sum[r] += low + high;
    weights[i / 8][i / 4 % 2 * 2 + r] = bf16x2(low, high);
  }
#pragma unroll
  for (int i = 0; i < kValue / 2; ++i) out[i] *= factor[i / 2 % 2];
}

// 64 tokens from `row` of the prompt on.
[[maybe_unused]] __device__ void attend(const PromptArgs& a, int64_t head, int64_t first_row,
                                        uint32_t stages, Barriers& barriers) {
  const int warp = static_cast<int>(threadIdx.x) / 32 % 4;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t row = first_row + 16 * warp + lane / 4;  // this lane's tokens: row, row + 8
  const float scale = a.softmax_scale * kLog2E;
  uint32_t q[kKey / 16][4];
  load_queries(a, head, row, lane, q);
  const int64_t first_position = a.first_position + first_row;
  const int64_t end = a.first_position + min(a.tokens, first_row + kGroupRows);
  float out[kValue / 2];
#pragma unroll
  for (float& o : out) o = 0;
  Softmax state;
  int stage = 0;
  uint32_t phase = 0;
  for (int64_t first = 0; first < end; first += kTile) {
    const uint64_t keys = swizzled_descriptor(stages + stage * kStageBytes);
    const uint64_t values =
        swizzled_descriptor(stages + stage * kStageBytes + kKeyBytes, kBlockBytes);
    float score[kTile / 2];
    barrier_wait(&barriers.keys[stage], phase);
    fence_shared_for_wgmma();
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < kKey / 16; ++step) {
      wgmma_registers<kTile>(score, q[step], keys + (step / 4 * kBlockBytes >> 4) + 2 * (step % 4),
                             step > 0 ? 1 : 0);
    }
    wgmma_commit();
    wgmma_wait<0>();
    wgmma_hold(score);
    const bool is_cut = first + kTile - 1 > first_position;
    const auto last = static_cast<int>(a.first_position + row - first);
    uint32_t weights[kTile / 16][4];
    weigh(score, scale, is_cut, {last, last + 8}, state, out, weights);
    barrier_wait(&barriers.values[stage], phase);
    fence_shared_for_wgmma();
    wgmma_hold(out);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < kTile / 16; ++step) {
      wgmma_sum(out, weights[step], values + (step * 2048 >> 4));
    }
    wgmma_commit();
    wgmma_wait<0>();
    wgmma_hold(out);
    __syncwarp();
    if (lane == 0) barrier_arrive(&barriers.empty[stage]);
    if (++stage == kStages) {
      stage = 0;
      phase ^= 1;
    }
  }

#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float sum = state.sum[r];
    sum += __shfl_xor_sync(~0u, sum, 1);
    sum += __shfl_xor_sync(~0u, sum, 2);
    const int64_t token = row + 8 * r;
    if (token >= a.tokens) continue;
    const float factor = 1 / sum;
    float* const to = a.out + token * a.out_stride + head * kValue + 2 * (lane % 4);
#pragma unroll
    for (int n = 0; n < kValue / 8; ++n) {
      to[8 * n] = out[4 * n + 2 * r] * factor;
      to[8 * n + 1] = out[4 * n + 2 * r + 1] * factor;
    }
  }
}

// What a warpgroup without tokens does for the others.
[[maybe_unused]] __device__ void pass_tiles(int64_t end, Barriers& barriers) {
  int stage = 0;
  uint32_t phase = 0;
  for (int64_t first = 0; first < end; first += kTile) {
    barrier_wait(&barriers.keys[stage], phase);
    barrier_wait(&barriers.values[stage], phase);
    __syncwarp();
    if (threadIdx.x % 32 == 0) barrier_arrive(&barriers.empty[stage]);
    if (++stage == kStages) {
      stage = 0;
      phase ^= 1;
    }
  }
}

__global__ __launch_bounds__(kThreads, 1) void mla_prompt_wide_kernel(const PromptArgs a) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ uint8_t raw[];
  __shared__ Barriers barriers;
  const uint32_t stages = (shared_address(raw) + 1023) / 1024 * 1024;
  const int thread = static_cast<int>(threadIdx.x);
  if (thread < kStages) {
    barrier_init(&barriers.keys[thread], 128);
    barrier_init(&barriers.values[thread], 128);
    barrier_init(&barriers.empty[thread], 4 * kGroups);
    fence_barrier_init();
  }
  __syncthreads();
  let_next_start();
  wait_for_previous();
  const int64_t head = blockIdx.x;
  // The blocks with most positions first.
  const int64_t first_row = (gridDim.y - 1 - blockIdx.y) * int64_t{kRows};
  const int64_t end = a.first_position + min(a.tokens, first_row + kRows);
  if (thread >= 128 * kGroups) {
    give_registers<24>();
    bring_tiles(a, head, end, stages, barriers);
    asm volatile("cp.async.wait_all;" ::: "memory");
  } else {
    take_registers<240>();
    const int64_t row = first_row + thread / 128 * kGroupRows;
    // A tile that the first warpgroup leaves out is the last one: nobody waits for its place.
    if (row < a.tokens) {
      attend(a, head, row, stages, barriers);
    } else {
      pass_tiles(end, barriers);
    }
  }
#endif
}

}  // namespace

bool mla_prompt_wide_runs_here() {
  static const bool runs = has_body(mla_prompt_wide_kernel) && cuda_level() / 10 == 9;
  return runs;
}

cudaError_t launch_mla_prompt_wide(const PromptArgs& args, cudaStream_t stream) {
  const cudaError_t configured = allow_shared<mla_prompt_wide_kernel>(kShared);
  if (configured != cudaSuccess) return configured;
  const dim3 grid(static_cast<unsigned>(args.heads),
                  static_cast<unsigned>((args.tokens + kRows - 1) / kRows));
  return launch_overlapped(mla_prompt_wide_kernel, grid, dim3(kThreads), kShared, stream, args);
}

}  // namespace nibble::cuda
