// Absorbed attention over FP8 entries for up to 32 heads of a block, on wgmma: positions are the
// rows of both products, heads their columns, so that few heads leave no row empty.
//
// Two warpgroups: one multiplies 64 positions with the queries and keeps the running softmax, the
// other multiplies the tile's values, transposed, with the weights. Entries stay FP8 in shared
// memory, where bulk copies bring them; each warpgroup turns what it reads into fragments of its
// left operand in registers, moving bytes alone: an E4M3 byte in the right place of a BF16 is its
// value times 2^-120. Queries and weights are stored times 2^64, sums are scaled back at the end.
// Two blocks share a multiprocessor, so that one's conversions meet the other's products.
//
// The order of positions and columns inside a product is free as long as both operands have the
// same one: columns of keys are taken as a lane's 16 bytes hold them, positions so that
// neighbouring rows lie in different banks (position_of).
//
// Weights are not held below 1: a maximum serves until a score exceeds it by 2^30, as BF16 and
// binary32 have the range, and precision is relative. So warps exchange maxima with the first tile
// and hardly ever later.
//
// Bound: the bytes of the cache with many tokens; at one token of 4096 positions, the chain of one
// tile.
#include "nibble/kernels/cuda/launch.cuh"
#include "nibble/kernels/cuda/mla_runs.cuh"
#include "nibble/kernels/cuda/ptx.cuh"
#include "nibble/kernels/cuda/wgmma.cuh"

namespace nibble::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kTile = 64;             // positions
constexpr int kBlocks = kEntry / 64;  // of 64 columns
constexpr int kTileBytes = kTile * kEntry;
constexpr int kTiles = 2;
constexpr int kValueTiles = kRank / 64;

// What a stored query or weight is multiplied by, and what brings E4M3 bytes moved into BF16 back.
constexpr float kStored = 0x1p64f;
constexpr float kEntryScale = 0x1p120f;
constexpr float kHeadroom = 30;  // binary digits

template <int kHeads>
struct Shared {
  alignas(1024) uint8_t queries[kBlocks][kHeads * 128];
  alignas(1024) uint8_t weights[kHeads * 128];
  alignas(1024) uint8_t tiles[kTiles][kTileBytes];
  uint64_t full[kTiles];
  uint64_t weights_full;
  uint64_t weights_empty;
  uint64_t results_full;
  float factors[kHeads];  // of the sums so far, where `rescale`
  float results[kHeads];  // factors of the result: the last tile's others may still be read
  float shifts[kHeads];
  float exchange[4][kHeads];
  int rescale;
};

// The position of a tile's 16 that is row or column `k` of a product's step.
__device__ constexpr int position_of(int k) {
  return k / 8 * 8 + (k % 2 == 0 ? k % 8 / 2 : 4 + (k % 8 / 2 ^ 1));
}

// Four bytes of x (0-3) and y (4-7), each with its sign's byte above it, become two E4M3 values
// times 2^-120 in BF16.
template <uint32_t kSelect>
__device__ uint32_t entries(uint32_t x, uint32_t y) {
  uint32_t q;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(q) : "r"(x), "r"(y), "n"(kSelect));
  return q << 4 & 0x87f087f0u;
}
// Neighbouring bytes of one word, the lower or the upper two.
__device__ inline uint32_t low_pair(uint32_t x) { return entries<0x9180>(x, 0); }
__device__ inline uint32_t high_pair(uint32_t x) { return entries<0xb3a2>(x, 0); }
// Byte kByte of two words.
template <uint32_t kByte>
__device__ uint32_t pair_of(uint32_t x, uint32_t y) {
  return entries<kByte | (8 + kByte) << 4 | (4 + kByte) << 8 | (12 + kByte) << 12>(x, y);
}

__device__ inline uint4 entries_at(const uint8_t* from) {
  return *reinterpret_cast<const uint4*>(from);
}
// The highest bit of a byte where there is a NaN.
__device__ inline uint32_t nan_in(const uint4& of) {
  uint32_t found = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) found |= (word(of, i) & 0x7f7f7f7fu) + 0x01010101u;
  return found & 0x80808080u;
}

// Any thread of the warpgroup that has `mine`.
__device__ inline bool any_of_group(int barrier, bool mine) {
  int any;
  asm volatile(
      "{\n.reg .pred p, q;\nsetp.ne.s32 p, %1, 0;\nbar.red.or.pred q, %2, 128, p;\n"
      "selp.s32 %0, 1, 0, q;\n}"
      : "=r"(any)
      : "r"(static_cast<int>(mine)), "r"(barrier)
      : "memory");
  return any != 0;
}

__device__ inline void store_transposed(uint32_t address, uint32_t a, uint32_t b, uint32_t c,
                                        uint32_t d) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(address),
               "r"(a), "r"(b), "r"(c), "r"(d)
               : "memory");
}

// Sends for a tile's entries: one copy for what lies in one of the cache's blocks.
__device__ void ask(const RunEntries<uint8_t>& run, int first, uint8_t* tile, uint64_t* full) {
  const int rows = min(kTile, run.end - first);
  barrier_expect(full, rows * kEntry);
  for (int row = 0; row < rows;) {
    const int together = min(rows - row, run.entries_from(first + row));
    bulk_copy_kept(tile + row * kEntry, run.entry(first + row), together * kEntry, full);
    row += together;
  }
}

// The block's queries times kStored as BF16, columns in the order of the keys' fragments; rows
// behind the last head are zero.
template <int kHeads>
__device__ void bring_queries(const DecodeArgs& a, int64_t token, int64_t first_head,
                              Shared<kHeads>& s) {
  constexpr int kOfRow = kEntry / 4;  // four values at a time
  constexpr int kAtOnce = 9;
  static_assert(kHeads * kOfRow % (kAtOnce * kThreads) == 0);
  const int heads = static_cast<int>(min(a.attend.shape.num_heads - first_head, int64_t{kHeads}));
#pragma unroll 1
  for (int first = static_cast<int>(threadIdx.x); first < kHeads * kOfRow;
       first += kAtOnce * kThreads) {
    float4 q[kAtOnce];
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      const int i = first + k * kThreads;
      const int row = i / kOfRow;
      q[k] = make_float4(0, 0, 0, 0);
      if (row >= heads) continue;
      const float* const from =
          query_values(a.attend, token, first_head + row, i % kOfRow / 2) + i % 2 * 4;
      q[k] = i % kOfRow < kRank / 4 ? *reinterpret_cast<const float4*>(from)
                                    : make_float4(from[0], from[1], from[2], from[3]);
    }
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      const int i = first + k * kThreads;
      const int row = i / kOfRow;
      const int col = i % kOfRow;  // in fours: block, lane of the quarter, step
      uint8_t* const block = s.queries[col / 16];
      *reinterpret_cast<uint32_t*>(block + swizzled(row, col % 4 * 2, 128) + col / 4 % 4 * 4) =
          bf16x2(q[k].x * kStored, q[k].y * kStored);
      *reinterpret_cast<uint32_t*>(block + swizzled(row, col % 4 * 2 + 1, 128) + col / 4 % 4 * 4) =
          bf16x2(q[k].z * kStored, q[k].w * kStored);
    }
  }
}

template <int kHeads>
__device__ void score_tiles(const DecodeArgs& a, const RunEntries<uint8_t>& run, Shared<kHeads>& s,
                            float (&sum)[kHeads / 4], uint32_t& nan) {
  const int warp = static_cast<int>(threadIdx.x) / 32 % 4;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int position = 16 * warp + position_of(lane / 4);  // and 8 behind it
  // Scores in units of log 2, of queries times kStored and entries times 2^-120.
  const float scale = a.attend.shape.softmax_scale * kLog2E * (kEntryScale / kStored);
  const uint64_t queries = swizzled_descriptor(shared_address(s.queries));
  // A lane's heads: 8 i + 2 (lane % 4) and the one behind.
  constexpr int kOfLane = kHeads / 4;
  const auto head_of = [&](int i) { return i / 2 * 8 + 2 * (lane % 4) + i % 2; };
#pragma unroll
  for (int i = 0; i < kOfLane; ++i) sum[i] = 0;
  int slot = 0;
  uint32_t phase = 0;
  uint32_t weights_phase = 1;  // they start empty
  for (int first = run.begin; first < run.end; first += kTile) {
    const int left = run.end - first;
    barrier_wait(&s.full[slot], phase);
    const uint8_t* const rows = s.tiles[slot] + position * kEntry + 16 * (lane % 4);
    float score[kHeads / 2];
    uint4 of[2] = {entries_at(rows), entries_at(rows + 8 * kEntry)};
    // Latents come out of a norm: all of an entry's are NaN, or none.
    uint32_t found[2] = {nan_in(of[0]), nan_in(of[1])};
#pragma unroll 1
    for (int b = 0; b < kBlocks; ++b) {
      if (b + 1 == kBlocks) {
        found[0] |= nan_in(of[0]);
        found[1] |= nan_in(of[1]);
      }
      uint32_t keys[2][4];
#pragma unroll
      for (int step = 0; step < 4; ++step) {
        uint32_t(&key)[4] = keys[step % 2];
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          const uint32_t w = word(of[r], step);
          key[r] = low_pair(w);
          key[2 + r] = high_pair(w);
        }
        wgmma_fence();
        wgmma_registers<kHeads>(score, key, queries + (b * kHeads * 128 >> 4) + 2 * step,
                                b + step > 0 ? 1 : 0);
        wgmma_commit();
        if (step == 3 && b + 1 < kBlocks) {
          of[0] = entries_at(rows + 64 * (b + 1));
          of[1] = entries_at(rows + 64 * (b + 1) + 8 * kEntry);
        }
        wgmma_wait<1>();
      }
    }
    wgmma_wait<0>();
    wgmma_hold(score);
    if (position < left) nan |= found[0];
    if (position + 8 < left) nan |= found[1];

    // A weight is 2^(score - shift).
    float shift[kOfLane];
#pragma unroll
    for (int i = 0; i < kOfLane; ++i) shift[i] = s.shifts[head_of(i)];
    float most = -INFINITY;
#pragma unroll
    for (int i = 0; i < kHeads / 2; ++i) {
      const bool here = position + i / 2 % 2 * 8 < left;
      score[i] = here ? score[i] * scale : -INFINITY;
      most = fmaxf(most, score[i] - shift[i / 4 * 2 + i % 2]);
    }
    const bool rescale = any_of_group(3, first == run.begin || most > 64 + kHeadroom);
    barrier_wait(&s.weights_empty, weights_phase);
    weights_phase ^= 1;
    if (rescale) {
#pragma unroll
      for (int i = 0; i < kOfLane; ++i) {
        float largest = fmaxf(score[i / 2 * 4 + i % 2], score[i / 2 * 4 + 2 + i % 2]);
#pragma unroll
        for (int other = 4; other < 32; other *= 2) {
          largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, other));
        }
        if (lane < 4) s.exchange[warp][head_of(i)] = largest;
      }
      sync_warps(3, 128);
#pragma unroll
      for (int i = 0; i < kOfLane; ++i) {
        const int head = head_of(i);
        float largest = s.exchange[0][head];
#pragma unroll
        for (int w = 1; w < 4; ++w) largest = fmaxf(largest, s.exchange[w][head]);
        // kStored is 2^64.
        const float higher = fmaxf(shift[i], largest - 64);
        const float factor = fast_exp2(shift[i] - higher);
        shift[i] = higher;
        sum[i] *= factor;
        if (warp == 0 && lane < 4) {
          s.factors[head] = factor;
          s.shifts[head] = higher;
        }
      }
      sync_warps(3, 128);  // all see the new shifts
    }
    if (warp == 0 && lane == 0) s.rescale = rescale && first > run.begin ? 1 : 0;
#pragma unroll
    for (int i = 0; i < kHeads / 2; ++i) {
      const int of = i / 4 * 2 + i % 2;
      score[i] = fast_exp2(score[i] - shift[of]);
      sum[of] += score[i];
    }
#pragma unroll
    for (int i = 0; i < kHeads / 2; i += 8) {
      const int row = i * 2 + lane / 16 * 8 + lane % 8;
      store_transposed(shared_address(s.weights + swizzled(row, 2 * warp + lane / 8 % 2, 128)),
                       bf16x2(score[i], score[i + 1]), bf16x2(score[i + 2], score[i + 3]),
                       bf16x2(score[i + 4], score[i + 5]), bf16x2(score[i + 6], score[i + 7]));
    }
    fence_shared_for_wgmma();
    warp_arrive(&s.weights_full);
    if (++slot == kTiles) {
      slot = 0;
      phase ^= 1;
    }
  }
}

// The warpgroup's shares added up: leaves the factor of each head's result for the other one.
template <int kHeads>
__device__ void finish_scores(const DecodeArgs& a, int64_t first_stat, int64_t first_head,
                              Shared<kHeads>& s, float (&sums)[kHeads / 4], uint32_t nan) {
  const int thread = static_cast<int>(threadIdx.x) % 128;
  const int warp = thread / 32;
  const int lane = thread % 32;
#pragma unroll
  for (int i = 0; i < kHeads / 4; ++i) {
    float sum = sums[i];
#pragma unroll
    for (int other = 4; other < 32; other *= 2) sum += __shfl_xor_sync(~0u, sum, other);
    if (lane < 4) s.exchange[warp][i / 2 * 8 + 2 * lane + i % 2] = sum;
  }
  // All heads see a NaN among the entries.
  const bool bad = any_of_group(3, nan != 0);
  if (thread >= kHeads) return;
  const float sum =
      s.exchange[0][thread] + s.exchange[1][thread] + s.exchange[2][thread] + s.exchange[3][thread];
  const float total = bad ? NAN : sum * (1 / kStored);
  constexpr float kUnit = kEntryScale / kStored;
  s.results[thread] = a.split ? kUnit : kUnit / total;
  if (a.split && first_head + thread < a.attend.shape.num_heads) {
    a.stats[first_stat + thread] = make_float2(s.shifts[thread] + 64, total);
  }
}

template <int kHeads>
__device__ void sum_values(const RunEntries<uint8_t>& run, Shared<kHeads>& s,
                           float (&out)[kValueTiles][kHeads / 2]) {
  const int thread = static_cast<int>(threadIdx.x) % 128;
  const int warp = thread / 32;
  const int lane = thread % 32;
  const uint64_t weights = swizzled_descriptor(shared_address(s.weights));
#pragma unroll
  for (int j = 0; j < kValueTiles; ++j) {
#pragma unroll
    for (int i = 0; i < kHeads / 2; ++i) out[j][i] = 0;
  }
  int slot = 0;
  uint32_t phase = 0;
  uint32_t weights_phase = 0;
  for (int first = run.begin; first < run.end; first += kTile) {
    barrier_wait(&s.full[slot], phase);
    barrier_wait(&s.weights_full, weights_phase);
    weights_phase ^= 1;
    fence_shared_for_wgmma();
    if (s.rescale != 0) {
#pragma unroll
      for (int i = 0; i < kHeads / 2; ++i) {
        const float factor = s.factors[i / 4 * 8 + 2 * (lane % 4) + i % 2];
#pragma unroll
        for (int j = 0; j < kValueTiles; ++j) out[j][i] *= factor;
      }
    }
#pragma unroll
    for (int j = 0; j < kValueTiles; ++j) wgmma_hold(out[j]);
    const uint8_t* const columns = s.tiles[slot] + 128 * warp + 16 * (lane / 4);
#pragma unroll 1
    for (int step = 0; step < kTile / 16; ++step) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        uint2 of[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int k = 2 * (lane % 4) + i % 2 + i / 2 * 8;
          of[i] = *reinterpret_cast<const uint2*>(columns + (16 * step + position_of(k)) * kEntry +
                                                  8 * half);
        }
        uint32_t v[2][2][4];
#pragma unroll
        for (int w = 0; w < 2; ++w) {
          const auto x = [&](int i) { return w == 0 ? of[i].x : of[i].y; };
          v[w][0][0] = pair_of<0>(x(0), x(1));
          v[w][0][1] = pair_of<1>(x(0), x(1));
          v[w][0][2] = pair_of<0>(x(2), x(3));
          v[w][0][3] = pair_of<1>(x(2), x(3));
          v[w][1][0] = pair_of<2>(x(0), x(1));
          v[w][1][1] = pair_of<3>(x(0), x(1));
          v[w][1][2] = pair_of<2>(x(2), x(3));
          v[w][1][3] = pair_of<3>(x(2), x(3));
          wgmma_fence();
          wgmma_registers<kHeads>(out[4 * half + 2 * w], v[w][0], weights + 2 * step, 1);
          wgmma_registers<kHeads>(out[4 * half + 2 * w + 1], v[w][1], weights + 2 * step, 1);
          wgmma_commit();
          if (half + w > 0) wgmma_wait<1>();
        }
      }
      wgmma_wait<0>();
    }
#pragma unroll
    for (int j = 0; j < kValueTiles; ++j) wgmma_hold(out[j]);
    warp_arrive(&s.weights_empty);
    sync_warps(4, 128);  // all four warps have read the tile
    if (thread == 0 && first + kTiles * kTile < run.end) {
      ask(run, first + kTiles * kTile, s.tiles[slot], &s.full[slot]);
    }
    if (++slot == kTiles) {
      slot = 0;
      phase ^= 1;
    }
  }
}

// The results, through shared memory, where nobody reads the tiles any more. A lane has 16
// neighbouring columns of each of its heads; partial results leave in bulk, a row each.
template <int kHeads>
__device__ void store_values(const DecodeArgs& a, int64_t token, int64_t first_stat,
                             int64_t first_head, Shared<kHeads>& s,
                             const float (&out)[kValueTiles][kHeads / 2]) {
  constexpr int kRow = kRank + 4;  // floats; the heads of a quarter lie in different banks
  static_assert(sizeof(float) * kHeads * kRow <= sizeof(s.tiles));
  const int thread = static_cast<int>(threadIdx.x) % 128;
  const int lane = thread % 32;
  auto* const staged = reinterpret_cast<float*>(s.tiles);
  float* const mine = staged + 128 * (thread / 32) + 16 * (lane / 4);
#pragma unroll
  for (int i = 0; i < kHeads / 4; ++i) {
    const int head = i / 2 * 8 + 2 * (lane % 4) + i % 2;
    const float factor = s.results[head];
    const int at = i / 2 * 4 + i % 2;  // and 2 behind, of the odd columns
#pragma unroll
    for (int j = 0; j < kValueTiles; j += 2) {
      *reinterpret_cast<float4*>(mine + head * kRow + 2 * j) =
          make_float4(out[j][at] * factor, out[j][at + 2] * factor, out[j + 1][at] * factor,
                      out[j + 1][at + 2] * factor);
    }
  }
  const int heads = static_cast<int>(min(a.attend.shape.num_heads - first_head, int64_t{kHeads}));
  if (a.split) {
    fence_shared_for_wgmma();
    sync_warps(4, 128);
    if (thread < heads) {
      bulk_store(a.partial + (first_stat + thread) * kRank, staged + thread * kRow,
                 sizeof(float) * kRank);
    }
    return;
  }
  sync_warps(4, 128);
#pragma unroll 4
  for (int i = thread; i < heads * (kRank / 2); i += 128) {
    const int head = i / (kRank / 2);
    const int col = i % (kRank / 2) * 2;
    const float2 pair = *reinterpret_cast<const float2*>(staged + head * kRow + col);
    store_latents(a.attend, token, first_head + head, col, pair.x, pair.y, 1);
  }
}

template <int kHeads>
__global__ __launch_bounds__(kThreads,
                             2) void mla_narrow_kernel(const __grid_constant__ DecodeArgs a) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ __align__(1024) uint8_t raw[];
  auto& s = *reinterpret_cast<Shared<kHeads>*>(raw);
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t token = a.first_token + blockIdx.z;
  const int64_t first_head = int64_t{blockIdx.y} * kHeads;
  const int64_t first_stat =
      (int64_t{blockIdx.z} * a.runs + blockIdx.x) * a.attend.shape.num_heads + first_head;
  let_next_start();
  // What is known of the batch was there before the step's launches.
  const TokenView view = a.attend.views[token];
  const int64_t length = run_length(view.visible, a.max_runs);
  const int begin = static_cast<int>(min(static_cast<int>(blockIdx.x) * length, view.visible));
  const int end = static_cast<int>(min(begin + length, view.visible));
  if (begin >= end) return;
  const RunEntries<uint8_t> run{a, view, begin, end};
  if (thread == 128) {
    for (int i = 0; i < kTiles; ++i) barrier_init(&s.full[i], 1);
    barrier_init(&s.weights_full, 4 * kWarpArrivals);
    barrier_init(&s.weights_empty, 4 * kWarpArrivals);
    barrier_init(&s.results_full, 4 * kWarpArrivals);
    fence_barrier_init();
    for (int i = 0; i < kTiles && begin + i * kTile < end; ++i) {
      prefetch_near(run.table_entry(begin + i * kTile));
    }
    wait_for_previous();
    for (int i = 0; i < kTiles && begin + i * kTile < end; ++i) {
      ask(run, begin + i * kTile, s.tiles[i], &s.full[i]);
    }
  }
  if (thread < kHeads) s.shifts[thread] = -INFINITY;
  wait_for_previous();
  bring_queries<kHeads>(a, token, first_head, s);
  fence_shared_for_wgmma();
  __syncthreads();

  if (thread < 128) {
    give_registers<80>();
    float sums[kHeads / 4];
    uint32_t nan = 0;
    score_tiles<kHeads>(a, run, s, sums, nan);
    finish_scores<kHeads>(a, first_stat, first_head, s, sums, nan);
    warp_arrive(&s.results_full);
  } else {
    take_registers<176>();
    float out[kValueTiles][kHeads / 2];
    sum_values<kHeads>(run, s, out);
    barrier_wait(&s.results_full, 0);
    store_values<kHeads>(a, token, first_stat, first_head, s, out);
  }
#endif
}

template <int kHeads>
cudaError_t launch(const DecodeArgs& args, int64_t tokens, cudaStream_t stream) {
  constexpr auto kernel = mla_narrow_kernel<kHeads>;
  constexpr int kShared = static_cast<int>(sizeof(Shared<kHeads>));
  static_assert(kShared <= 113 * 1024, "two blocks to a multiprocessor");
  const cudaError_t configured = allow_shared<kernel>(kShared);
  if (configured != cudaSuccess) return configured;
  const auto head_blocks =
      static_cast<unsigned>((args.attend.shape.num_heads + kHeads - 1) / kHeads);
  const dim3 grid(static_cast<unsigned>(args.runs), head_blocks, static_cast<unsigned>(tokens));
  return launch_overlapped(kernel, grid, dim3(kThreads), kShared, stream, args);
}

}  // namespace

cudaError_t launch_mla_narrow(const DecodeArgs& args, int64_t tokens, cudaStream_t stream) {
  return args.attend.shape.num_heads <= 16 ? launch<16>(args, tokens, stream)
                                           : launch<32>(args, tokens, stream);
}

}  // namespace nibble::cuda
