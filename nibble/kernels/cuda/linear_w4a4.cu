// A warp for each tile of 16 rows and each token; sums in int64, so that their order is free.
// Bound: integer arithmetic.
#include "nibble/kernels/cuda/linear_w4a4.h"
#include "nibble/kernels/cuda/nvfp4_activation.cuh"
#include "nibble/kernels/cuda/packed_layout.h"
#include "nibble/kernels/cuda/units.cuh"

namespace nibble::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kBlock = kFp4Block;

// One thread for each block of 16; x is read with zeros behind the last column.
__global__ void w4a4_quantize_kernel(const float* x, int64_t rows, int64_t cols, int64_t stride,
                                     float input_scale, W4a4Activations out) {
  const int64_t blocks = out.padded_cols / kBlock;
  const int64_t index = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (index >= rows * blocks) return;
  const int64_t row = index / blocks;
  const int64_t first = index % blocks * kBlock;
  ActivationBlock block;
  block.load(x + row * stride, first, cols, input_scale);
  if (!block.finite) atomicAnd(out.finite + row, 0);
  for (int i = 0; i < kBlock; ++i) {
    const int code = block.code(i);
    const int doubled = doubled_e2m1(code & 7);
    out.codes[row * out.padded_cols + first + i] =
        static_cast<int8_t>((code & 8) != 0 ? -doubled : doubled);
  }
  out.scales[index] = e4m3_times_512(block.scale);
}

// The sum over a block in words x and y, times nothing: 4 times the sum of products.
__device__ int block_dot(uint2 words, const int8_t* codes) {
  int sum = 0;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const uint32_t pair = Nvfp4Unit::pair(words.x, words.y, i);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int magnitude = static_cast<int>(pair >> (16 * h + 6) & 7);
      const int doubled = doubled_e2m1(magnitude);
      const int code = codes[2 * i + h];
      sum += (pair >> (16 * h) & 0x8000) != 0 ? -doubled * code : doubled * code;
    }
  }
  return sum;
}

__global__ void linear_w4a4_kernel(W4a4Args a, int64_t tiles, int64_t units) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t tile = int64_t{blockIdx.y} * (kThreads / 32) + threadIdx.x / 32;
  const int64_t slot = blockIdx.x;
  if (tile >= tiles) return;
  if (a.expert_ids != nullptr && a.expert_ids[slot] < 0) return;  // another rank's
  const W4a4Weight weight =
      a.weights == nullptr ? a.weight : a.weights[a.expert_ids != nullptr ? a.expert_ids[slot] : 0];
  if (weight.data == nullptr) return;
  const int64_t x_row = slot / a.x_divisor;
  const int8_t* const codes = a.x.codes + x_row * a.x.padded_cols;
  const int32_t* const scales = a.x.scales + x_row * (a.x.padded_cols / kBlock);
  int64_t sums[2] = {0, 0};
  for (int64_t unit = 0; unit < units; ++unit) {
    const uint8_t* const base = weight.data + (tile * units + unit) * kNvfp4UnitBytes;
    for (int half = 0; half < 2; ++half) {
      const int64_t col = unit * kUnitCols + 64 * half + kBlock * (lane % 4);
      const uint2* const words = reinterpret_cast<const uint2*>(base + 512 * half + 16 * lane);
      for (int upper = 0; upper < 2; ++upper) {
        const int code = base[1024 + 4 * lane + 2 * half + upper];
        const int64_t scale = (8 + (code & 7)) << (code >> 3) >> 3;
        sums[upper] += block_dot(words[upper], codes + col) * scale *
                       static_cast<int64_t>(scales[col / kBlock]);
      }
    }
  }
  for (int upper = 0; upper < 2; ++upper) {
    for (int offset = 1; offset < 4; offset *= 2) {
      sums[upper] += __shfl_xor_sync(~0u, sums[upper], offset);
    }
    const int64_t row = tile * kTileRows + lane / 4 + 8 * upper;
    if (lane % 4 != 0 || row >= a.out_rows) continue;
    const double sum = ldexp(static_cast<double>(sums[upper]), -20);
    a.out[slot * a.out_stride + row] =
        a.x.finite[x_row] == 0 ? nanf("")
                               : static_cast<float>(sum * static_cast<double>(weight.alpha));
  }
}

}  // namespace

void launch_w4a4_quantize(const float* x, int64_t rows, int64_t cols, int64_t stride,
                          float input_scale, const W4a4Activations& out, cudaStream_t stream) {
  (void)cudaMemsetAsync(out.finite, 0xff, static_cast<size_t>(rows) * sizeof(int32_t), stream);
  const int64_t blocks = rows * (out.padded_cols / kBlock);
  w4a4_quantize_kernel<<<static_cast<unsigned>(ceil_div(blocks, kThreads)), kThreads, 0, stream>>>(
      x, rows, cols, stride, input_scale, out);
}

void launch_linear_w4a4(const W4a4Args& args, cudaStream_t stream) {
  const PackedShape shape = packed_shape(LinearFormat::kNvfp4, args.out_rows, args.cols);
  const dim3 grid(static_cast<unsigned>(args.slots),
                  static_cast<unsigned>(ceil_div(shape.tiles, kThreads / 32)));
  linear_w4a4_kernel<<<grid, kThreads, 0, stream>>>(args, shape.tiles, shape.units);
}

}  // namespace nibble::cuda
