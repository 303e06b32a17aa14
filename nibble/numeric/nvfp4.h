// NVFP4: blocks of 16 E2M1 codes along a row, an E4M3 scale for each block and one binary32 scale
// for the whole matrix. Value = e2m1(code) * (e4m3(block scale) * global scale).
//
// This is the defining arithmetic: every operation is binary32 and rounds once. Source: NVIDIA
// Model Optimizer, modelopt/torch/quantization/qtensor/nvfp4_tensor.py.
//
// Layout of a matrix [rows, cols], cols a multiple of 16, as a checkpoint stores it:
//   packed        [rows, cols / 2]   two codes a byte, the even column in bits 0-3   "weight"
//   block_scales  [rows, cols / 16]  E4M3, never negative, never NaN                 "weight_scale"
//   global_scale  one binary32, positive "weight_scale_2"
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "nibble/base/cpu_features.h"
#include "nibble/base/result.h"

namespace nibble {

inline constexpr int kNvfp4BlockSize = 16;

// selected_isa(), asked once; the machine's own level where NIBBLE_ISA is wrong (which the program
// refuses elsewhere).
Isa numeric_isa();

// How block scales are chosen. The file format is the same for all three.
enum class Nvfp4Mode {
  kMax,           // the block's largest magnitude becomes 6; what published checkpoints use
  kFourOverSix,   // it becomes 6 or 4, whichever gives the smaller squared error
  kMse,           // of all 126 positive scales the one with the smallest squared error
  kLocalHessian,  // of 20 scales around kMax's the one with the smallest e' H e, H = sum x x' over
                  // what the block's 16 columns are multiplied with; only for block columns
};

// The largest magnitude. 0 for no values. Errors: kInvalidArgument for NaN or infinity, with the
// index of the first such value.
Result<float> nvfp4_amax(std::span<const float> values);

// amax / 2688, or amax / 1536 for kFourOverSix; amax 0 counts as 6, so that a zero matrix gets a
// usable scale. Errors: kInvalidArgument for a negative, NaN or infinite amax, or one so small that
// the scale would be 0.
Result<float> nvfp4_global_scale(float amax, Nvfp4Mode mode = Nvfp4Mode::kMax);

// The E4M3 code of one weight block's scale: e4m3(amax / (6 * global_scale)), at least 2^-9, at
// most 448; a zero block gets 1 (0x38). block_amax finite and not negative, global_scale > 0.
uint8_t nvfp4_block_scale_code(float block_amax, float global_scale);

// One block: 16 codes in 8 bytes, and their scale.
struct Nvfp4Block {
  std::array<uint8_t, kNvfp4BlockSize / 2> packed;
  uint8_t scale;
};

// Quantizes 16 weights. With kFourOverSix and kMse errors are compared in binary64; equal ones give
// the smaller scale. Errors: kInvalidArgument for NaN or infinity, or when block scale times
// global_scale underflows to 0.
Result<Nvfp4Block> quantize_nvfp4_block(std::span<const float, kNvfp4BlockSize> values,
                                        float global_scale, Nvfp4Mode mode = Nvfp4Mode::kMax);

// Quantizes 16 activations by the rule of run time: scale = e4m3(min(amax / (6 * input_scale),
// 448)), without a lower clamp, so a zero block keeps scale 0x00 and codes 0, as does one whose
// scale rounds to 0. What lies above 2688 * input_scale saturates. input_scale > 0.
// Errors: kInvalidArgument for NaN or infinity.
Result<Nvfp4Block> quantize_nvfp4_activation_block(std::span<const float, kNvfp4BlockSize> values,
                                                   float input_scale);

// Quantizes rows of one matrix against a global scale that may come from a larger group. The bits
// are the same at every instruction-set level.
//   values [rows, cols]; packed [rows, cols / 2]; block_scales [rows, cols / 16]
//   mode   any but kLocalHessian
// Errors: kInvalidArgument when cols is not a multiple of 16 or a value is not finite (with its row
// and column), or the scale is not positive and finite; the output is then unspecified.
Status quantize_nvfp4_rows(const float* values, int64_t rows, int64_t cols, float global_scale,
                           Nvfp4Mode mode, uint8_t* packed, uint8_t* block_scales,
                           Isa isa = numeric_isa());

// Sixteen neighbouring columns of a matrix: one block of each row.
struct Nvfp4BlockColumn {
  const float* values;  // row r begins at values + r * value_stride
  int64_t rows;
  int64_t value_stride;
  uint8_t* packed;  // 8 bytes a row
  int64_t packed_stride;
  uint8_t* scales;  // one a row
  int64_t scale_stride;
};

// Quantizes one block column. hessian: float [16, 16], symmetric, for kLocalHessian; otherwise not
// read. Errors are those of quantize_nvfp4_rows, with the row.
Status quantize_nvfp4_block_column(const Nvfp4BlockColumn& column, float global_scale,
                                   Nvfp4Mode mode, const float* hessian, Isa isa = numeric_isa());

// A matrix that owns its three tensors.
struct Nvfp4Tensor {
  std::vector<uint8_t> packed;        // [rows, cols / 2]
  std::vector<uint8_t> block_scales;  // [rows, cols / 16]
  float global_scale = 0;
  int64_t rows = 0;
  int64_t cols = 0;
};

// Quantizes a whole matrix [rows, cols]. `amax` is its sharing group's, by default its own.
// Errors: those of nvfp4_amax, nvfp4_global_scale and quantize_nvfp4_rows.
Result<Nvfp4Tensor> quantize_nvfp4(std::span<const float> values, int64_t rows, int64_t cols,
                                   Nvfp4Mode mode = Nvfp4Mode::kMax,
                                   std::optional<float> amax = std::nullopt);

// out [rows, cols] = e2m1(code) * (e4m3(scale) * global_scale), the product of the scales first.
// Errors: kCorrupt for a block scale that is negative or NaN, with its place; kInvalidArgument when
// cols is not a multiple of 16 or global_scale is not finite.
Status dequantize_nvfp4_rows(const uint8_t* packed, const uint8_t* block_scales, float global_scale,
                             int64_t rows, int64_t cols, float* out);

// The first block scale that is negative (sign bit set, 0x80 too) or NaN, or nothing.
std::optional<size_t> find_bad_block_scale(std::span<const uint8_t> block_scales);

}  // namespace nibble
