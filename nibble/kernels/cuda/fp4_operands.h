// Both sides of Blackwell's NVFP4 product as cuBLASLt takes them: codes as a checkpoint has them,
// block scales in tiles of 128 rows x 4 blocks (nibble/numeric/nvfp4_swizzle.h); and activations
// rounded to NVFP4 for tensor cores that take BF16.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "nibble/kernels/linear_weight.h"
#include "nibble/numeric/nvfp4_swizzle.h"

namespace nibble::cuda {

// One side, [rows, cols], in device memory.
struct Fp4Matrix {
  uint8_t* codes = nullptr;  // [rows, cols / 2], two E2M1 codes a byte, the even column in bits 0-3
  uint8_t* scales = nullptr;  // E4M3, swizzled, zeros in the padding
  int64_t rows = 0;
  int64_t cols = 0;  // a multiple of 128, zeros behind the matrix's own

  static constexpr int64_t codes_bytes(int64_t rows, int64_t cols) {
    return (rows * cols / 2 + 255) / 256 * 256;
  }
  static constexpr int64_t bytes(int64_t rows, int64_t cols) {
    return codes_bytes(rows, cols) + nvfp4_swizzled_bytes(rows, cols / 16);
  }
  // In memory of bytes(rows, cols), a multiple of 256 its address.
  static Fp4Matrix at(uint8_t* memory, int64_t rows, int64_t cols) {
    return {memory, memory + codes_bytes(rows, cols), rows, cols};
  }
};

// From a packed NVFP4 weight (packed_layout.h) of out.rows rows. Codes are the checkpoint's, but
// those of a block whose scale is 0 are 0; so is the scale of a block of zeros below 2^-8.
cudaError_t launch_fp4_weight(const void* packed, const Fp4Matrix& out, cudaStream_t stream);

// x float [out.rows, cols] with rows of `stride`, by the rule of activations. A row with a value
// that is not finite sets its `finite` to 0, the others to -1.
//   finite  int32 [out.rows]
cudaError_t launch_fp4_quantize(const float* x, int64_t cols, int64_t stride, float input_scale,
                                const Fp4Matrix& out, int32_t* finite, cudaStream_t stream);

// out[r, 0 .. cols - 1] = NaN where finite[r] is 0.
cudaError_t launch_spoil_rows(const int32_t* finite, int64_t rows, int64_t cols, float* out,
                              int64_t stride, cudaStream_t stream);

// The same rounding, as BF16 values without input_scale: E2M1 times E4M3, which BF16 holds. Rows of
// padded_cols (a multiple of 128), zeros behind the last column; NaN for a block with a value that
// is not finite.
cudaError_t launch_nvfp4_round(const float* x, int64_t rows, int64_t cols, int64_t stride,
                               float input_scale, int64_t padded_cols, uint16_t* out,
                               cudaStream_t stream);

}  // namespace nibble::cuda
