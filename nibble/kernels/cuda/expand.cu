// A warp writes one unit: its lanes hold 16 neighbouring columns of two rows.
#include "nibble/kernels/cuda/expand.h"
#include "nibble/kernels/cuda/launch.cuh"
#include "nibble/kernels/cuda/packed_layout.h"
#include "nibble/kernels/cuda/units.cuh"

namespace nibble::cuda {
namespace {

constexpr int kThreads = 256;

template <class Unit>
__global__ void expand_kernel(const uint8_t* units, int64_t units_per_tile, int64_t total,
                              uint16_t* out) {
  let_next_start();
  wait_for_previous();
  const int64_t index = (int64_t{blockIdx.x} * kThreads + threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if (index >= total) return;
  const uint8_t* const unit = units + index * Unit::kBytes;
  const int64_t row = index / units_per_tile * kTileRows + lane / 4;
  const int64_t stride = units_per_tile * kUnitCols;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const typename Unit::Half h = Unit::load(unit, half, lane);
    AFragment a[4];
#pragma unroll
    for (int step = 0; step < 4; ++step) a[step] = Unit::fragment(h, step);
    uint16_t* const at =
        out + row * stride + index % units_per_tile * kUnitCols + 64 * half + 16 * (lane % 4);
#pragma unroll
    for (int upper = 0; upper < 2; ++upper) {
      uint4* const target = reinterpret_cast<uint4*>(at + 8 * upper * stride);
      target[0] = make_uint4(a[0].r[upper], a[0].r[2 + upper], a[1].r[upper], a[1].r[2 + upper]);
      target[1] = make_uint4(a[2].r[upper], a[2].r[2 + upper], a[3].r[upper], a[3].r[2 + upper]);
    }
  }
}

template <class Unit>
cudaError_t launch_typed(const LinearWeight& weight, int64_t first_tile, int64_t num_tiles,
                         uint16_t* out, cudaStream_t stream) {
  const int64_t units = packed_shape(weight.format, weight.rows, weight.cols).units;
  const int64_t total = num_tiles * units;
  const auto grid = static_cast<unsigned>(ceil_div(32 * total, kThreads));
  return launch_overlapped(
      expand_kernel<Unit>, dim3(grid), dim3(kThreads), 0, stream,
      static_cast<const uint8_t*>(weight.data) + first_tile * units * Unit::kBytes, units, total,
      out);
}

}  // namespace

float expanded_scale(const LinearWeight& weight) {
  return weight.format == LinearFormat::kNvfp4 ? weight.global_scale * Nvfp4Unit::kScale
                                               : weight.global_scale;
}

cudaError_t launch_expand(const LinearWeight& weight, int64_t first_tile, int64_t num_tiles,
                          uint16_t* out, cudaStream_t stream) {
  return weight.format == LinearFormat::kNvfp4
             ? launch_typed<Nvfp4Unit>(weight, first_tile, num_tiles, out, stream)
             : launch_typed<Bf16Unit>(weight, first_tile, num_tiles, out, stream);
}

}  // namespace nibble::cuda
