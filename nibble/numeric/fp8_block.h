// DeepSeek's FP8 weights: E4M3 codes [rows, cols] and one binary32 factor for each 128x128 block,
// "weight_scale_inv". Despite its name it multiplies: value = e4m3(code) * weight_scale_inv. The
// last block of a row or column of blocks may be partial (kv_a_proj_with_mqa has 576 rows).
// Source: deepseek-ai/DeepSeek-V3 README_WEIGHTS.md and inference/fp8_cast_bf16.py.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "nibble/base/cpu_features.h"
#include "nibble/base/result.h"
#include "nibble/numeric/fp8.h"
#include "nibble/numeric/nvfp4.h"

namespace nibble {

// ceil(n / 128).
inline constexpr int64_t num_fp8_blocks(int64_t n) {
  return (n + kFp8BlockSize - 1) / kFp8BlockSize;
}

// A matrix somebody else owns.
struct Fp8BlockMatrix {
  const uint8_t* codes;     // [rows, cols]                                          "weight"
  const float* scales_inv;  // [num_fp8_blocks(rows), num_fp8_blocks(cols)] "weight_scale_inv"
  int64_t rows;
  int64_t cols;
};

// Rows [row_begin, row_end) into out [row_end - row_begin, cols], the product rounded once, to
// binary32. Errors: kCorrupt naming row and column where a value is NaN or infinite (a NaN code, a
// scale that is not finite, a product that overflows).
Status dequantize_fp8_block(const Fp8BlockMatrix& matrix, int64_t row_begin, int64_t row_end,
                            float* out);

// The same, rounded once more, to BF16, as DeepSeek's own conversion does.
Status dequantize_fp8_block_to_bf16(const Fp8BlockMatrix& matrix, int64_t row_begin,
                                    int64_t row_end, uint16_t* out);

// The same as floats: bf16(e4m3(code) * weight_scale_inv).
Status dequantize_fp8_block_rounded(const Fp8BlockMatrix& matrix, int64_t row_begin,
                                    int64_t row_end, float* out, Isa isa = numeric_isa());

// The largest magnitude of what dequantize_fp8_block_rounded gives for these rows, from the codes'
// bytes: E4M3 magnitudes, products with a positive scale and rounding all keep the order. Needs
// positive scales. NaN or infinity where there is a NaN code or a product that overflows.
float fp8_block_rounded_amax(const Fp8BlockMatrix& matrix, int64_t row_begin, int64_t row_end,
                             Isa isa = numeric_isa());

// A matrix that owns its two tensors.
struct Fp8BlockTensor {
  std::vector<uint8_t> codes;
  std::vector<float> scales_inv;
  int64_t rows = 0;
  int64_t cols = 0;

  Fp8BlockMatrix view() const { return {codes.data(), scales_inv.data(), rows, cols}; }
};

// scale = amax(block) / 448 (1 for a zero block), code = e4m3(value / scale). values [rows, cols].
// Errors: kInvalidArgument for NaN or infinity, or a block so small that its scale is 0.
Result<Fp8BlockTensor> quantize_fp8_block(std::span<const float> values, int64_t rows,
                                          int64_t cols);

}  // namespace nibble
