// Products of up to 16 tokens a group with NVFP4 weights that go from memory straight to registers.
//
// The work and its order are those of linear_stream.cuh: each block takes an equal run of row
// tiles, its 8 warps take every 8th unit of columns of a chunk of them, sums over the warps are
// added in a fixed order. But no shared memory lies between a weight and the lane that multiplies
// it: a lane loads the 18 registers of two tiles' next unit while it decodes the last ones, so
// there are no barriers and no waiting warp in the loop. Two tiles at a time are two independent
// chains of mma.
//
// Bound: issue slots of the decoding (about 2 lane instructions a weight).
#pragma once

#include <cstdint>

#include "nibble/kernels/cuda/launch.cuh"
#include "nibble/kernels/cuda/linear_stream.h"
#include "nibble/kernels/cuda/packed_layout.h"
#include "nibble/kernels/cuda/ptx.cuh"
#include "nibble/kernels/cuda/stream_rows.cuh"
#include "nibble/kernels/cuda/units.cuh"

namespace nibble::cuda {

constexpr int kDirectWarps = 8;
constexpr int kDirectThreads = 32 * kDirectWarps;

// What a lane holds of a unit of two tiles.
struct UnitPair {
  uint4 words[2][2];  // tile, half
  uint32_t scales[2];
};

__device__ inline uint4 load_once(const uint8_t* pointer) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(pointer));
  return v;
}
__device__ inline uint32_t load_once_word(const uint8_t* pointer) {
  uint32_t v;
  asm volatile("ld.global.nc.L1::no_allocate.L2::128B.u32 %0, [%1];" : "=r"(v) : "l"(pointer));
  return v;
}

// A run of tiles of one piece of work that a block takes at a time.
struct DirectChunk {
  int work;
  int tile;
  int count;  // of tiles
  int pairs;  // of units for each unit of columns: gate and up of a tile, or two tiles
};

template <int kTiles>
__device__ DirectChunk direct_chunk(const StreamArgs& p, int position, int end) {
  DirectChunk c;
  c.work = position / p.tiles;
  c.tile = position - c.work * p.tiles;
  c.count = min(min(end - position, p.tiles - c.tile), p.gate_up ? kTiles / 2 : kTiles);
  c.pairs = p.gate_up ? c.count : (c.count + 1) / 2;
  return c;
}

// Where the next weights of a warp come from.
template <int kTiles>
struct DirectCursor {
  int position;
  int end;
  int unit;
  int pair;
  DirectChunk chunk;
  const uint8_t* first;   // of the chunk's pair 0: this lane's 16 bytes of unit 0
  const uint8_t* second;  // the other tile's
  int64_t step;           // from one pair to the next
  int64_t offset;

  __device__ void enter(const StreamArgs& p, int passes, int warp, int lane) {
    unit = warp;
    pair = 0;
    offset = int64_t{warp} * kNvfp4UnitBytes;
    if (position >= end) return;
    chunk = direct_chunk<kTiles>(p, position, end);
    const int group = p.work != nullptr ? __ldcg(&p.work[chunk.work].group) : chunk.work / passes;
    const GroupWeights weights = group_weights(p, group);
    const int64_t tile_bytes = int64_t{p.units} * kNvfp4UnitBytes;
    first = weights.a + chunk.tile * tile_bytes + 16 * lane;
    second = p.gate_up ? weights.b + chunk.tile * tile_bytes + 16 * lane : first + tile_bytes;
    step = p.gate_up ? tile_bytes : 2 * tile_bytes;
  }

  __device__ void load(const StreamArgs& p, int passes, int warp, int lane, UnitPair& to) {
    if (position >= end) return;
    const uint8_t* const at = first + offset;
    to.words[0][0] = load_once(at);
    to.words[0][1] = load_once(at + 512);
    to.scales[0] = load_once_word(at + 1024 - 12 * lane);
    if (p.gate_up || 2 * pair + 1 < chunk.count) {
      const uint8_t* const other = second + offset;
      to.words[1][0] = load_once(other);
      to.words[1][1] = load_once(other + 512);
      to.scales[1] = load_once_word(other + 1024 - 12 * lane);
    }
    offset += step;
    if (++pair < chunk.pairs) return;
    pair = 0;
    unit += kDirectWarps;
    offset = int64_t{unit} * kNvfp4UnitBytes;
    if (unit < p.units) return;
    position += chunk.count;
    enter(p, passes, warp, lane);
  }
};

template <int NT, int kCount>
__device__ void direct_multiply(const UnitPair& unit, const UnitTokens<NT>& tokens,
                                float4 (&totals)[2][NT]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    Nvfp4Unit::Half h[kCount];
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      h[i] = Nvfp4Unit::half_of(unit.words[i][half], unit.scales[i], half);
    }
#pragma unroll
    for (int step = 0; step < 4; ++step) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        const AFragment a = Nvfp4Unit::fragment(h[i], step);
#pragma unroll
        for (int n = 0; n < NT; ++n) {
          const uint4& columns = tokens.b[half][n][step / 2];
          mma_bf16(totals[i][n], a.r, word(columns, step % 2 * 2), word(columns, step % 2 * 2 + 1));
        }
      }
    }
  }
}

template <typename X, int NT, int kTiles, int kBlocks>
__global__ __launch_bounds__(kDirectThreads, kBlocks) void linear_direct_kernel(const StreamArgs p,
                                                                                int passes) {
  extern __shared__ __align__(128) float4 direct_sums[];  // [2][warps][kTiles][NT][32]
  constexpr int kWarpSums = kTiles * NT * 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  let_next_start();
  // Weights may come before the launches in front of this one are done; what they wrote may not.
  const bool waits_first = p.work != nullptr && !p.work_is_older;
  if (waits_first) wait_for_previous();

  // Past L1, which may hold an earlier step's list where this launch started early.
  const int num_work = p.work != nullptr ? __ldcg(p.num_work) : p.num_groups * passes;
  // Equal runs, the longer ones first; divisions of 64 bits would take a microsecond.
  const int total = num_work * p.tiles;
  const int index = static_cast<int>(blockIdx.x);
  const int each = total / static_cast<int>(gridDim.x);
  const int longer = total - each * static_cast<int>(gridDim.x);
  int position = index * each + min(index, longer);
  const int end = position + each + (index < longer ? 1 : 0);
  DirectCursor<kTiles> cursor;
  cursor.position = position;
  cursor.end = end;
  cursor.enter(p, passes, warp, lane);
  // Registers alone keep too few bytes on their way while a kernel starts.
  if (threadIdx.x == 0 && position < end) {
    const int bytes = p.units * kNvfp4UnitBytes;
    prefetch_far(cursor.first, bytes);
    if (p.gate_up || cursor.chunk.count > 1) prefetch_far(cursor.second, bytes);
  }
  UnitPair buffers[2] = {};
  cursor.load(p, passes, warp, lane, buffers[0]);
  cursor.load(p, passes, warp, lane, buffers[1]);
  if (!waits_first) wait_for_previous();

  DirectChunk now = {};
  StreamRows rows = {};
  const X* x = nullptr;
  if constexpr (sizeof(X) == 2) {
    x = p.x;
  } else {
    x = p.x_float;
  }
  const X* x_rows[NT];  // of this lane's token, column 16 (lane % 4)
  const auto enter = [&] {
    if (position >= end) return;
    now = direct_chunk<kTiles>(p, position, end);
    if (p.work != nullptr) {
      const StreamWork* const work = p.work + now.work;
      rows = {__ldcg(&work->group), __ldcg(&work->first), __ldcg(&work->count)};
    } else {
      const int first = now.work % passes * (8 * NT);
      rows = {now.work / passes, first, min(8 * NT, p.num_tokens - first)};
    }
#pragma unroll
    for (int n = 0; n < NT; ++n) {
      const int r = 8 * n + lane / 4;
      x_rows[n] = nullptr;
      if (r < rows.count) {
        const int row = activation_row(p, rows.first + r);
        x_rows[n] = x + row * p.x_row_stride + rows.group * p.x_group_stride + 16 * (lane % 4);
        for (int unit = warp; unit < p.units; unit += kDirectWarps) {
          prefetch_near(x_rows[n] + unit * kUnitCols);
          prefetch_near(x_rows[n] + unit * kUnitCols + 64);
        }
      }
    }
  };
  enter();

  int buffer = 0;  // of the sums
  int unit = warp;
  int pair = 0;
  UnitTokens<NT> tokens;
  float4* sums = direct_sums + warp * kWarpSums + lane;

  // Multiplies the next pair and loads the one after the next; false at the end.
  const auto step = [&](UnitPair& weights) {
    if (pair == 0) load_tokens(x_rows, unit * kUnitCols, tokens);
    float4 totals[2][NT];
    const bool both = p.gate_up || 2 * pair + 1 < now.count;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int n = 0; n < NT; ++n) {
        totals[i][n] = unit == warp ? make_float4(0, 0, 0, 0) : sums[(i * NT + n) * 32];
      }
    }
    if (both) {
      direct_multiply<NT, 2>(weights, tokens, totals);
    } else {
      direct_multiply<NT, 1>(weights, tokens, totals);
    }
    cursor.load(p, passes, warp, lane, weights);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int n = 0; n < NT; ++n) sums[(i * NT + n) * 32] = totals[i][n];
    }
    sums += 2 * NT * 32;
    if (++pair < now.pairs) return true;
    sums -= now.pairs * (2 * NT * 32);
    pair = 0;
    unit += kDirectWarps;
    if (unit < p.units) return true;
    unit = warp;

    // The chunk is done: its sums over the warps, in their order.
    const DirectChunk done = now;
    const StreamRows done_rows = rows;
    position += now.count;
    enter();
    sync_warps(1, kDirectThreads);
    const float4* const all = direct_sums + buffer * kDirectWarps * kWarpSums;
    // Whoever writes these sums again has passed the next chunk's barrier, and so have we.
    buffer ^= 1;
    sums = direct_sums + buffer * kDirectWarps * kWarpSums + warp * kWarpSums + lane;
    for (int i = static_cast<int>(threadIdx.x); i < done.count * NT * 32; i += kDirectThreads) {
      const int n = i / 32 % NT;
      const int tile = i / 32 / NT;
      if (8 * n + 2 * (i % 4) >= done_rows.count) continue;
      const auto total_of = [&](int item) {
        float4 sum = make_float4(0, 0, 0, 0);
#pragma unroll
        for (int w = 0; w < kDirectWarps; ++w) {
          const float4 part = all[w * kWarpSums + (item * NT + n) * 32 + i % 32];
          sum = make_float4(sum.x + part.x, sum.y + part.y, sum.z + part.z, sum.w + part.w);
        }
        return sum;
      };
      const float4 a = total_of(p.gate_up ? 2 * tile : tile);
      const float4 b = p.gate_up ? total_of(2 * tile + 1) : a;
      write_tile(p, done_rows, done.tile + tile, n, i % 32, a, b);
    }
    return position < end;
  };
  if (position >= end) return;
  while (step(buffers[0]) && step(buffers[1])) {
  }
}

template <typename X, int NT, int kTiles, int kBlocks>
cudaError_t launch_direct_config(const StreamArgs& args, cudaStream_t stream) {
  constexpr int kShared = 2 * kDirectWarps * kTiles * NT * 32 * 16;
  constexpr auto kernel = linear_direct_kernel<X, NT, kTiles, kBlocks>;
  const cudaError_t configured = allow_shared<kernel>(kShared);
  if (configured != cudaSuccess) return configured;
  static const int num_sms = multiprocessors();
  const int passes = args.work != nullptr ? 1 : (args.num_tokens + 8 * NT - 1) / (8 * NT);
  int64_t blocks = kBlocks * num_sms;
  if (args.work == nullptr) {
    blocks = min(blocks, static_cast<int64_t>(args.num_groups) * passes * args.tiles);
  }
  return launch_overlapped(kernel, dim3(static_cast<unsigned>(blocks)), dim3(kDirectThreads),
                           kShared, stream, args, passes);
}

}  // namespace nibble::cuda
