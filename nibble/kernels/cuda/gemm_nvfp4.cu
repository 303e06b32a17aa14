// A block takes 256 weight rows (128 of gate and 128 of up) and up to 128 tokens of one expert. Two
// warpgroups of consumers take 128 of the rows each, as two products of 64 rows; each warp decodes
// its own 16 rows, four steps of 16 columns at a time, while the last four are multiplied. A warp
// of the third warpgroup, which gives its registers to the others, brings weights and tokens, 128
// columns at a time.
//
// Bound: the tensor cores; at 64 tokens a group, also the bytes of tokens and weights from L2.
#include "nibble/kernels/cuda/gemm_nvfp4.h"
#include "nibble/kernels/cuda/launch.cuh"
#include "nibble/kernels/cuda/numeric.cuh"
#include "nibble/kernels/cuda/packed_layout.h"
#include "nibble/kernels/cuda/ptx.cuh"
#include "nibble/kernels/cuda/units.cuh"
#include "nibble/kernels/cuda/wgmma.cuh"

namespace nibble::cuda {
namespace {

constexpr int kConsumerWarps = 8;
constexpr int kThreads = 32 * kConsumerWarps + 128;
constexpr int kStages = 4;
constexpr int kTiles = 16;  // of weights, a block
constexpr int kTokenBytes = 2 * kGemmTokens * 128;
constexpr int kStageBytes = kTokenBytes + kTiles * kNvfp4UnitBytes;
static_assert(kStageBytes % 1024 == 0);
constexpr int kShared = kStages * kStageBytes + 1024;  // and what alignment takes

struct Ring {
  uint64_t full[kStages];
  uint64_t empty[kStages];
};

// One of the block's tiles of work.
struct Tile {
  StreamWork work;
  const uint8_t* a;
  const uint8_t* b;
  float scale_a;
  float scale_b;
  int first_tile;  // of weights: of gate and of up, or of the first half of rows
  int count;       // of tokens, up to a multiple of 8
};

// Weight tiles of a block: 8 of each of two matrices, or 16 of one.
__device__ int blocks_of_rows(const GemmArgs& p) {
  const int tiles = p.gate_up ? kTiles / 2 : kTiles;
  return (p.tiles + tiles - 1) / tiles;
}

__device__ Tile tile_at(const GemmArgs& p, const StreamWork* work, int index) {
  const int row_blocks = blocks_of_rows(p);
  Tile t;
  t.work = work[index / row_blocks];
  const StreamGroup g = p.groups != nullptr ? p.groups[t.work.group] : p.group;
  t.a = g.a;
  t.b = g.b;
  t.scale_a = g.scale_a * Nvfp4Unit::kScale;
  t.scale_b = g.scale_b * Nvfp4Unit::kScale;
  t.first_tile = index % row_blocks * (p.gate_up ? kTiles / 2 : kTiles);
  t.count = (t.work.count + 7) / 8 * 8;
  return t;
}

// Lanes 0 to 15 bring a tile of weights each, lanes 16 and 17 the tokens' two halves of a unit.
// Consumer warp w of warpgroup v finds its rows in slots 8 v + w (gate, or the first 64) and
// 8 v + 4 + w.
__device__ void produce(const GemmArgs& p, const StreamWork* work, int total, uint8_t* shared,
                        Ring& ring) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const uint64_t policy = evict_first_policy();
  int slot = 0;
  uint32_t phase = 1;  // the slots start empty
  for (int index = static_cast<int>(blockIdx.x); index < total;
       index += static_cast<int>(gridDim.x)) {
    const Tile t = tile_at(p, work, index);
    const uint8_t* source = nullptr;
    int64_t step = kNvfp4UnitBytes;
    int bytes = 0;
    int offset = 0;
    if (lane < kTiles) {
      const int group = lane / 8;
      const int second = lane / 4 % 2;
      const int tile =
          t.first_tile + (p.gate_up ? 4 * group + lane % 4 : 8 * group + 4 * second + lane % 4);
      if (tile < p.tiles) {
        source = (p.gate_up && second == 1 ? t.b : t.a) +
                 static_cast<int64_t>(tile) * p.units * kNvfp4UnitBytes;
        bytes = kNvfp4UnitBytes;
        offset = kTokenBytes + lane * kNvfp4UnitBytes;
      }
    } else if (lane < kTiles + 2) {
      const int half = lane - kTiles;
      source = reinterpret_cast<const uint8_t*>(p.x) +
               (half * p.row_capacity + t.work.first) * int64_t{128};
      step = 2 * p.row_capacity * int64_t{128};
      bytes = t.count * 128;
      offset = half * (kTokenBytes / 2);
    }
    const int all_bytes = static_cast<int>(__reduce_add_sync(~0u, static_cast<unsigned>(bytes)));
    for (int unit = 0; unit < p.units; ++unit) {
      barrier_wait(&ring.empty[slot], phase);
      if (lane == 0) barrier_expect(&ring.full[slot], all_bytes);
      __syncwarp();
      if (bytes > 0) {
        uint8_t* const to = shared + slot * kStageBytes + offset;
        if (lane < kTiles) {
          bulk_copy(to, source, bytes, &ring.full[slot], policy);
        } else {
          bulk_copy_kept(to, source, bytes, &ring.full[slot]);
        }
      }
      source += step;
      if (++slot == kStages) {
        slot = 0;
        phase ^= 1;
      }
    }
  }
}

// Four steps' fragments of half a unit.
__device__ void decode(const uint8_t* unit, int half, int lane, uint32_t (&a)[4][4]) {
  const Nvfp4Unit::Half h = Nvfp4Unit::load(unit, half, lane);
#pragma unroll
  for (int step = 0; step < 4; ++step) {
    const AFragment f = Nvfp4Unit::fragment(h, step);
#pragma unroll
    for (int i = 0; i < 4; ++i) a[step][i] = f.r[i];
  }
}

template <int N>
__device__ void multiply(float (&c)[N / 2], const uint32_t (&a)[4][4], uint64_t tokens, bool add) {
  wgmma_fence();
#pragma unroll
  for (int step = 0; step < 4; ++step) {
    wgmma_registers<N>(c, a[step], tokens + 2 * step, step > 0 || add ? 1 : 0);
  }
  wgmma_commit();
}

// silu(a) * b into the arranged form: this warpgroup's 64 rows are 64 neighbouring columns.
template <int N>
__device__ void store_activations(const GemmArgs& p, const Tile& t, int group, int warp, int lane,
                                  const float (&a)[N / 2], const float (&b)[N / 2]) {
  const int first_row = (t.first_tile + 4 * group) * kTileRows;
  if (first_row + warp * kTileRows >= p.tiles * kTileRows) return;
  uint16_t* const base = p.act + first_row / 64 * p.row_capacity * 64;
#pragma unroll
  for (int i = 0; i < N / 2; i += 4) {
    uint16_t value[4];
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const float gate = a[i + k] * t.scale_a;
      value[k] = bf16_bits(gate / (1 + __expf(-gate)) * (b[i + k] * t.scale_b));
    }
    // A lane has rows g and g + 8 of tokens 2t and 2t + 1; with the lane of row g ^ 1 it trades for
    // both rows of a pair of one token.
    const bool odd = lane / 4 % 2 == 1;
    const int token = 2 * i + 2 * (lane % 4) + (odd ? 1 : 0);
#pragma unroll
    for (int upper = 0; upper < 2; ++upper) {
      const uint32_t keep = value[2 * upper + (odd ? 1 : 0)];
      const uint32_t give = value[2 * upper + (odd ? 0 : 1)];
      const uint32_t got = __shfl_xor_sync(~0u, give, 4);
      const uint32_t pair = odd ? got | keep << 16 : keep | got << 16;
      // Column 16 warp + r is value 16 s + 8 h + 2 warp + j, r = 4 s + 2 h + j.
      const int r = lane / 4 - (odd ? 1 : 0) + 8 * upper;
      const int row = t.work.first + token;
      const int chunk = (2 * (r / 4) + r / 2 % 2) ^ (row & 7);
      if (token < t.work.count) {
        *reinterpret_cast<uint32_t*>(base + static_cast<int64_t>(row) * 64 + 8 * chunk + 2 * warp) =
            pair;
      }
    }
  }
}

template <int N>
__device__ void store_rows(const GemmArgs& p, const Tile& t, int tile, int lane,
                           const float (&c)[N / 2]) {
  const int row = tile * kTileRows + lane / 4;
#pragma unroll
  for (int i = 0; i < N / 2; i += 4) {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int token = 2 * i + 2 * (lane % 4) + j;
      if (token >= t.work.count) continue;
      float* const out =
          p.out + static_cast<int64_t>(p.rows[t.work.first + token]) * p.out_row_stride;
      if (row < p.out_rows) out[row] = c[i + j] * t.scale_a;
      if (row + 8 < p.out_rows) out[row + 8] = c[i + 2 + j] * t.scale_a;
    }
  }
}

// One tile of work. slot and phase: where the ring stands.
template <int N>
__device__ void consume(const GemmArgs& p, const Tile& t, const uint8_t* shared, Ring& ring,
                        int& slot, uint32_t& phase) {
  const int group = static_cast<int>(threadIdx.x) / 128;
  const int warp = static_cast<int>(threadIdx.x) / 32 % 4;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  float c0[N / 2];
  float c1[N / 2];
#pragma unroll
  for (int i = 0; i < N / 2; ++i) c0[i] = c1[i] = 0;
  uint32_t even[4][4];
  uint32_t odd[4][4];
  int last_slot = -1;
  for (int unit = 0; unit < p.units; ++unit) {
    barrier_wait(&ring.full[slot], phase);
    const uint8_t* const stage = shared + slot * kStageBytes;
    const uint8_t* const first = stage + kTokenBytes + (8 * group + warp) * kNvfp4UnitBytes;
    const uint8_t* const second = first + 4 * kNvfp4UnitBytes;
    const uint64_t low = swizzled_descriptor(shared_address(stage));
    const uint64_t high = low + (kTokenBytes / 2 >> 4);
    wgmma_wait<1>();  // all that read `even`
    decode(first, 0, lane, even);
    multiply<N>(c0, even, low, unit > 0);
    wgmma_wait<1>();
    // All lanes have read their weights of the last unit, too.
    warp_arrive(&ring.empty[max(last_slot, 0)], last_slot >= 0);
    decode(second, 0, lane, odd);
    multiply<N>(c1, odd, low, unit > 0);
    wgmma_wait<1>();
    decode(first, 1, lane, even);
    multiply<N>(c0, even, high, true);
    wgmma_wait<1>();
    decode(second, 1, lane, odd);
    multiply<N>(c1, odd, high, true);
    last_slot = slot;
    if (++slot == kStages) {
      slot = 0;
      phase ^= 1;
    }
  }
  wgmma_wait<0>();
  wgmma_hold(c0);
  wgmma_hold(c1);
  warp_arrive(&ring.empty[last_slot]);
  if (p.gate_up) {
    store_activations<N>(p, t, group, warp, lane, c0, c1);
  } else {
    const int tile = t.first_tile + 8 * group + warp;
    store_rows<N>(p, t, tile, lane, c0);
    store_rows<N>(p, t, tile + 4, lane, c1);
  }
}

// Takes the pieces of one class of sizes: more than N - 32 and at most N tokens, and 32 at most 16,
// too. (With more than two sizes in one kernel ptxas gives up on asynchronous products.)
template <int N>
__global__ __launch_bounds__(kThreads, 1) void gemm_nvfp4_kernel(const GemmArgs p, bool first) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ uint8_t raw[];
  __shared__ Ring ring;
  uint8_t* const shared = raw + (1024 - (shared_address(raw) & 1023)) % 1024;
  if (threadIdx.x < kStages) {
    barrier_init(&ring.full[threadIdx.x], 1);
    barrier_init(&ring.empty[threadIdx.x], kConsumerWarps * kWarpArrivals);
    fence_barrier_init();
  }
  __syncthreads();
  // The kernels of one product's classes run side by side where there is room: only the first one
  // waits for what came before, which is done when the others start; each ends after the one in
  // front of it, so that waiting for the last one waits for all.
  if (first) wait_for_previous();
  let_next_start();
  constexpr int kClass = N / 32 - 1;
  const int total = p.num_work[kClass] * blocks_of_rows(p);
  const StreamWork* const work = p.work + kClass * p.work_capacity;
  if (threadIdx.x / 128 == 2) {
    give_registers<40>();
    if (threadIdx.x / 32 == kConsumerWarps) produce(p, work, total, shared, ring);
  } else {
    take_registers<232>();
    int slot = 0;
    uint32_t phase = 0;
    for (int index = static_cast<int>(blockIdx.x); index < total;
         index += static_cast<int>(gridDim.x)) {
      const Tile t = tile_at(p, work, index);
      if (t.count > N - 16) {
        consume<N>(p, t, shared, ring, slot, phase);
      } else {
        consume<N - 16>(p, t, shared, ring, slot, phase);
      }
    }
  }
  if (!first) wait_for_previous();
#endif
}

template <int N>
cudaError_t launch_class(const GemmArgs& args, bool& first, cudaStream_t stream) {
  if (args.most_rows <= N - 32) return cudaSuccess;
  constexpr auto kernel = gemm_nvfp4_kernel<N>;
  const cudaError_t configured = allow_shared<kernel>(kShared);
  if (configured != cudaSuccess) return configured;
  static const int num_sms = multiprocessors();
  const bool is_first = first;
  first = false;
  return launch_overlapped(kernel, dim3(static_cast<unsigned>(num_sms)), dim3(kThreads), kShared,
                           stream, args, is_first);
}

}  // namespace

cudaError_t launch_gemm_nvfp4(const GemmArgs& args, cudaStream_t stream) {
  bool first = true;
  for (const auto launch :
       {launch_class<128>, launch_class<96>, launch_class<64>, launch_class<32>}) {
    if (const cudaError_t code = launch(args, first, stream); code != cudaSuccess) return code;
  }
  return cudaSuccess;
}

bool gemm_nvfp4_runs_here() { return has_body(gemm_nvfp4_kernel<64>); }

}  // namespace nibble::cuda
