// Weights straight from memory to registers, in any format, without rings, clusters or launches
// that overlap. Each of a block's 8 warps takes every 8th unit of columns of one row tile (gate and
// up: of two), and the sums over the warps are added in their order. Bound: the latency of its
// loads; written for portability, not tuned.
#include <cstdint>

#include "nibble/kernels/cuda/launch.cuh"
#include "nibble/kernels/cuda/linear_portable.h"
#include "nibble/kernels/cuda/linear_stream.cuh"

namespace nibble::cuda {
namespace {

constexpr int kPortableThreads = 32 * kWarps;

template <class Unit, typename X, int NT, int P>
__global__ __launch_bounds__(kPortableThreads) void linear_portable_kernel(const StreamArgs p,
                                                                           int passes) {
  __shared__ float4 sums[2][kWarps][NT * 32];  // gate or the only matrix, up
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  let_next_start();
  wait_for_previous();
  const X* x = nullptr;
  if constexpr (sizeof(X) == 2) {
    x = p.x;
  } else {
    x = p.x_float;
  }
  const int64_t tile_bytes = int64_t{p.units} * Unit::kBytes;
  const int num_work = p.work != nullptr ? *p.num_work : p.num_groups * passes;
  const int64_t total = int64_t{num_work} * p.tiles;
  for (int64_t position = blockIdx.x; position < total; position += gridDim.x) {
    const int work = static_cast<int>(position / p.tiles);
    const int tile = static_cast<int>(position % p.tiles);
    const bool is_second = p.second_tile > 0 && tile >= p.second_tile;
    StreamRows rows;
    if (p.work != nullptr) {
      rows = {p.work[work].group, p.work[work].first, p.work[work].count};
    } else {
      const int first = work % passes * (8 * NT);
      rows = {work / passes, first, min(8 * NT, p.num_tokens - first)};
    }
    const X* x_rows[NT];
    find_rows(p, x, rows, lane, x_rows);
    const GroupWeights weights = group_weights(p, rows.group);
    const int first_tile = is_second ? p.second_tile : 0;
    const int64_t offset = (tile - first_tile) * tile_bytes;
    const uint8_t* const a = (is_second ? p.second.a : weights.a) + offset;
    const uint8_t* const b = p.gate_up ? weights.b + offset : nullptr;
    float4 of_a[NT] = {};
    float4 of_b[NT] = {};
    for (int unit = warp; unit < p.units; unit += kWarps) {
      TokenFragments<X, NT, P, 1> tokens;
      tokens.load(p, x_rows, unit, 1);
      const int64_t at = int64_t{unit} * Unit::kBytes;
      multiply<Unit, X, NT, P, 1>(a + at, 1, lane, tokens, of_a);
      if (p.gate_up) multiply<Unit, X, NT, P, 1>(b + at, 1, lane, tokens, of_b);
    }
#pragma unroll
    for (int n = 0; n < NT; ++n) {
      sums[0][warp][32 * n + lane] = of_a[n];
      sums[1][warp][32 * n + lane] = of_b[n];
    }
    __syncthreads();

    const StreamGroup* const g = is_second             ? &p.second
                                 : p.groups != nullptr ? p.groups + rows.group
                                                       : &p.group;
    float* const out = is_second ? p.second_out : p.out;
    const int64_t out_row_stride = is_second ? p.second_out_row_stride : p.out_row_stride;
    for (int i = static_cast<int>(threadIdx.x); i < kTileRows * rows.count; i += kPortableThreads) {
      const int r = i % kTileRows;
      const int token = i / kTileRows;
      const int row = (tile - first_tile) * kTileRows + r;
      if (row >= (is_second ? p.second_rows : p.rows)) continue;
      // Where mma leaves element (r, token) of a tile: register and lane.
      const int reg = r / 8 * 2 + token % 2;
      const int at = (token / 8 * 32 + r % 8 * 4 + token % 8 / 2) * 4 + reg;
      const auto total_of = [&](int matrix) {
        float sum = 0;
        for (int w = 0; w < kWarps; ++w) {
          sum += reinterpret_cast<const float*>(sums[matrix][w])[at];
        }
        return sum;
      };
      const int out_row = p.slots != nullptr ? p.slots[rows.first + token] : rows.first + token;
      const float value = total_of(0) * (g->scale_a * Unit::kScale);
      if (p.gate_up) {
        const float product =
            value / (1 + expf(-value)) * (total_of(1) * (g->scale_b * Unit::kScale));
        for (int part = 0; part < p.act_parts; ++part) {
          p.act[part * p.act_part_stride + out_row * p.act_row_stride + row] =
              bf16_part(product, part);
        }
      } else {
        const int64_t column = rows.group * p.out_group_stride + row;
        out[out_row * out_row_stride + column] = value;
        if (p.out_copy != nullptr) {
          p.out_copy[out_row * p.out_copy_row_stride + column] = bf16_rounded(value);
        }
      }
    }
    __syncthreads();  // the sums may be overwritten
  }
}

template <class Unit, typename X, int NT, int P>
cudaError_t launch_config(const StreamArgs& args, cudaStream_t stream) {
  constexpr int64_t kBlocksEach = 8;  // for each multiprocessor, at most
  static const int num_sms = multiprocessors();
  const int passes = args.work != nullptr ? 1 : (args.num_tokens + 8 * NT - 1) / (8 * NT);
  const int64_t work = args.work != nullptr ? args.max_work : int64_t{args.num_groups} * passes;
  const int64_t blocks = min(kBlocksEach * num_sms, work * args.tiles);
  return launch_overlapped(linear_portable_kernel<Unit, X, NT, P>,
                           dim3(static_cast<unsigned>(blocks)), dim3(kPortableThreads), 0, stream,
                           args, passes);
}

template <class Unit>
cudaError_t launch_format(const StreamArgs& args, int work_tokens, cudaStream_t stream) {
  if (args.x_float != nullptr) {
    return args.x_parts == 1 ? launch_config<Unit, float, 1, 1>(args, stream)
                             : launch_config<Unit, float, 1, 3>(args, stream);
  }
  using X = uint16_t;
  if (args.x_parts == 1) {
    return work_tokens == 8 ? launch_config<Unit, X, 1, 1>(args, stream)
                            : launch_config<Unit, X, 2, 1>(args, stream);
  }
  return args.x_parts == 2 ? launch_config<Unit, X, 1, 2>(args, stream)
                           : launch_config<Unit, X, 1, 3>(args, stream);
}

}  // namespace

cudaError_t launch_linear_portable(const StreamArgs& args, int work_tokens, cudaStream_t stream) {
  if (direct_takes(args)) return launch_linear_direct(args, work_tokens, stream);
  switch (args.format) {
    case LinearFormat::kNvfp4:
      return launch_format<Nvfp4Unit>(args, work_tokens, stream);
    case LinearFormat::kFp8Block:
      return launch_format<Fp8Unit>(args, work_tokens, stream);
    case LinearFormat::kBf16:
    case LinearFormat::kF32:
      return launch_format<Bf16Unit>(args, work_tokens, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace nibble::cuda
