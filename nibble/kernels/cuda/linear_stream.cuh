// The kernel of linear_stream.h, for each weight format a struct that makes A fragments of a unit.
#pragma once

#include <cstdint>

#include "nibble/kernels/cuda/linear_stream.h"
#include "nibble/kernels/cuda/numeric.cuh"
#include "nibble/kernels/cuda/packed_layout.h"
#include "nibble/kernels/cuda/ptx.cuh"

namespace nibble::cuda {

constexpr int kWarps = 8;
constexpr int kStreamThreads = 32 * kWarps;

// A step's fragments: rows g and g + 8, columns 2s.. and 8 + 2s.. of the lane's block.
struct AFragment {
  uint32_t r[4];
};

struct Nvfp4Unit {
  static constexpr int kBytes = kNvfp4UnitBytes;
  static constexpr int kUnitsPerStage = 2;
  static constexpr int kStages = 4;
  static constexpr bool kUnitScale = false;
  static constexpr float kScale = 0x1p20f;

  // The fragments of 64 columns.
  struct Half {
    uint4 words;
    uint32_t scale_low;   // of row g, twice
    uint32_t scale_high;  // of row g + 8, twice
  };

  __device__ static Half load(const uint8_t* unit, int half, int lane) {
    Half h;
    h.words = *reinterpret_cast<const uint4*>(unit + 512 * half + 16 * lane);
    const uint32_t scales = *reinterpret_cast<const uint32_t*>(unit + 1024 + 4 * lane);
    const uint32_t pair = half == 0 ? scales : scales >> 16;
    // The byte in both halves of the register, then (code << 4) | 0x7000: s * 2^106 in BF16.
    h.scale_low = __byte_perm(pair, 0, 0x4040) * 16 + 0x70007000u;
    h.scale_high = __byte_perm(pair, 0, 0x4141) * 16 + 0x70007000u;
    return h;
  }

  // e2m1 * 2^-126 of pair `step` of a word of 8 codes.
  __device__ static uint32_t pair(uint32_t word, int step) {
    constexpr uint32_t kMask = 0x81c081c0u;
    if (step == 0) return word & kMask;
    if (step == 1) return (word << 3) & kMask;
    if (step == 2) return (word << 6) & kMask;
    return ((word >> 3) & 0x01800180u) | ((word << 1) & 0x80008000u) | ((word >> 7) & 0x00400040u);
  }

  __device__ static AFragment fragment(const Half& h, int step) {
    return {{mul_bf16x2(pair(h.words.x, step), h.scale_low),
             mul_bf16x2(pair(h.words.z, step), h.scale_high),
             mul_bf16x2(pair(h.words.y, step), h.scale_low),
             mul_bf16x2(pair(h.words.w, step), h.scale_high)}};
  }
};

struct Fp8Unit {
  static constexpr int kBytes = kFp8UnitBytes;
  static constexpr int kUnitsPerStage = 1;
  static constexpr int kStages = 4;
  static constexpr bool kUnitScale = true;
  static constexpr float kScale = 1;

  struct Half {
    uint4 low;
    uint4 high;
  };

  __device__ static Half load(const uint8_t* unit, int half, int lane) {
    const uint8_t* const base = unit + 1024 * half + 16 * lane;
    return {*reinterpret_cast<const uint4*>(base), *reinterpret_cast<const uint4*>(base + 512)};
  }

  // Two E4M3 bytes of a word as BF16: moved into place they are the value * 2^-120.
  __device__ static uint32_t pair(uint32_t word, int upper) {
    const uint32_t q = __byte_perm(word, 0, upper == 0 ? 0x1404 : 0x3424);
    return mul_bf16x2((q & 0x80008000u) | ((q >> 4) & 0x07f007f0u), 0x7b807b80u);
  }

  __device__ static AFragment fragment(const Half& h, int step) {
    const uint32_t l0 = step < 2 ? h.low.x : h.low.y;
    const uint32_t l1 = step < 2 ? h.low.z : h.low.w;
    const uint32_t h0 = step < 2 ? h.high.x : h.high.y;
    const uint32_t h1 = step < 2 ? h.high.z : h.high.w;
    const int upper = step % 2;
    return {{pair(l0, upper), pair(h0, upper), pair(l1, upper), pair(h1, upper)}};
  }
};

struct Bf16Unit {
  static constexpr int kBytes = kBf16UnitBytes;
  static constexpr int kUnitsPerStage = 1;
  static constexpr int kStages = 2;
  static constexpr bool kUnitScale = false;
  static constexpr float kScale = 1;

  struct Half {
    const uint8_t* base;
  };
  __device__ static Half load(const uint8_t* unit, int half, int lane) {
    return {unit + 2048 * half + 16 * lane};
  }
  __device__ static AFragment fragment(const Half& h, int step) {
    const uint4 v = *reinterpret_cast<const uint4*>(h.base + 512 * step);
    return {{v.x, v.y, v.z, v.w}};
  }
};

// How many tile sums a warp keeps at a time: 32 KB of shared memory a block.
template <int NT>
constexpr int kMaxItems = 8 / NT;

// The order in which a warp meets (stage of columns, tile) pairs, run twice: by the copies ahead
// and by the products behind them.
template <class Unit, int KU, int MaxItems>
struct Cursor {
  int position;  // in the concatenated tiles of all work
  int end;
  int count = 0;  // tiles of this chunk
  int items = 0;  // matrices of this chunk
  int item = 0;
  int stage = 0;
  int group = 0;
  int work = 0;
  int tile = 0;
  const uint8_t* a = nullptr;
  const uint8_t* b = nullptr;

  __device__ void start(const StreamArgs& p, int split, int passes) {
    if (position >= end) return;
    const int groups_of_warps = kWarps / split;
    work = position / p.tiles;
    tile = position - work * p.tiles;
    const int most = MaxItems * groups_of_warps / (p.gate_up ? 2 : 1);
    count = min(min(end - position, p.tiles - tile), most);
    items = p.gate_up ? 2 * count : count;
    group = p.work != nullptr ? p.work[work].group : work / passes;
    if (p.groups != nullptr) {
      a = p.groups[group].a;
      b = p.groups[group].b;
    } else {
      a = p.group.a + group * p.group_bytes;
      b = p.group.b;
    }
  }

  __device__ const uint8_t* address(const StreamArgs& p) const {
    const int t = tile + (p.gate_up ? item / 2 : item);
    const uint8_t* const base = p.gate_up && item % 2 == 1 ? b : a;
    return base + (static_cast<int64_t>(t) * p.units + stage * KU) * Unit::kBytes;
  }
};

template <class Unit, int NT, int P, int KU, int Stages>
__global__ __launch_bounds__(kStreamThreads, 2) void linear_stream_kernel(const StreamArgs p,
                                                                          int split, int passes) {
  constexpr int kStageBytes = KU * Unit::kBytes;
  constexpr int kItems = kMaxItems<NT>;
  extern __shared__ __align__(128) uint8_t shared[];
  __shared__ uint64_t barriers[kWarps][Stages];
  float4* const sums = reinterpret_cast<float4*>(shared + kWarps * Stages * kStageBytes);

  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int first_stage = warp % split;
  const int first_item = warp / split;
  const int item_step = kWarps / split;
  uint8_t* const ring = shared + warp * Stages * kStageBytes;
  float4* const my_sums = sums + warp * kItems * NT * 32;
  if (lane == 0) {
    for (int i = 0; i < Stages; ++i) barrier_init(&barriers[warp][i], 1);
    fence_barrier_init();
  }
  __syncwarp();

  const int num_work = p.work != nullptr ? *p.num_work : p.num_groups * passes;
  const int64_t total = static_cast<int64_t>(num_work) * p.tiles;
  const int num_stages = (p.units + KU - 1) / KU;
  using WarpCursor = Cursor<Unit, KU, kItems>;
  WarpCursor ahead;
  ahead.position = static_cast<int>(total * blockIdx.x / gridDim.x);
  ahead.end = static_cast<int>(total * (blockIdx.x + 1) / gridDim.x);
  WarpCursor now = ahead;

  // Moves `ahead` to the next pair this warp has, over chunks in which it has none.
  const auto settle = [&]() {
    while (ahead.position < ahead.end && ahead.item >= ahead.items) {
      ahead.position += ahead.count;
      ahead.item = first_item;
      ahead.stage = first_stage;
      ahead.items = 0;
      ahead.start(p, split, passes);
    }
  };
  ahead.start(p, split, passes);
  ahead.item = first_item;
  ahead.stage = first_stage;
  settle();
  const auto issue = [&](int slot) {
    if (ahead.position >= ahead.end) return;
    if (lane == 0) {
      const int bytes = min(KU, p.units - ahead.stage * KU) * Unit::kBytes;
      barrier_expect(&barriers[warp][slot], bytes);
      bulk_copy(ring + slot * kStageBytes, ahead.address(p), bytes, &barriers[warp][slot]);
    }
    ahead.item += item_step;
    if (ahead.item >= ahead.items) {
      ahead.stage += split;
      if (ahead.stage < num_stages) {
        ahead.item = first_item;
      } else {
        settle();
      }
    }
  };
  for (int i = 0; i < Stages; ++i) issue(i);

  int slot = 0;
  uint32_t phase = 0;
  for (; now.position < now.end; now.position += now.count) {
    now.start(p, split, passes);
    int first = 0;
    int count = 0;
    if (p.work != nullptr) {
      first = p.work[now.work].first;
      count = p.work[now.work].count;
    } else {
      first = now.work % passes * (8 * NT);
      count = min(8 * NT, p.num_tokens - first);
    }
    const uint16_t* x_rows[NT];  // of this lane's token, column 16 (lane % 4)
#pragma unroll
    for (int n = 0; n < NT; ++n) {
      const int r = 8 * n + lane / 4;
      x_rows[n] = nullptr;
      if (r < count) {
        int row = p.slots != nullptr ? p.slots[first + r] : first + r;
        if (p.x_divisor > 0) row = row < p.x_routed ? row / p.x_divisor : row - p.x_routed;
        x_rows[n] = p.x + row * p.x_row_stride + now.group * p.x_group_stride + 16 * (lane % 4);
      }
    }

    for (int stage = first_stage; stage < num_stages; stage += split) {
      const int units = min(KU, p.units - stage * KU);
      uint4 b[KU][2][NT][P][2];
#pragma unroll
      for (int u = 0; u < KU; ++u) {
        const int col = (stage * KU + u) % p.x_units * kUnitCols;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
#pragma unroll
          for (int n = 0; n < NT; ++n) {
#pragma unroll
            for (int part = 0; part < P; ++part) {
              if (x_rows[n] != nullptr && u < units) {
                const uint4* const source = reinterpret_cast<const uint4*>(
                    x_rows[n] + part * p.x_part_stride + col + 64 * half);
                b[u][half][n][part][0] = source[0];
                b[u][half][n][part][1] = source[1];
              } else {
                b[u][half][n][part][0] = make_uint4(0, 0, 0, 0);
                b[u][half][n][part][1] = make_uint4(0, 0, 0, 0);
              }
            }
          }
        }
      }
      float4* item_sums = my_sums + lane;
      for (int item = first_item; item < now.items; item += item_step) {
        float4 sum[NT];
#pragma unroll
        for (int n = 0; n < NT; ++n) {
          sum[n] = stage == first_stage ? make_float4(0, 0, 0, 0) : item_sums[32 * n];
        }
        barrier_wait(&barriers[warp][slot], phase);
        const uint8_t* const data = ring + slot * kStageBytes;
#pragma unroll
        for (int u = 0; u < KU; ++u) {
          if (u >= units) break;
          const uint8_t* const unit = data + u * Unit::kBytes;
          float4 unit_sum[NT];
          if (Unit::kUnitScale) {
#pragma unroll
            for (int n = 0; n < NT; ++n) unit_sum[n] = make_float4(0, 0, 0, 0);
          }
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const typename Unit::Half h = Unit::load(unit, half, lane);
#pragma unroll
            for (int step = 0; step < 4; ++step) {
              const AFragment a = Unit::fragment(h, step);
#pragma unroll
              for (int n = 0; n < NT; ++n) {
#pragma unroll
                for (int part = 0; part < P; ++part) {
                  float4& c = Unit::kUnitScale ? unit_sum[n] : sum[n];
                  mma_bf16(c, a.r, word(b[u][half][n][part][0], step),
                           word(b[u][half][n][part][1], step));
                }
              }
            }
          }
          if (Unit::kUnitScale) {
            const float scale = *reinterpret_cast<const float*>(unit + 2048);
#pragma unroll
            for (int n = 0; n < NT; ++n) {
              sum[n].x = fmaf(scale, unit_sum[n].x, sum[n].x);
              sum[n].y = fmaf(scale, unit_sum[n].y, sum[n].y);
              sum[n].z = fmaf(scale, unit_sum[n].z, sum[n].z);
              sum[n].w = fmaf(scale, unit_sum[n].w, sum[n].w);
            }
          }
        }
#pragma unroll
        for (int n = 0; n < NT; ++n) item_sums[32 * n] = sum[n];
        item_sums += 32 * NT;
        __syncwarp();  // all lanes have read the slot
        issue(slot);
        if (++slot == Stages) {
          slot = 0;
          phase ^= 1;
        }
      }
    }

    // Sums over the warps that shared a tile, in their order.
    __syncthreads();
    const StreamGroup* const g = p.groups != nullptr ? p.groups + now.group : &p.group;
    const float scale_a = g->scale_a * Unit::kScale;
    const float scale_b = p.gate_up ? g->scale_b * Unit::kScale : 0;
    const int elements = now.count * kTileRows * count;
    for (int i = threadIdx.x; i < elements; i += kStreamThreads) {
      const int r = i % kTileRows;
      const int tile = i / kTileRows % now.count;
      const int token = i / kTileRows / now.count;
      const int row = (now.tile + tile) * kTileRows + r;
      // Where mma leaves element (r, token) of a tile: register and lane.
      const int reg = r / 8 * 2 + token % 2;
      const int at = (token / 8 * 32 + r % 8 * 4 + token % 8 / 2) * 4 + reg;
      const auto total_of = [&](int item) {
        const int owner = item % item_step * split;
        const int index = item / item_step * NT * 32 * 4 + at;
        float total_sum = 0;
        for (int w = 0; w < split; ++w) {
          total_sum +=
              reinterpret_cast<const float*>(sums)[(owner + w) * kItems * NT * 32 * 4 + index];
        }
        return total_sum;
      };
      if (row >= p.rows) continue;
      const int out_row = p.slots != nullptr ? p.slots[first + token] : first + token;
      if (p.gate_up) {
        const float gate = total_of(2 * tile) * scale_a;
        const float up = total_of(2 * tile + 1) * scale_b;
        const float value = gate / (1 + expf(-gate)) * up;
        for (int part = 0; part < p.act_parts; ++part) {
          p.act[part * p.act_part_stride + out_row * p.act_row_stride + row] =
              bf16_part(value, part);
        }
      } else {
        p.out[out_row * p.out_row_stride + now.group * p.out_group_stride + row] =
            total_of(tile) * scale_a;
      }
    }
    __syncthreads();  // the sums may be overwritten
  }
}

template <class Unit, int NT, int P, int KU, int Stages>
cudaError_t launch_stream_config(const StreamArgs& args, cudaStream_t stream) {
  constexpr int kShared =
      kWarps * Stages * KU * Unit::kBytes + kWarps * kMaxItems<NT> * NT * 32 * 16;
  const auto kernel = linear_stream_kernel<Unit, NT, P, KU, Stages>;
  static const cudaError_t configured =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared);
  if (configured != cudaSuccess) return configured;
  static const int num_sms = [] {
    int count = 0;
    int device = 0;
    if (cudaGetDevice(&device) != cudaSuccess ||
        cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device) != cudaSuccess) {
      return 1;
    }
    return count;
  }();
  const int stages = (args.units + KU - 1) / KU;
  int split = 1;
  while (split < kWarps && 2 * split <= stages) split *= 2;
  const int passes = args.work != nullptr ? 1 : (args.num_tokens + 8 * NT - 1) / (8 * NT);
  int64_t blocks = 2 * num_sms;
  if (args.work == nullptr) {
    blocks = min(blocks, static_cast<int64_t>(args.num_groups) * passes * args.tiles);
  }
  kernel<<<static_cast<unsigned>(blocks), kStreamThreads, kShared, stream>>>(args, split, passes);
  return cudaGetLastError();
}

// Registers hold 16 (NT * P * KU) words of tokens: few tokens take two units at a time.
template <class Unit>
cudaError_t launch_stream_format(const StreamArgs& args, int work_tokens, cudaStream_t stream) {
  constexpr int KU = Unit::kUnitsPerStage;
  constexpr int Stages = Unit::kStages;
  if (args.x_parts == 1) {
    return work_tokens == 8 ? launch_stream_config<Unit, 1, 1, KU, Stages>(args, stream)
                            : launch_stream_config<Unit, 2, 1, KU, Stages>(args, stream);
  }
  if (args.x_parts == 2) return launch_stream_config<Unit, 1, 2, KU, Stages>(args, stream);
  return launch_stream_config<Unit, 1, 3, 1, Stages>(args, stream);
}

}  // namespace nibble::cuda
