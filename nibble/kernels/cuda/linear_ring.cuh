// Products of up to 16 tokens a group with NVFP4 weights, cut evenly over the GPU.
//
// Each multiprocessor has one block of 16 warps, or two of 8. A block takes an equal run of row
// tiles, cut into chunks of up to four tiles of one matrix (two of gate and two of up). All units
// of columns of its chunks in a row are cut evenly over its warps. A warp brings what it needs into
// a ring of its own in shared memory: a stage is one unit of columns of the chunk's tiles, a bulk
// copy a tile; nobody waits for another warp. The sums of a chunk stay in registers; a chunk that
// one warp has alone is written from there, parts of the others are added up in the order of the
// warps.
//
// With experts the cut depends on how many there are, and so a token's last bits on the step's
// other tokens; linear_direct.cuh is for where they may not.
//
// Bound: memory; a stage of 4608 bytes takes about 500 instructions.
#pragma once

#include <cstdint>

#include "nibble/kernels/cuda/launch.cuh"
#include "nibble/kernels/cuda/linear_stream.h"
#include "nibble/kernels/cuda/packed_layout.h"
#include "nibble/kernels/cuda/ptx.cuh"
#include "nibble/kernels/cuda/stream_rows.cuh"
#include "nibble/kernels/cuda/units.cuh"

namespace nibble::cuda {

constexpr int kRingTilesLog2 = 2;
constexpr int kRingTiles = 1 << kRingTilesLog2;
constexpr int kRingStages = 2;
constexpr int kRingStageBytes = kRingTiles * kNvfp4UnitBytes;

// Tiles of one matrix that are multiplied at a time, and their tokens.
struct RingChunk {
  int tile;    // its first row tile
  int pieces;  // tiles of weights: twice as many as row tiles for gate and up
  StreamRows rows;
};

// In a block's table. first: below 65536, as with experts it is a slot of a step, otherwise 0.
struct PackedRingChunk {
  uint16_t tile;
  uint16_t group;
  uint16_t first;
  uint8_t count;
  uint8_t pieces;

  __device__ RingChunk chunk() const { return {tile, pieces, {group, first, count}}; }
};
constexpr int kRingChunks = 512;  // that a block has at most

// Writes the chunks of this block to `table`, gives their number: its run of row tiles, cut where a
// matrix ends and then evenly.
__device__ inline int ring_chunks(const StreamArgs& p, PackedRingChunk* table) {
  const int most_log2 = p.gate_up ? kRingTilesLog2 - 1 : kRingTilesLog2;
  const int blocks = static_cast<int>(gridDim.x);
  const int block = static_cast<int>(blockIdx.x);
  // Past L1, which may hold an earlier step's list where this launch started early.
  const int all = (p.work != nullptr ? __ldcg(p.num_work) : p.num_groups) * p.tiles;
  const int each = all / blocks;
  const int longer = all - each * blocks;  // the longer runs come first
  const int begin = block * each + min(block, longer);
  const int end = begin + each + (block < longer ? 1 : 0);
  if (begin >= end) return 0;
  const bool is_one = all <= p.tiles;  // no divisions then
  const int first_work = is_one ? 0 : begin / p.tiles;
  const int last_work = is_one ? 0 : (end - 1) / p.tiles;
  const int first_tile = begin - first_work * p.tiles;
  const int last_end = end - last_work * p.tiles;
  const auto chunks_of = [&](int tiles) { return (tiles + (1 << most_log2) - 1) >> most_log2; };
  const bool one_work = first_work == last_work;
  const int first_chunks = chunks_of((one_work ? last_end : p.tiles) - first_tile);
  const int whole_chunks = chunks_of(p.tiles);
  const int count =
      one_work ? first_chunks
               : first_chunks + (last_work - first_work - 1) * whole_chunks + chunks_of(last_end);
  for (int i = static_cast<int>(threadIdx.x); i < count; i += static_cast<int>(blockDim.x)) {
    const bool in_first = i < first_chunks;
    const int later = in_first ? 0 : (i - first_chunks) / whole_chunks;
    const int work = in_first ? first_work : first_work + 1 + later;
    const int index = in_first ? i : i - first_chunks - later * whole_chunks;
    const int base = in_first ? first_tile : 0;
    const int tiles = (work == last_work ? last_end : p.tiles) - base;
    const int chunks = chunks_of(tiles);
    const int less = tiles / chunks;
    const int more = tiles - less * chunks;
    const int from = index * less + min(index, more);
    const int number = less + (index < more ? 1 : 0);
    StreamWork w{work, 0, 0};
    if (p.work != nullptr) {
      w.group = __ldcg(&p.work[work].group);
      w.first = __ldcg(&p.work[work].first);
      w.count = __ldcg(&p.work[work].count);
    }
    table[i] = {static_cast<uint16_t>(base + from), static_cast<uint16_t>(w.group),
                static_cast<uint16_t>(w.first), static_cast<uint8_t>(w.count),
                static_cast<uint8_t>(p.gate_up ? 2 * number : number)};
  }
  return count;
}

// Brings a warp's stages into its ring, one after the other.
class RingFeed {
 public:
  __device__ RingFeed(const StreamArgs& p, uint8_t* ring, uint64_t* full)
      : p_(p), ring_(ring), full_(full), policy_(evict_first_policy()) {}

  // What follows is `units` units, from unit `unit` of chunk `chunk` on.
  __device__ void start(const PackedRingChunk* chunk, int unit, int units) {
    remaining_ = units;
    next_ = chunk;
    if (remaining_ > 0) enter(unit);
  }

  // Sends for the next stage, if there is one.
  __device__ void send() {
    if (remaining_ <= 0) return;
    const int lane = static_cast<int>(threadIdx.x) % 32;
    if (lane == 0) barrier_expect(&full_[slot_], pieces_ * kNvfp4UnitBytes);
    __syncwarp();
    if (lane < pieces_) {
      bulk_copy(ring_ + slot_ * kRingStageBytes + lane * kNvfp4UnitBytes, source_, kNvfp4UnitBytes,
                &full_[slot_], policy_);
    }
    source_ += kNvfp4UnitBytes;
    slot_ = slot_ + 1 == kRingStages ? 0 : slot_ + 1;
    if (--remaining_ > 0 && --left_ == 0) enter(0);
  }

 private:
  __device__ void enter(int unit) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const RingChunk chunk = (next_++)->chunk();
    pieces_ = chunk.pieces;
    left_ = p_.units - unit;
    const GroupWeights weights = group_weights(p_, chunk.rows.group);
    const int tile = chunk.tile + (p_.gate_up ? lane / 2 : lane);
    source_ = (p_.gate_up && lane % 2 == 1 ? weights.b : weights.a) +
              (static_cast<int64_t>(tile) * p_.units + unit) * kNvfp4UnitBytes;
  }

  const StreamArgs& p_;
  const PackedRingChunk* next_ = nullptr;
  uint8_t* ring_;
  uint64_t* full_;
  uint64_t policy_;
  const uint8_t* source_ = nullptr;  // lane j: of piece j
  int pieces_ = 0;
  int left_ = 0;       // of the chunk's units
  int remaining_ = 0;  // of the warp's
  int slot_ = 0;
};

template <int NT>
__device__ void ring_multiply(const uint8_t* unit, int lane, const UnitTokens<NT>& tokens,
                              float4 (&sums)[NT]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const Nvfp4Unit::Half h = Nvfp4Unit::load(unit, half, lane);
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      const AFragment a = Nvfp4Unit::fragment(h, step);
#pragma unroll
      for (int n = 0; n < NT; ++n) {
        const uint4& columns = tokens.b[half][n][step / 2];
        mma_bf16(sums[n], a.r, word(columns, step % 2 * 2), word(columns, step % 2 * 2 + 1));
      }
    }
  }
}

// X: uint16_t (BF16), or float, which is rounded here. Blocks of kWarps warps, 16 on an SM.
template <typename X, int NT, int kWarps>
__global__ __launch_bounds__(32 * kWarps, 16 / kWarps) void linear_ring_kernel(
    const __grid_constant__ StreamArgs p, int passes) {
  constexpr int kParts = kRingTiles * NT * 32;
  extern __shared__ __align__(128) uint8_t ring_shared[];
  __shared__ uint64_t full[kWarps][kRingStages];
  __shared__ PackedRingChunk chunks[kRingChunks];
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  uint8_t* const ring = ring_shared + warp * kRingStages * kRingStageBytes;
  // For warp_meet; left out where nothing reads it.
  __shared__ uint64_t met[kWarps];
  uint32_t met_phase = 0;
  if (kWarpArrivals > 1 && lane == 0) barrier_init(&met[warp], kWarpArrivals);
  if (lane < kRingStages) barrier_init(&full[warp][lane], 1);
  fence_barrier_init();
  // Weights may come before the launches in front of this one are done; what they wrote may not.
  // The next launch may start when all blocks have said so, and then what is in front of this
  // one is done: StreamArgs::work_is_older.
  const bool waits_first = p.work != nullptr && !p.work_is_older;
  if (waits_first) wait_for_previous();
  let_next_start();
  const int all_units = ring_chunks(p, chunks) * p.units;
  __syncthreads();
  const auto run_begin = [&](int w) { return all_units * w / kWarps; };
  const int begin = run_begin(warp);
  const int end = run_begin(warp + 1);
  const int first_chunk = begin / p.units;
  RingFeed feed(p, ring, full[warp]);
  const auto refill = [&] {
    feed.start(chunks + first_chunk, begin - first_chunk * p.units, end - begin);
    for (int i = 0; i < kRingStages; ++i) feed.send();
  };
  refill();
  if (!waits_first) wait_for_previous();

  // A warp keeps at most two parts of sums: of the chunk in which its run begins, and of one that
  // begins in it and is not finished, for which its ring is free then.
  const auto part_of = [&](int w, bool begins_before) {
    return reinterpret_cast<float4*>(
        begins_before ? ring_shared + w * kRingStages * kRingStageBytes
                      : ring_shared + kWarps * kRingStages * kRingStageBytes + w * kParts * 16);
  };
  const X* x = nullptr;
  if constexpr (sizeof(X) == 2) {
    x = p.x;
  } else {
    x = p.x_float;
  }
  int slot = 0;
  uint32_t phase = 0;
#pragma unroll 1
  for (int pass = 0; pass < passes; ++pass) {
    const auto chunk_at = [&](int index) {
      RingChunk chunk = chunks[index].chunk();
      if (p.work == nullptr) {
        chunk.rows.first = pass * 8 * NT;
        chunk.rows.count = min(8 * NT, p.num_tokens - chunk.rows.first);
      }
      return chunk;
    };
    if (begin == end) {  // its part is added all the same
#pragma unroll
      for (int j = 0; j < kRingTiles * NT; ++j) {
        part_of(warp, false)[j * 32 + lane] = make_float4(0, 0, 0, 0);
      }
    }
    int index = first_chunk;
    int chunk_begin = first_chunk * p.units;
#pragma unroll 1
    for (int at = begin; at < end; ++index, chunk_begin += p.units) {
      const RingChunk chunk = chunk_at(index);
      const X* x_rows[NT];
      find_rows(p, x, chunk.rows, lane, x_rows);
      float4 sums[kRingTiles][NT];
#pragma unroll
      for (int j = 0; j < kRingTiles; ++j) {
#pragma unroll
        for (int n = 0; n < NT; ++n) sums[j][n] = make_float4(0, 0, 0, 0);
      }
      const int start = at;
      const int stop = min(end, chunk_begin + p.units);
      // One tile of tokens leaves registers for the next unit's.
      constexpr bool kAhead = NT == 1;
      int col = (at - chunk_begin) * kUnitCols;
      UnitTokens<NT> next;
      if constexpr (kAhead) load_tokens(x_rows, col, next);
#pragma unroll 1
      for (; at < stop; ++at) {
        UnitTokens<NT> tokens;
        if constexpr (kAhead) {
          tokens = next;
        } else {
          load_tokens(x_rows, col, tokens);
        }
        // The last unit's next one is itself: it is not used.
        if (at + 1 < stop) col += kUnitCols;
        barrier_wait(&full[warp][slot], phase);
        const uint8_t* const stage = ring + slot * kRingStageBytes;
        TokenLoad<X, NT> load;
#pragma unroll
        for (int j = 0; j < kRingTiles; ++j) {
          if constexpr (kAhead) {
            if (j % 2 == 0) load.load(x_rows, col + 32 * j);
          }
          if (j < chunk.pieces) {
            ring_multiply(stage + j * kNvfp4UnitBytes, lane, tokens, sums[j]);
          }
          if constexpr (kAhead) {
            if (j % 2 == 1) load.store(next.b[j / 2]);
          }
        }
        warp_meet(&met[warp], met_phase);  // all lanes have read the slot
        feed.send();
        if (++slot == kRingStages) {
          slot = 0;
          phase ^= 1;
        }
      }
      if (start == chunk_begin && stop == chunk_begin + p.units) {
#pragma unroll
        for (int j = 0; j < kRingTiles; ++j) {
          if (j >= chunk.pieces || (p.gate_up && j % 2 == 1)) continue;
          const int tile = chunk.tile + (p.gate_up ? j / 2 : j);
#pragma unroll
          for (int n = 0; n < NT; ++n) {
            write_tile(p, chunk.rows, tile, n, lane, sums[j][n], sums[j | 1][n]);
          }
        }
        continue;
      }
      // A run that begins in an earlier chunk is over here, and so is its use of the ring.
      float4* const part = part_of(warp, begin < chunk_begin) + lane;
#pragma unroll
      for (int j = 0; j < kRingTiles; ++j) {
#pragma unroll
        for (int n = 0; n < NT; ++n) part[(j * NT + n) * 32] = sums[j][n];
      }
    }

    // Chunks that several warps have parts of: those in which a run begins that is not the chunk's
    // first. Lane w of every warp looks at run w; then each chunk is everybody's, an output a
    // thread.
    __syncthreads();
    const int boundary = run_begin(lane);
    const int boundary_chunk = boundary / p.units;
    unsigned shared =
        __ballot_sync(~0u, lane > 0 && lane < kWarps && boundary != boundary_chunk * p.units &&
                               run_begin(lane - 1) <= boundary_chunk * p.units);
#pragma unroll 1
    for (; shared != 0; shared &= shared - 1) {
      const int w = __ffs(static_cast<int>(shared)) - 1;
      const int shared_chunk = __shfl_sync(~0u, boundary_chunk, w);
      const int shared_begin = shared_chunk * p.units;
      // The first of the later runs that does not begin in it.
      const int last = min(kWarps, (kWarps * (shared_begin + p.units) + all_units - 1) / all_units);
      const RingChunk chunk = chunk_at(shared_chunk);
      const int pieces_each = p.gate_up ? 2 : 1;
      const int num_rows = chunk.pieces / pieces_each * kTileRows;
      const float* const before =
          reinterpret_cast<const float*>(part_of(w - 1, run_begin(w - 1) < shared_begin));
      const float* const own = reinterpret_cast<const float*>(part_of(w, false));
      constexpr int kPartFloats = kParts * 4;
#pragma unroll 1
      for (int i = static_cast<int>(threadIdx.x); i < num_rows * chunk.rows.count;
           i += 32 * kWarps) {
        const int row = i % num_rows;
        const int token = i / num_rows;
        // Where mma leaves element (row, token) of a tile: lane and register.
        const int tile = row / kTileRows * pieces_each;
        const int at = ((tile * NT + token / 8) * 32 + row % 8 * 4 + token % 8 / 2) * 4 +
                       row % kTileRows / 8 * 2 + token % 2;
        const int up = p.gate_up ? NT * 32 * 4 : 0;
        float a = before[at];
        float b = before[at + up];
#pragma unroll 4
        for (int v = 0; v < last - w; ++v) {
          a += own[v * kPartFloats + at];
          b += own[v * kPartFloats + at + up];
        }
        write_value(p, chunk.rows, chunk.tile * kTileRows + row, token, a, b);
      }
    }
    if (pass + 1 == passes) break;
    __syncthreads();  // the parts may be overwritten
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    refill();
  }
}

// Of a block: dynamic, and more than what is static.
template <int NT, int kWarps>
constexpr int ring_shared_bytes() {
  return kWarps * (kRingStages * kRingStageBytes + kRingTiles * NT * 32 * 16);
}
constexpr int kRingStaticBytes = 8192;
static_assert(sizeof(PackedRingChunk) * kRingChunks + 1024 <= kRingStaticBytes);

template <typename X, int NT, int kWarps>
cudaError_t launch_ring_config(const StreamArgs& args, cudaStream_t stream) {
  constexpr int kShared = ring_shared_bytes<NT, kWarps>();
  constexpr auto kernel = linear_ring_kernel<X, NT, kWarps>;
  const cudaError_t configured = allow_shared<kernel>(kShared);
  if (configured != cudaSuccess) return configured;
  static const int num_sms = multiprocessors();
  const int passes = args.work != nullptr ? 1 : (args.num_tokens + 8 * NT - 1) / (8 * NT);
  int64_t blocks = 16 / kWarps * num_sms;
  if (args.work == nullptr) {
    // By the weight's shape alone, as the order of sums depends on it.
    blocks = min(blocks, static_cast<int64_t>(args.num_groups) * args.tiles);
  }
  return launch_overlapped(kernel, dim3(static_cast<unsigned>(blocks)), dim3(32 * kWarps), kShared,
                           stream, args, passes);
}

}  // namespace nibble::cuda
