// One thread for each block of 16 codes, or for a lane's share of a packed unit. Bound: the bytes
// read and written; the scales' bytes are scattered by their layout.
#include "nibble/kernels/cuda/fp4_operands.h"
#include "nibble/kernels/cuda/launch.cuh"
#include "nibble/kernels/cuda/numeric.cuh"
#include "nibble/kernels/cuda/nvfp4_activation.cuh"
#include "nibble/kernels/cuda/packed_layout.h"
#include "nibble/kernels/cuda/units.cuh"

namespace nibble::cuda {
namespace {

constexpr int kThreads = 256;

__device__ int64_t scale_offset(int64_t row, int64_t block, int64_t blocks) {
  return (row / 128 * (blocks / 4) + block / 4) * 512 + row % 32 * 16 + row % 128 / 32 * 4 +
         block % 4;
}

// The E4M3 code of which nvfp4_scale_code() (pack_kernels.cu) made `code`.
__device__ uint8_t e4m3_of_scale_code(int code) {
  const int exponent = code >> 3;
  const int fraction = code & 7;
  if (exponent >= 3) return static_cast<uint8_t>((exponent - 2) << 3 | fraction);
  if (exponent == 2) return static_cast<uint8_t>(4 + (fraction >> 1));
  return static_cast<uint8_t>(exponent == 1 ? 2 + (fraction >> 2) : 1);
}

__global__ void fp4_weight_kernel(const uint8_t* packed, int64_t units, int64_t total,
                                  Fp4Matrix out) {
  let_next_start();
  wait_for_previous();
  const int64_t index = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (index >= total) return;
  const int lane = static_cast<int>(index % 32);
  const int64_t unit = index / 32 % units;
  const int64_t tile = index / 32 / units;
  const uint8_t* const base = packed + index / 32 * kNvfp4UnitBytes;
  for (int half = 0; half < 2; ++half) {
    const uint2* const words = reinterpret_cast<const uint2*>(base + 512 * half + 16 * lane);
    const int64_t col = unit * kUnitCols + 64 * half + kFp4Block * (lane % 4);
    for (int upper = 0; upper < 2; ++upper) {
      const int64_t row = tile * kTileRows + lane / 4 + 8 * upper;
      if (row >= out.rows) continue;
      uint32_t codes[2] = {0, 0};
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        // Sign in bit 15 of each half, magnitude in bits 8 to 6.
        const uint32_t pair = Nvfp4Unit::pair(words[upper].x, words[upper].y, i);
        const uint32_t even = (pair >> 12 & 8) | (pair >> 6 & 7);
        const uint32_t odd = (pair >> 28 & 8) | (pair >> 22 & 7);
        codes[i / 4] |= (even | odd << 4) << (8 * (i % 4));
      }
      *reinterpret_cast<uint2*>(out.codes + (row * out.cols + col) / 2) =
          make_uint2(codes[0], codes[1]);
      const int code = base[1024 + 4 * lane + 2 * half + upper];
      const bool is_zero = code == 0 && ((codes[0] | codes[1]) & 0x77777777u) == 0;
      out.scales[scale_offset(row, col / kFp4Block, out.cols / kFp4Block)] =
          is_zero ? uint8_t{0} : e4m3_of_scale_code(code);
    }
  }
}

__global__ void fp4_quantize_kernel(const float* x, int64_t cols, int64_t stride, float input_scale,
                                    Fp4Matrix out, int32_t* finite) {
  let_next_start();
  wait_for_previous();
  const int64_t blocks = out.cols / kFp4Block;
  const int64_t index = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (index >= out.rows * blocks) return;
  const int64_t row = index / blocks;
  const int64_t block = index % blocks;
  ActivationBlock values;
  values.load(x + row * stride, block * kFp4Block, cols, input_scale);
  if (!values.finite) finite[row] = 0;  // whoever writes writes the same
  uint32_t codes[2] = {0, 0};
#pragma unroll
  for (int i = 0; i < kFp4Block; ++i) {
    codes[i / 8] |= static_cast<uint32_t>(values.code(i)) << (4 * (i % 8));
  }
  *reinterpret_cast<uint2*>(out.codes + (row * out.cols + block * kFp4Block) / 2) =
      make_uint2(codes[0], codes[1]);
  out.scales[scale_offset(row, block, blocks)] = values.scale;
}

__global__ void spoil_rows_kernel(const int32_t* finite, int64_t cols, float* out, int64_t stride) {
  let_next_start();
  wait_for_previous();
  if (finite[blockIdx.x] != 0) return;
  for (int64_t i = threadIdx.x; i < cols; i += kThreads) {
    out[int64_t{blockIdx.x} * stride + i] = nanf("");
  }
}

__global__ void nvfp4_round_kernel(const float* x, int64_t rows, int64_t cols, int64_t stride,
                                   float input_scale, int64_t padded_cols, uint16_t* out) {
  let_next_start();
  wait_for_previous();
  const int64_t blocks = padded_cols / kFp4Block;
  const int64_t index = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (index >= rows * blocks) return;
  const int64_t row = index / blocks;
  const int64_t first = index % blocks * kFp4Block;
  ActivationBlock values;
  values.load(x + row * stride, first, cols, input_scale);
  const int scale = e4m3_times_512(values.scale);
  uint32_t words[8];
#pragma unroll
  for (int i = 0; i < kFp4Block; ++i) {
    const int code = values.code(i);
    const float magnitude = ldexpf(static_cast<float>(doubled_e2m1(code & 7) * scale), -10);
    const float value = values.finite ? ((code & 8) != 0 ? -magnitude : magnitude) : nanf("");
    const uint32_t bits = bf16_bits(value);
    words[i / 2] = i % 2 == 0 ? bits : words[i / 2] | bits << 16;
  }
  uint4* const to = reinterpret_cast<uint4*>(out + row * padded_cols + first);
  to[0] = make_uint4(words[0], words[1], words[2], words[3]);
  to[1] = make_uint4(words[4], words[5], words[6], words[7]);
}

unsigned grid_of(int64_t threads) { return static_cast<unsigned>(ceil_div(threads, kThreads)); }

cudaError_t clear_scales(const Fp4Matrix& matrix, cudaStream_t stream) {
  const int64_t bytes = nvfp4_swizzled_bytes(matrix.rows, matrix.cols / kFp4Block);
  return cudaMemsetAsync(matrix.scales, 0, static_cast<size_t>(bytes), stream);
}

}  // namespace

cudaError_t launch_fp4_weight(const void* packed, const Fp4Matrix& out, cudaStream_t stream) {
  if (const cudaError_t code = clear_scales(out, stream); code != cudaSuccess) return code;
  const int64_t units = out.cols / kUnitCols;
  const int64_t total = ceil_div(out.rows, kTileRows) * units * 32;
  return launch_overlapped(fp4_weight_kernel, dim3(grid_of(total)), dim3(kThreads), 0, stream,
                           static_cast<const uint8_t*>(packed), units, total, out);
}

cudaError_t launch_fp4_quantize(const float* x, int64_t cols, int64_t stride, float input_scale,
                                const Fp4Matrix& out, int32_t* finite, cudaStream_t stream) {
  if (const cudaError_t code = clear_scales(out, stream); code != cudaSuccess) return code;
  const cudaError_t set =
      cudaMemsetAsync(finite, 0xff, static_cast<size_t>(out.rows) * sizeof(int32_t), stream);
  if (set != cudaSuccess) return set;
  const int64_t total = out.rows * (out.cols / kFp4Block);
  return launch_overlapped(fp4_quantize_kernel, dim3(grid_of(total)), dim3(kThreads), 0, stream, x,
                           cols, stride, input_scale, out, finite);
}

cudaError_t launch_spoil_rows(const int32_t* finite, int64_t rows, int64_t cols, float* out,
                              int64_t stride, cudaStream_t stream) {
  return launch_overlapped(spoil_rows_kernel, dim3(static_cast<unsigned>(rows)), dim3(kThreads), 0,
                           stream, finite, cols, out, stride);
}

cudaError_t launch_nvfp4_round(const float* x, int64_t rows, int64_t cols, int64_t stride,
                               float input_scale, int64_t padded_cols, uint16_t* out,
                               cudaStream_t stream) {
  const int64_t total = rows * (padded_cols / kFp4Block);
  return launch_overlapped(nvfp4_round_kernel, dim3(grid_of(total)), dim3(kThreads), 0, stream, x,
                           rows, cols, stride, input_scale, padded_cols, out);
}

}  // namespace nibble::cuda
