// The kernel of linear_stream.h.
#pragma once

#include <cstdint>

#include "nibble/kernels/cuda/launch.cuh"
#include "nibble/kernels/cuda/linear_stream.h"
#include "nibble/kernels/cuda/numeric.cuh"
#include "nibble/kernels/cuda/packed_layout.h"
#include "nibble/kernels/cuda/ptx.cuh"
#include "nibble/kernels/cuda/stream_rows.cuh"
#include "nibble/kernels/cuda/units.cuh"

namespace nibble::cuda {

constexpr int kWarps = 8;
constexpr int kStreamThreads = 32 * (kWarps + 1);  // one warp brings the weights

// How many tile sums a warp keeps at a time: 32 KB of shared memory a block.
template <int NT>
constexpr int kMaxItems = 8 / NT;

constexpr int kBlocksPerSm = 2;
constexpr int kMaxCluster = 8;  // that every GPU of sm_90 can hold

// 8 neighbouring values of a token as BF16 part `part`. X: uint16_t, where the parts lie
// part_stride apart, or float.
template <typename X>
__device__ uint4 token_columns(const X* source, int part, int64_t part_stride) {
  if constexpr (sizeof(X) == 2) {
    return *reinterpret_cast<const uint4*>(source + part * part_stride);
  } else {
    const float4 low = reinterpret_cast<const float4*>(source)[0];
    const float4 high = reinterpret_cast<const float4*>(source)[1];
    if (part == 0) {
      return make_uint4(bf16x2(low.x, low.y), bf16x2(low.z, low.w), bf16x2(high.x, high.y),
                        bf16x2(high.z, high.w));
    }
    const auto pair = [&](float a, float b) {
      return static_cast<uint32_t>(bf16_part(b, part)) << 16 | bf16_part(a, part);
    };
    return make_uint4(pair(low.x, low.y), pair(low.z, low.w), pair(high.x, high.y),
                      pair(high.z, high.w));
  }
}

// The tokens' fragments of KU units of columns.
template <typename X, int NT, int P, int KU>
struct TokenFragments {
  uint4 b[KU][2][NT][P][2];

  // From unit `first` on, `units` of them.
  __device__ void load(const StreamArgs& p, const X* const (&rows)[NT], int first, int units) {
#pragma unroll
    for (int u = 0; u < KU; ++u) {
      const int col = (first + u) % p.x_units * kUnitCols;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
#pragma unroll
        for (int n = 0; n < NT; ++n) {
#pragma unroll
          for (int part = 0; part < P; ++part) {
#pragma unroll
            for (int i = 0; i < 2; ++i) {
              b[u][half][n][part][i] =
                  rows[n] != nullptr && u < units
                      ? token_columns(rows[n] + col + 64 * half + 8 * i, part, p.x_part_stride)
                      : make_uint4(0, 0, 0, 0);
            }
          }
        }
      }
    }
  }

  // Has the same columns brought near, without registers to keep them in.
  __device__ static void prefetch(const StreamArgs& p, const X* const (&rows)[NT], int first) {
#pragma unroll
    for (int u = 0; u < KU; ++u) {
      const int col = (first + u) % p.x_units * kUnitCols;
#pragma unroll
      for (int n = 0; n < NT; ++n) {
        if (rows[n] == nullptr) continue;
#pragma unroll
        for (int part = 0; part < (sizeof(X) == 2 ? P : 1); ++part) {
          prefetch_near(rows[n] + part * p.x_part_stride + col);
          prefetch_near(rows[n] + part * p.x_part_stride + col + 64);
        }
      }
    }
  }
};

// totals += `units` units, one behind the other, times the tokens. A unit's sum goes in two chains
// of every other step.
template <class Unit, typename X, int NT, int P, int KU>
__device__ void multiply(const uint8_t* data, int units, int lane,
                         const TokenFragments<X, NT, P, KU>& tokens, float4 (&totals)[NT]) {
#pragma unroll
  for (int u = 0; u < KU; ++u) {
    if (u >= units) break;
    const uint8_t* const unit = data + u * Unit::kBytes;
    float4 sum[2][NT];
#pragma unroll
    for (int n = 0; n < NT; ++n) {
      sum[0][n] = Unit::kUnitScale ? make_float4(0, 0, 0, 0) : totals[n];
      sum[1][n] = make_float4(0, 0, 0, 0);
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
            const uint4& columns = tokens.b[u][half][n][part][step / 2];
            mma_bf16(sum[step % 2][n], a.r, word(columns, step % 2 * 2),
                     word(columns, step % 2 * 2 + 1));
          }
        }
      }
    }
#pragma unroll
    for (int n = 0; n < NT; ++n) {
      const float4& even = sum[0][n];
      const float4& odd = sum[1][n];
      float4 both = make_float4(even.x + odd.x, even.y + odd.y, even.z + odd.z, even.w + odd.w);
      if (Unit::kUnitScale) {
        const float scale = *reinterpret_cast<const float*>(unit + 2048);
        both = make_float4(fmaf(scale, both.x, totals[n].x), fmaf(scale, both.y, totals[n].y),
                           fmaf(scale, both.z, totals[n].z), fmaf(scale, both.w, totals[n].w));
      }
      totals[n] = both;
    }
  }
}

// The units of columns of one warp in their order, KU at a time: groups of kUnitsPerStage, every
// split-th of them. The order of a token's sums, so it does not depend on KU.
template <class Unit, int KU>
struct StageOrder {
  int unit;
  int step;

  __device__ StageOrder(int first_group, int split)
      : unit(first_group * Unit::kUnitsPerStage), step(split * Unit::kUnitsPerStage) {}
  __device__ void advance() {
    const bool group_ends = KU == Unit::kUnitsPerStage || unit % Unit::kUnitsPerStage != 0;
    unit += group_ends ? step - (Unit::kUnitsPerStage - KU) : KU;
  }
};

// Who shares the columns of a tile: `warps` of each block, in each of the cluster's `blocks`.
struct StreamSplit {
  int warps;
  int blocks;
  int block;  // this one
  __device__ int all() const { return warps * blocks; }
  __device__ int first_stage(int warp) const { return block * warps + warp % warps; }
};

__device__ inline int rank_in_cluster() {
  int rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

// Of those threads of the cluster that have not ended.
__device__ inline void sync_cluster() {
  asm volatile(
      "barrier.cluster.arrive.release;\n"
      "barrier.cluster.wait.acquire;" ::
          : "memory");
}

// A value of this block's shared memory in that of another of the cluster.
__device__ inline float shared_of(const float* mine, int block) {
  uint32_t there;
  float value;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;"
               : "=r"(there)
               : "r"(shared_address(mine)), "r"(block));
  asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(value) : "r"(there) : "memory");
  return value;
}

// Neighbouring row tiles of one piece of work, taken by a block at a time.
struct Chunk {
  int work;
  int group;
  int tile;   // the first one
  int count;  // of tiles
  int items;  // of matrices: twice as many for gate and up
  bool is_second;
};

template <int MaxItems>
__device__ Chunk chunk_at(const StreamArgs& p, int position, int end, int split, int passes) {
  Chunk c;
  c.work = position / p.tiles;
  c.tile = position - c.work * p.tiles;
  const int most = MaxItems * (kWarps / split) / (p.gate_up ? 2 : 1);
  c.is_second = p.second_tile > 0 && c.tile >= p.second_tile;
  const int last_tile = p.second_tile > 0 && !c.is_second ? p.second_tile : p.tiles;
  c.count = min(min(end - position, last_tile - c.tile), most);
  c.items = p.gate_up ? 2 * c.count : c.count;
  c.group = p.work != nullptr ? __ldcg(&p.work[c.work].group) : c.work / passes;
  return c;
}

// The ninth warp: each of its first 8 lanes brings one of the other warps what that one will need.
template <class Unit, int KU, int Stages, int MaxItems>
__device__ void bring_weights(const StreamArgs& p, const StreamSplit& split, int passes,
                              int position, int end, uint8_t* shared, uint64_t (*full)[Stages],
                              uint64_t (*empty)[Stages]) {
  constexpr int kStageBytes = KU * Unit::kBytes;
  const int warp = static_cast<int>(threadIdx.x) % 32;
  if (warp >= kWarps) return;
  const int first_stage = split.first_stage(warp);
  const int first_item = warp / split.warps;
  const int item_step = kWarps / split.warps;
  uint8_t* const ring = shared + warp * Stages * kStageBytes;
  const uint64_t policy = evict_first_policy();
  int slot = 0;
  uint32_t phase = 1;  // the slots start empty
  while (position < end) {
    const Chunk c = chunk_at<MaxItems>(p, position, end, split.warps, passes);
    GroupWeights weights = group_weights(p, c.group);
    const int64_t tile_bytes = static_cast<int64_t>(p.units) * Unit::kBytes;
    if (c.is_second) weights.a = p.second.a - p.second_tile * tile_bytes;
    for (StageOrder<Unit, KU> stage(first_stage, split.all()); stage.unit < p.units;
         stage.advance()) {
      const int bytes = min(KU, p.units - stage.unit) * Unit::kBytes;
      const int64_t offset = c.tile * tile_bytes + static_cast<int64_t>(stage.unit) * Unit::kBytes;
      for (int item = first_item; item < c.items; item += item_step) {
        const uint8_t* const source =
            p.gate_up ? (item % 2 == 1 ? weights.b : weights.a) + offset + item / 2 * tile_bytes
                      : weights.a + offset + item * tile_bytes;
        barrier_wait(&empty[warp][slot], phase);
        barrier_expect(&full[warp][slot], bytes);
        bulk_copy(ring + slot * kStageBytes, source, bytes, &full[warp][slot], policy);
        if (++slot == Stages) {
          slot = 0;
          phase ^= 1;
        }
      }
    }
    position += c.count;
  }
}

template <class Unit, typename X, int NT, int P, int KU, int Stages>
__global__ __launch_bounds__(kStreamThreads,
                             kBlocksPerSm) void linear_stream_kernel(const StreamArgs p, int warps,
                                                                     int cluster, int passes) {
  constexpr int kStageBytes = KU * Unit::kBytes;
  constexpr int kItems = kMaxItems<NT>;
  extern __shared__ __align__(128) uint8_t shared[];
  __shared__ uint64_t full[kWarps][Stages];
  __shared__ uint64_t empty[kWarps][Stages];
  float4* const sums = reinterpret_cast<float4*>(shared + kWarps * Stages * kStageBytes);

  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if (threadIdx.x < kWarps * Stages) {
    barrier_init(&full[0][0] + threadIdx.x, 1);
    barrier_init(&empty[0][0] + threadIdx.x, kWarpArrivals);
    fence_barrier_init();
  }
  __syncthreads();
  let_next_start();
  // Weights may come before the launches in front of this one are done; what they wrote may not.
  const bool waits_first = p.work != nullptr && !p.work_is_older;
  if (waits_first) wait_for_previous();

  // Past L1, which may hold an earlier step's list where this launch started early.
  const int num_work = p.work != nullptr ? __ldcg(p.num_work) : p.num_groups * passes;
  // Equal runs, the longer ones first; divisions of 64 bits would take a microsecond.
  const int total = num_work * p.tiles;
  const int index = static_cast<int>(blockIdx.x) / cluster;
  const int count_all = static_cast<int>(gridDim.x) / cluster;
  const int each = total / count_all;
  const int longer = total - each * count_all;
  int position = index * each + min(index, longer);
  const int end = position + each + (index < longer ? 1 : 0);
  const StreamSplit split{warps, cluster, cluster > 1 ? rank_in_cluster() : 0};
  if (warp == kWarps) {
    bring_weights<Unit, KU, Stages, kItems>(p, split, passes, position, end, shared, full, empty);
    return;
  }
  if (!waits_first) wait_for_previous();

  const int first_stage = split.first_stage(warp);
  const int first_item = warp / warps;
  const int item_step = kWarps / warps;
  const X* x = nullptr;
  if constexpr (sizeof(X) == 2) {
    x = p.x;
  } else {
    x = p.x_float;
  }
  const uint8_t* const ring = shared + warp * Stages * kStageBytes;
  float4* const my_sums = sums + warp * kItems * NT * 32;
  int slot = 0;
  uint32_t phase = 0;
  while (position < end) {
    const Chunk now = chunk_at<kItems>(p, position, end, warps, passes);
    position += now.count;
    int first = 0;
    int count = 0;
    if (p.work != nullptr) {
      first = __ldcg(&p.work[now.work].first);
      count = __ldcg(&p.work[now.work].count);
    } else {
      first = now.work % passes * (8 * NT);
      count = min(8 * NT, p.num_tokens - first);
    }
    const X* x_rows[NT];
    find_rows(p, x, {now.group, first, count}, lane, x_rows);

    using Tokens = TokenFragments<X, NT, P, KU>;
    bool fresh = true;
    for (StageOrder<Unit, KU> stage(first_stage, split.all()); stage.unit < p.units;
         fresh = false) {
      const int units = min(KU, p.units - stage.unit);
      Tokens tokens;
      tokens.load(p, x_rows, stage.unit, units);
      stage.advance();
      if (stage.unit < p.units) Tokens::prefetch(p, x_rows, stage.unit);
      float4* item_sums = my_sums + lane;
      for (int item = first_item; item < now.items; item += item_step) {
        float4 total[NT];
#pragma unroll
        for (int n = 0; n < NT; ++n) {
          total[n] = fresh ? make_float4(0, 0, 0, 0) : item_sums[32 * n];
        }
        barrier_wait(&full[warp][slot], phase);
        multiply<Unit, X, NT, P, KU>(ring + slot * kStageBytes, units, lane, tokens, total);
        warp_arrive(&empty[warp][slot]);  // all lanes have read the slot
#pragma unroll
        for (int n = 0; n < NT; ++n) item_sums[32 * n] = total[n];
        item_sums += 32 * NT;
        if (++slot == Stages) {
          slot = 0;
          phase ^= 1;
        }
      }
    }

    // Sums over the warps that shared a tile, in their order, block after block.
    const auto sync = [&] {
      if (cluster > 1) {
        sync_cluster();
      } else {
        sync_warps(1, 32 * kWarps);
      }
    };
    sync();
    const StreamGroup* const g = now.is_second         ? &p.second
                                 : p.groups != nullptr ? p.groups + now.group
                                                       : &p.group;
    const int first_row = (now.tile - (now.is_second ? p.second_tile : 0)) * kTileRows;
    const int rows = now.is_second ? p.second_rows : p.rows;
    float* const out = now.is_second ? p.second_out : p.out;
    const int64_t out_row_stride = now.is_second ? p.second_out_row_stride : p.out_row_stride;
    const float scale_a = g->scale_a * Unit::kScale;
    const float scale_b = p.gate_up ? g->scale_b * Unit::kScale : 0;
    const int elements = now.count * kTileRows * count;
    for (int i = static_cast<int>(threadIdx.x) + split.block * (32 * kWarps); i < elements;
         i += cluster * (32 * kWarps)) {
      const int r = i % kTileRows;
      const int tile = i / kTileRows % now.count;
      const int token = i / kTileRows / now.count;
      const int row = first_row + tile * kTileRows + r;
      // Where mma leaves element (r, token) of a tile: register and lane.
      const int reg = r / 8 * 2 + token % 2;
      const int at = (token / 8 * 32 + r % 8 * 4 + token % 8 / 2) * 4 + reg;
      const auto total_of = [&](int item) {
        constexpr int kWarpFloats = kItems * NT * 32 * 4;
        const int owner = item % item_step * warps;
        const int index = item / item_step * NT * 32 * 4 + at;
        const float* const parts =
            reinterpret_cast<const float*>(sums) + owner * kWarpFloats + index;
        float total_sum = 0;
        if (cluster == 1) {
          for (int w = 0; w < warps; ++w) total_sum += parts[w * kWarpFloats];
          return total_sum;
        }
        for (int block = 0; block < cluster; ++block) {
          float part[kWarps];  // a cluster's blocks share each tile over all of their warps
#pragma unroll
          for (int w = 0; w < kWarps; ++w) part[w] = shared_of(parts + w * kWarpFloats, block);
#pragma unroll
          for (int w = 0; w < kWarps; ++w) total_sum += part[w];
        }
        return total_sum;
      };
      if (row >= rows) continue;
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
        const int64_t column = now.group * p.out_group_stride + row;
        const float value = total_of(tile) * scale_a;
        out[out_row * out_row_stride + column] = value;
        if (p.out_copy != nullptr) {
          p.out_copy[out_row * p.out_copy_row_stride + column] = bf16_rounded(value);
        }
      }
    }
    sync();  // the sums may be overwritten
  }
}

template <class Unit, typename X, int NT, int P, int KU, int Stages>
cudaError_t launch_stream_config(const StreamArgs& args, cudaStream_t stream) {
  constexpr int kShared =
      kWarps * Stages * KU * Unit::kBytes + kWarps * kMaxItems<NT> * NT * 32 * 16;
  constexpr auto kernel = linear_stream_kernel<Unit, X, NT, P, KU, Stages>;
  const cudaError_t configured = allow_shared<kernel>(kShared);
  if (configured != cudaSuccess) return configured;
  static const int num_sms = multiprocessors();
  int split = 1;
  while (split < kWarps && 2 * split * Unit::kUnitsPerStage <= args.units) split *= 2;
  const int passes = args.work != nullptr ? 1 : (args.num_tokens + 8 * NT - 1) / (8 * NT);
  int64_t blocks = kBlocksPerSm * num_sms;
  // Few tiles leave most of the GPU idle, so that several blocks share a tile's columns then: by
  // the weight's shape alone, as the order of sums depends on it.
  int cluster = 1;
  if (args.work == nullptr) {
    const int64_t tiles = static_cast<int64_t>(args.num_groups) * args.tiles;
    while (split == kWarps && cluster < kMaxCluster && 2 * cluster * tiles <= blocks &&
           2 * cluster * split * Unit::kUnitsPerStage <= args.units) {
      cluster *= 2;
    }
    // A cluster takes one tile alone: the ninth warp, which no cluster's barrier may wait for, is
    // then done before the first.
    blocks = cluster > 1 ? cluster * passes * tiles : min(blocks, passes * tiles);
  }
  return launch_clusters(kernel, dim3(static_cast<unsigned>(blocks)), dim3(kStreamThreads), kShared,
                         cluster, stream, args, split, cluster, passes);
}

// One tile of tokens leaves registers for two units at a time.
template <class Unit>
cudaError_t launch_stream_format(const StreamArgs& args, int work_tokens, cudaStream_t stream) {
  constexpr int Stages = Unit::kStages;
  constexpr int KU = Unit::kUnitsPerStage;
  if (args.x_float != nullptr) {
    return args.x_parts == 1
               ? launch_stream_config<Unit, float, 1, 1, KU, Stages>(args, stream)
               : launch_stream_config<Unit, float, 1, 3, 1, KU * Stages>(args, stream);
  }
  using X = uint16_t;
  if (args.x_parts == 1) {
    return work_tokens == 8 ? launch_stream_config<Unit, X, 1, 1, KU, Stages>(args, stream)
                            : launch_stream_config<Unit, X, 2, 1, 1, KU * Stages>(args, stream);
  }
  if (args.x_parts == 2) return launch_stream_config<Unit, X, 1, 2, 1, KU * Stages>(args, stream);
  return launch_stream_config<Unit, X, 1, 3, 1, KU * Stages>(args, stream);
}

}  // namespace nibble::cuda
