// Absorbed attention for many heads on wgmma: 64 heads of a token and a run of its positions a
// block, 32 positions at a time.
//
// Three warpgroups: one computes scores and the running softmax; two multiply the weights with the
// left and the right half of the latents, 64 x 256 sums each in registers, and bring the next cache
// entries to where they have just read. Tiles are passed on through mbarriers, so that the scores
// of one tile and the values of the one before are computed at the same time. Keys and values are
// the same bytes in shared memory: nine blocks of 64 columns, 128 swizzled bytes a row.
//
// Bound: the chain of a tile's scores and softmax, of which only the scores overlap with another
// tile's values, and products of 32 positions, which are too small for the tensor cores' full rate.
#include <algorithm>

#include "nibble/kernels/cuda/launch.cuh"
#include "nibble/kernels/cuda/mla_runs.cuh"
#include "nibble/kernels/cuda/ptx.cuh"
#include "nibble/kernels/cuda/units.cuh"
#include "nibble/kernels/cuda/wgmma.cuh"

namespace nibble::cuda {
namespace {

constexpr int kHeads = kWideHeads;
constexpr int kTile = 32;  // positions
constexpr int kTiles = 4;  // in shared memory
constexpr int kThreads = 384;
constexpr int kBlocks = kEntry / 64;  // of 64 columns
constexpr int kHeldBlocks = 4;        // of the queries, in registers
constexpr int kQueryBlockBytes = kHeads * 128;
constexpr int kKeyBlockBytes = kTile * 128;
constexpr int kQueryBytes = kBlocks * kQueryBlockBytes;
constexpr int kTileBytes = kBlocks * kKeyBlockBytes;
constexpr int kWeightBytes = kHeads * 128;  // two tiles' weights, side by side
constexpr int kShared = kQueryBytes + kTiles * kTileBytes + kWeightBytes + 1024;

struct Barriers {
  uint64_t full[kTiles];
  uint64_t weights_full[2];
  uint64_t weights_empty[2];
};

// A position in a ring.
struct Turn {
  int slot = 0;
  uint32_t phase = 0;
  __device__ void advance(int slots) {
    if (++slot == slots) {
      slot = 0;
      phase ^= 1;
    }
  }
};

__device__ void copy_or_clear(uint32_t destination, const void* source, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(destination), "l"(source),
               "r"(bytes)
               : "memory");
}

__device__ void arrive_after_copies(uint64_t* barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(shared_address(barrier))
               : "memory");
}

// Two values of a cache entry as BF16; NaN, which weights don't have, stays NaN.
__device__ uint32_t entry_pair(uint32_t word, int upper) {
  const uint32_t nan = __vcmpeq4(word & 0x7f7f7f7fu, 0x7f7f7f7fu);
  return Fp8Unit::pair(word, upper) | __byte_perm(nan, 0, upper == 0 ? 0x1100 : 0x3322);
}

// What a thread has of a tile on its way: 8 values of 4 or 5 column blocks in each of two rows. FP8
// values wait in registers, BF16 ones go straight to shared memory.
template <typename T>
struct Fetched;
template <>
struct Fetched<uint16_t> {
  bool any = false;
  const uint16_t* from[2];
  int bytes[2];
};
template <>
struct Fetched<uint8_t> {
  bool any = false;
  uint2 values[2][5];
};

// Brings a warpgroup's share of the tiles: the left half of the latents, or the right one and the
// rope keys. 8 threads bring 64 columns of a row at a time, two rows each.
template <typename T>
struct Loader {
  const DecodeArgs& a;
  const TokenView& view;
  int64_t next;  // the first position of the tile to be brought
  int64_t end;
  int half;
  uint8_t* tiles;
  Barriers& barriers;

  __device__ const T* entry_of(int64_t position) const {
    const KvCacheView& cache = a.attend.cache;
    const auto* const data = static_cast<const T*>(cache.data);
    if (position >= end) return data;
    const auto slot = static_cast<uint32_t>(position + view.slot_offset);
    const auto block_size = static_cast<uint32_t>(cache.block_size);
    const int64_t block = __ldg(a.attend.tables + view.table + slot / block_size);
    return data + (block * block_size + slot % block_size) * kEntry;
  }

  // Looks up where the next tile is, and asks for it where it comes to registers.
  __device__ void find(Fetched<T>& f) {
    f.any = next < end;
    if (!f.any) return;
    const int thread = static_cast<int>(threadIdx.x) % 128;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int64_t position = next + thread / 8 + 16 * i;
      const T* const from = entry_of(position) + 256 * half + 8 * (thread % 8);
      if constexpr (sizeof(T) == 2) {
        f.from[i] = from;
        f.bytes[i] = position < end ? 16 : 0;
      } else {
#pragma unroll
        for (int b = 0; b < 5; ++b) {
          const bool wanted = position < end && (b < 4 || half == 1);
          f.values[i][b] =
              wanted ? *reinterpret_cast<const uint2*>(from + 64 * b) : make_uint2(0, 0);
        }
      }
    }
    next += kTile;
  }

  __device__ void bring(int slot, const Fetched<T>& f) {
    if (!f.any) return;
    const int thread = static_cast<int>(threadIdx.x) % 128;
    const int row = thread / 8;
    const int offset = slot * kTileBytes + 4 * half * kKeyBlockBytes + row * 128 +
                       (((thread % 8) ^ (row & 7)) << 4);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int b = 0; b < 5; ++b) {
        if (b == 4 && half == 0) break;
        uint8_t* const to = tiles + offset + b * kKeyBlockBytes + i * 2048;
        if constexpr (sizeof(T) == 2) {
          copy_or_clear(shared_address(to), f.from[i] + 64 * b, f.bytes[i]);
        } else {
          const uint2 v = f.values[i][b];
          *reinterpret_cast<uint4*>(to) = make_uint4(entry_pair(v.x, 0), entry_pair(v.x, 1),
                                                     entry_pair(v.y, 0), entry_pair(v.y, 1));
        }
      }
    }
    if constexpr (sizeof(T) == 2) {
      arrive_after_copies(&barriers.full[slot]);
    } else {
      fence_shared_for_wgmma();
      barrier_arrive(&barriers.full[slot]);
    }
  }
};

struct Softmax {
  float peak[2] = {-INFINITY, -INFINITY};  // of rows g and g + 8, times log2 e
  float sum[2] = {0, 0};                   // this lane's share
};

// Scores of `left` positions become weights in shared memory.
__device__ void weigh(const float (&score)[16], int64_t left, float scale, int buffer, int warp,
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

__device__ void score_tiles(const DecodeArgs& a, int64_t begin, int64_t end, const uint8_t* queries,
                            const uint8_t* tiles, uint8_t* weights, float* factors, float2* stats,
                            Barriers& barriers) {
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
    turn.advance(kTiles);
  };
  Softmax state;
  Turn buffer;
  buffer.phase = 1;  // the buffers start empty
  for (int64_t first = begin; first < end; first += kTile) {
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
    __syncwarp();
    if (lane == 0) barrier_arrive(&barriers.weights_full[buffer.slot]);
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

template <typename T>
__device__ void sum_values(int64_t begin, int64_t end, int half, const uint8_t* tiles,
                           const uint8_t* weights, const float* factors, Barriers& barriers,
                           Loader<T>& loader, float (&out)[128]) {
  const int warp = static_cast<int>(threadIdx.x) / 32 % 4;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int row = 16 * warp + lane / 4;
  const uint64_t weight = swizzled_descriptor(shared_address(weights));
  const uint64_t values =
      swizzled_descriptor(shared_address(tiles + 4 * half * kKeyBlockBytes), kKeyBlockBytes);
#pragma unroll
  for (int i = 0; i < 128; ++i) out[i] = 0;
  Turn tile;
  Turn buffer;
  for (int64_t first = begin; first < end; first += kTile) {
    Fetched<T> fetched;
    loader.find(fetched);
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
    wgmma_wait<0>();
    wgmma_hold(out);
    __syncwarp();  // all lanes have read the factors
    if (lane == 0) barrier_arrive(&barriers.weights_empty[buffer.slot]);
    sync_warps(3 + half, 128);  // all four warps have read this half of the tile
    loader.bring(tile.slot, fetched);
    tile.advance(kTiles);
    buffer.advance(2);
  }
}

// Brings the block's queries, rounded to BF16; rows behind the last
// head are zero.
__device__ void bring_queries(const DecodeArgs& a, int64_t token, int64_t first_head,
                              uint8_t* queries) {
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t heads = a.attend.shape.num_heads;
  constexpr int kChunks = kHeads * (kEntry / 8);
  constexpr int kAtOnce = 6;
  static_assert(kChunks % (kAtOnce * kThreads) == 0);
  for (int first = thread; first < kChunks; first += kAtOnce * kThreads) {
    float4 q[kAtOnce][2];
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      const int i = first + k * kThreads;
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
      const int i = first + k * kThreads;
      const int chunk = i % (kEntry / 8);
      *reinterpret_cast<uint4*>(queries + chunk / 8 * kQueryBlockBytes +
                                swizzled(i / (kEntry / 8), chunk % 8, 128)) =
          make_uint4(bf16x2(q[k][0].x, q[k][0].y), bf16x2(q[k][0].z, q[k][0].w),
                     bf16x2(q[k][1].x, q[k][1].y), bf16x2(q[k][1].z, q[k][1].w));
    }
  }
  fence_shared_for_wgmma();
  sync_warps(1, kThreads);
}

// A block's run: out of the half of a warpgroup, or partial results.
__device__ void store_values(const DecodeArgs& a, int64_t token, int run, int64_t first_head,
                             int group, const float2* stats, const float (&out)[128]) {
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t heads = a.attend.shape.num_heads;
  const int lane = thread % 32;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = thread / 32 % 4 * 16 + lane / 4 + 8 * r;
    const int64_t head = first_head + row;
    if (head >= heads) continue;
    const int64_t at = (int64_t{blockIdx.z} * a.runs + run) * heads + head;
    const float factor = 1 / stats[row].y;
    if (a.split && lane % 4 == 0 && group == 0) a.stats[at] = stats[row];
#pragma unroll
    for (int n = 0; n < 32; ++n) {
      const int col = 256 * group + 8 * n + 2 * (lane % 4);
      const float low = out[4 * n + 2 * r];
      const float high = out[4 * n + 2 * r + 1];
      if (a.split) {
        *reinterpret_cast<float2*>(a.partial + at * kRank + col) = make_float2(low, high);
      } else {
        store_latents(a.attend, token, head, col, low, high, factor);
      }
    }
  }
}

template <typename T>
__global__ __launch_bounds__(kThreads, 1) void mla_wide_kernel(const DecodeArgs a) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ uint8_t raw[];
  __shared__ Barriers barriers;
  __shared__ float factors[2 * kHeads];
  __shared__ float2 stats[kHeads];
  uint8_t* const queries = raw + (1024 - (shared_address(raw) & 1023)) % 1024;
  uint8_t* const tiles = queries + kQueryBytes;
  uint8_t* const weights = tiles + kTiles * kTileBytes;
  const int thread = static_cast<int>(threadIdx.x);
  if (thread < kTiles) {
    barrier_init(&barriers.full[thread], 256);
    if (thread < 2) {
      barrier_init(&barriers.weights_full[thread], 4);
      barrier_init(&barriers.weights_empty[thread], 8);
    }
    fence_barrier_init();
  }
  let_next_start();
  wait_for_previous();
  const int64_t token = a.first_token + blockIdx.z;
  const int run = static_cast<int>(blockIdx.x);
  const int64_t first_head = int64_t{blockIdx.y} * kHeads;
  const TokenView view = a.attend.views[token];
  const int64_t length = run_length(view.visible, a.max_runs);
  const int64_t begin = run * length;
  const int64_t end = min(begin + length, view.visible);
  if (begin >= end) return;
  __syncthreads();  // the barriers are there

  if (thread >= 256) {
    bring_queries(a, token, first_head, queries);
    score_tiles(a, begin, end, queries, tiles, weights, factors, stats, barriers);
    sync_warps(2, kThreads);
  } else {
    const int half = thread / 128;
    Loader<T> loader{a, view, begin, end, half, tiles, barriers};
    {
      Fetched<T> fetched[kTiles];
#pragma unroll
      for (int slot = 0; slot < kTiles; ++slot) loader.find(fetched[slot]);
#pragma unroll
      for (int slot = 0; slot < kTiles; ++slot) loader.bring(slot, fetched[slot]);
    }
    bring_queries(a, token, first_head, queries);
    float out[128];
    sum_values(begin, end, half, tiles, weights, factors, barriers, loader, out);
    asm volatile("cp.async.wait_all;" ::: "memory");
    sync_warps(2, kThreads);  // the sums of weights are there
    store_values(a, token, run, first_head, half, stats, out);
  }
#endif
}

}  // namespace

bool mla_wide_runs_here() {
  static const bool runs = [] {
    cudaFuncAttributes attributes = {};
    const bool found = cudaFuncGetAttributes(&attributes, mla_wide_kernel<uint16_t>) == cudaSuccess;
    (void)cudaGetLastError();
    // Code for other architectures is an empty kernel of few registers.
    return found && attributes.numRegs > 64;
  }();
  return runs;
}

namespace {

template <typename T>
cudaError_t launch_typed(const DecodeArgs& args, int64_t tokens, cudaStream_t stream) {
  constexpr auto kernel = mla_wide_kernel<T>;
  const cudaError_t configured = allow_shared<kernel>(kShared);
  if (configured != cudaSuccess) return configured;
  const auto head_blocks =
      static_cast<unsigned>((args.attend.shape.num_heads + kHeads - 1) / kHeads);
  const dim3 grid(static_cast<unsigned>(args.runs), head_blocks, static_cast<unsigned>(tokens));
  return launch_overlapped(kernel, grid, dim3(kThreads), kShared, stream, args);
}

}  // namespace

cudaError_t launch_mla_wide(const DecodeArgs& args, int64_t tokens, cudaStream_t stream) {
  return args.attend.cache.dtype == DType::kBf16 ? launch_typed<uint16_t>(args, tokens, stream)
                                                 : launch_typed<uint8_t>(args, tokens, stream);
}

}  // namespace nibble::cuda
