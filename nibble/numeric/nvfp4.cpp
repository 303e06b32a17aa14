#include "nibble/numeric/nvfp4.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cmath>

#include "nibble/base/check.h"
#include "nibble/base/error.h"
#include "nibble/numeric/fp4.h"
#include "nibble/numeric/fp8.h"
#include "nibble/numeric/nvfp4_isa.h"

namespace nibble {
namespace {

constexpr float kSmallestE4m3 = 0x1p-9f;
constexpr uint8_t kLargestScaleCode = 0x7e;
constexpr int kLanes = 16;  // blocks that the vector code does at once

// The largest magnitude, or infinity or NaN where there is one. Magnitudes order as their bits do,
// and a maximum of integers, unlike one of floats, may be taken in any order: it vectorizes.
float largest_magnitude(const float* values, size_t count) {
  int32_t largest = 0;
  for (size_t i = 0; i < count; ++i) {
    largest = std::max(largest, std::bit_cast<int32_t>(values[i]) & 0x7fffffff);
  }
  return std::bit_cast<float>(largest);
}

// float_to_e2m1 once more, where the compiler can see it: 16 columns at once.
void encode_codes(const float* values, float divisor, uint8_t* codes) {
  for (int i = 0; i < kNvfp4BlockSize; ++i) {
    const float x = values[i] / divisor;
    const float a = std::fabs(x);
    const int code = (a > 0.25f) + (a >= 0.75f) + (a > 1.25f) + (a >= 1.75f) + (a > 2.5f) +
                     (a >= 3.5f) + (a > 5.0f) + 8 * (x < 0.0f);
    codes[i] = static_cast<uint8_t>(code);
  }
}

void pack_codes(const uint8_t* codes, uint8_t* packed) {
  for (int i = 0; i < kNvfp4BlockSize / 2; ++i) {
    packed[i] = static_cast<uint8_t>(codes[2 * i] | codes[2 * i + 1] << 4);
  }
}

double squared_error(const float* values, const uint8_t* codes, float divisor) {
  double error = 0;
  for (int i = 0; i < kNvfp4BlockSize; ++i) {
    const double difference = double{values[i]} - double{kE2m1Values[codes[i]] * divisor};
    error += difference * difference;
  }
  return error;
}

// The codes of a block under a given scale; false when the divisor underflows.
bool encode_block(const float* values, float global_scale, uint8_t scale, uint8_t* codes) {
  const float divisor = kE4m3Values[scale] * global_scale;
  if (divisor == 0) return false;
  encode_codes(values, divisor, codes);
  return true;
}

// Keeps the better of what it has seen; the caller tries scales in rising order.
struct BestBlock {
  double error = 0;
  bool found = false;
  uint8_t scale = 0;
  uint8_t codes[kNvfp4BlockSize] = {};

  bool consider(const float* values, float global_scale, uint8_t candidate) {
    uint8_t tried[kNvfp4BlockSize];
    if (!encode_block(values, global_scale, candidate, tried)) return false;
    const double tried_error = squared_error(values, tried, kE4m3Values[candidate] * global_scale);
    if (!found || tried_error < error) {
      found = true;
      error = tried_error;
      scale = candidate;
      std::copy(tried, tried + kNvfp4BlockSize, codes);
    }
    return true;
  }
};

// e' H e in binary32, row by row of the lower triangle.
float hessian_error(const float* values, const uint8_t* codes, float divisor,
                    const float* hessian) {
  float errors[kNvfp4BlockSize];
  float sum = 0;
  for (int i = 0; i < kNvfp4BlockSize; ++i) {
    errors[i] = values[i] - kE2m1Values[codes[i]] * divisor;
    float cross = 0;
    for (int j = 0; j < i; ++j) cross += hessian[kNvfp4BlockSize * i + j] * errors[j];
    const float own = hessian[(kNvfp4BlockSize + 1) * i] * errors[i];
    sum += errors[i] * (cross + cross + own);
  }
  return sum;
}

constexpr int kCodesBelow = 8;  // kMax's scale: an octave
constexpr int kHessianCandidates = 20;

bool quantize_hessian_block(const float* values, float amax, float global_scale,
                            const float* hessian, uint8_t* packed, uint8_t* scale) {
  const int to_six = nvfp4_block_scale_code(amax, global_scale);
  const int first = std::max(to_six - kCodesBelow, 1);
  float best = INFINITY;
  *scale = static_cast<uint8_t>(first);
  uint8_t codes[kNvfp4BlockSize];
  for (int step = 0; step < kHessianCandidates; ++step) {
    const auto candidate = static_cast<uint8_t>(std::min<int>(first + step, kLargestScaleCode));
    if (!encode_block(values, global_scale, candidate, codes)) return false;
    const float error =
        hessian_error(values, codes, kE4m3Values[candidate] * global_scale, hessian);
    if (error < best) {
      best = error;
      *scale = candidate;
    }
  }
  if (!encode_block(values, global_scale, *scale, codes)) return false;
  pack_codes(codes, packed);
  return true;
}

// Sixteen blocks by the mode's vector code, where there is one. False: do it plainly.
bool encode_lanes([[maybe_unused]] const Nvfp4Lanes& lanes, [[maybe_unused]] float global_scale,
                  [[maybe_unused]] Nvfp4Mode mode, [[maybe_unused]] const float* hessian,
                  [[maybe_unused]] Isa isa) {
#if defined(__x86_64__)
  if (isa < Isa::kAvx512) return false;
  switch (mode) {
    case Nvfp4Mode::kMax:
      return encode_nvfp4_max_avx512(lanes, global_scale);
    case Nvfp4Mode::kFourOverSix:
      return encode_nvfp4_four_over_six_avx512(lanes, global_scale);
    case Nvfp4Mode::kMse:
      return encode_nvfp4_mse_avx512(lanes, global_scale);
    case Nvfp4Mode::kLocalHessian:
      return encode_nvfp4_hessian_avx512(lanes, global_scale, hessian);
  }
#endif
  return false;
}

// values hold 16 finite numbers, the largest magnitude of which is amax. False when block scale
// times global scale underflows.
bool quantize_finite_block(const float* values, float amax, float global_scale, Nvfp4Mode mode,
                           uint8_t* packed, uint8_t* scale) {
  if (mode == Nvfp4Mode::kMax) {
    *scale = nvfp4_block_scale_code(amax, global_scale);
    uint8_t codes[kNvfp4BlockSize];
    if (!encode_block(values, global_scale, *scale, codes)) return false;
    pack_codes(codes, packed);
    return true;
  }
  BestBlock best;
  if (mode == Nvfp4Mode::kFourOverSix) {
    const uint8_t to_six = nvfp4_block_scale_code(amax, global_scale);
    const uint8_t to_four = nvfp4_block_scale_code(amax * 1.5f, global_scale);
    if (!best.consider(values, global_scale, std::min(to_six, to_four))) return false;
    if (!best.consider(values, global_scale, std::max(to_six, to_four))) return false;
  } else {
    for (int code = 1; code <= kLargestScaleCode; ++code) {
      if (!best.consider(values, global_scale, static_cast<uint8_t>(code))) return false;
    }
  }
  *scale = best.scale;
  pack_codes(best.codes, packed);
  return true;
}

tl::unexpected<Error> not_finite(std::span<const float> values) {
  const auto bad =
      std::find_if_not(values.begin(), values.end(), [](float v) { return std::isfinite(v); });
  return invalid_argument(
      fmt::format("value {} is {}, expected finite numbers", bad - values.begin(), *bad));
}

tl::unexpected<Error> scale_underflow(float global_scale) {
  return invalid_argument(
      fmt::format("block scale times global scale {} underflows to 0", global_scale));
}

Status check_global_scale(float global_scale) {
  if (global_scale > 0 && std::isfinite(global_scale)) return {};
  return invalid_argument(
      fmt::format("global scale is {}, expected a positive finite number", global_scale));
}

Status check_cols(int64_t cols) {
  if (cols >= 0 && cols % kNvfp4BlockSize == 0) return {};
  return invalid_argument(
      fmt::format("{} columns can't be NVFP4, expected a multiple of {}", cols, kNvfp4BlockSize));
}

}  // namespace

Isa numeric_isa() {
  static const Isa kIsa = selected_isa().value_or(detected_isa());
  return kIsa;
}

Result<float> nvfp4_amax(std::span<const float> values) {
  const float amax = largest_magnitude(values.data(), values.size());
  if (!std::isfinite(amax)) return not_finite(values);
  return amax;
}

Result<float> nvfp4_global_scale(float amax, Nvfp4Mode mode) {
  if (!(amax >= 0) || std::isinf(amax)) {
    return invalid_argument(
        fmt::format("amax is {}, expected a finite number that is not negative", amax));
  }
  // 4over6 leaves room above 256 for scales that are half as large again: 256 * 1.5 = 384 <= 448.
  const float divisor = mode == Nvfp4Mode::kFourOverSix ? kE2m1Max * 256.0f : kE2m1Max * kE4m3Max;
  const float scale = (amax == 0 ? kE2m1Max : amax) / divisor;
  if (scale == 0) {
    return invalid_argument(fmt::format("amax {} is too small for a binary32 scale", amax));
  }
  return scale;
}

uint8_t nvfp4_block_scale_code(float amax, float global_scale) {
  float ratio = amax / (kE2m1Max * global_scale);
  if (ratio == 0) ratio = 1;
  return float_to_e4m3(std::min(std::max(ratio, kSmallestE4m3), kE4m3Max));
}

Result<Nvfp4Block> quantize_nvfp4_block(std::span<const float, kNvfp4BlockSize> values,
                                        float global_scale, Nvfp4Mode mode) {
  NIBBLE_TRY(check_global_scale(global_scale));
  const float amax = NIBBLE_TRY(nvfp4_amax(values));
  Nvfp4Block block;
  if (!quantize_finite_block(values.data(), amax, global_scale, mode, block.packed.data(),
                             &block.scale)) {
    return scale_underflow(global_scale);
  }
  return block;
}

Result<Nvfp4Block> quantize_nvfp4_activation_block(std::span<const float, kNvfp4BlockSize> values,
                                                   float input_scale) {
  NIBBLE_TRY(check_global_scale(input_scale));
  const float ratio = NIBBLE_TRY(nvfp4_amax(values)) / (kE2m1Max * input_scale);
  Nvfp4Block block = {};
  block.scale = float_to_e4m3(std::min(ratio, kE4m3Max));
  uint8_t codes[kNvfp4BlockSize];
  if (encode_block(values.data(), input_scale, block.scale, codes)) {
    pack_codes(codes, block.packed.data());
  }
  return block;
}

Status quantize_nvfp4_rows(const float* values, int64_t rows, int64_t cols, float global_scale,
                           Nvfp4Mode mode, uint8_t* packed, uint8_t* block_scales, Isa isa) {
  NIBBLE_TRY(check_cols(cols));
  NIBBLE_TRY(check_global_scale(global_scale));
  NIBBLE_CHECK(mode != Nvfp4Mode::kLocalHessian);
  const int64_t blocks = rows * (cols / kNvfp4BlockSize);
  for (int64_t b = 0; b < blocks; ++b) {
    const float* const block = values + b * kNvfp4BlockSize;
    if (b % kLanes == 0 && b + kLanes <= blocks &&
        encode_lanes({block, kNvfp4BlockSize, packed + b * kNvfp4BlockSize / 2, kNvfp4BlockSize / 2,
                      block_scales + b, 1},
                     global_scale, mode, nullptr, isa)) {
      b += kLanes - 1;
      continue;
    }
    const float amax = largest_magnitude(block, kNvfp4BlockSize);
    if (!std::isfinite(amax)) {
      const int64_t i = b * kNvfp4BlockSize;
      return with_context(Status(not_finite({block, kNvfp4BlockSize})),
                          fmt::format("row {}, columns {} to {}", i / cols, i % cols,
                                      i % cols + kNvfp4BlockSize - 1));
    }
    if (!quantize_finite_block(block, amax, global_scale, mode, packed + b * kNvfp4BlockSize / 2,
                               block_scales + b)) {
      return scale_underflow(global_scale);
    }
  }
  return {};
}

Status quantize_nvfp4_block_column(const Nvfp4BlockColumn& column, float global_scale,
                                   Nvfp4Mode mode, const float* hessian, Isa isa) {
  NIBBLE_TRY(check_global_scale(global_scale));
  NIBBLE_CHECK(mode != Nvfp4Mode::kLocalHessian || hessian != nullptr);
  for (int64_t r = 0; r < column.rows; ++r) {
    const float* const block = column.values + r * column.value_stride;
    uint8_t* const packed = column.packed + r * column.packed_stride;
    uint8_t* const scale = column.scales + r * column.scale_stride;
    if (r % kLanes == 0 && r + kLanes <= column.rows &&
        encode_lanes(
            {block, column.value_stride, packed, column.packed_stride, scale, column.scale_stride},
            global_scale, mode, hessian, isa)) {
      r += kLanes - 1;
      continue;
    }
    const float amax = largest_magnitude(block, kNvfp4BlockSize);
    if (!std::isfinite(amax)) {
      return with_context(Status(not_finite({block, kNvfp4BlockSize})), fmt::format("row {}", r));
    }
    const bool done =
        mode == Nvfp4Mode::kLocalHessian
            ? quantize_hessian_block(block, amax, global_scale, hessian, packed, scale)
            : quantize_finite_block(block, amax, global_scale, mode, packed, scale);
    if (!done) return scale_underflow(global_scale);
  }
  return {};
}

Result<Nvfp4Tensor> quantize_nvfp4(std::span<const float> values, int64_t rows, int64_t cols,
                                   Nvfp4Mode mode, std::optional<float> amax) {
  NIBBLE_TRY(check_cols(cols));
  if (!amax) amax = NIBBLE_TRY(nvfp4_amax(values));
  Nvfp4Tensor tensor;
  tensor.global_scale = NIBBLE_TRY(nvfp4_global_scale(*amax, mode));
  tensor.rows = rows;
  tensor.cols = cols;
  tensor.packed.resize(static_cast<size_t>(rows * cols / 2));
  tensor.block_scales.resize(static_cast<size_t>(rows * cols / kNvfp4BlockSize));
  NIBBLE_TRY(quantize_nvfp4_rows(values.data(), rows, cols, tensor.global_scale, mode,
                                 tensor.packed.data(), tensor.block_scales.data()));
  return tensor;
}

Status dequantize_nvfp4_rows(const uint8_t* packed, const uint8_t* block_scales, float global_scale,
                             int64_t rows, int64_t cols, float* out) {
  NIBBLE_TRY(check_cols(cols));
  if (!std::isfinite(global_scale)) {
    return invalid_argument(
        fmt::format("global scale is {}, expected a finite number", global_scale));
  }
  const int64_t blocks_per_row = cols / kNvfp4BlockSize;
  const int64_t blocks = rows * blocks_per_row;
  if (const auto bad = find_bad_block_scale({block_scales, static_cast<size_t>(blocks)})) {
    const auto i = static_cast<int64_t>(*bad);
    return corrupt(fmt::format("block scale [{}, {}] is 0x{:02x}, expected 0x00 to 0x7e",
                               i / blocks_per_row, i % blocks_per_row, block_scales[i]));
  }
  for (int64_t b = 0; b < blocks; ++b) {
    const float scale = kE4m3Values[block_scales[b]] * global_scale;
    for (int64_t i = b * kNvfp4BlockSize; i < (b + 1) * kNvfp4BlockSize; i += 2) {
      const uint8_t byte = packed[i / 2];
      out[i] = kE2m1Values[byte & 0xf] * scale;
      out[i + 1] = kE2m1Values[byte >> 4] * scale;
    }
  }
  return {};
}

std::optional<size_t> find_bad_block_scale(std::span<const uint8_t> block_scales) {
  for (size_t i = 0; i < block_scales.size(); ++i) {
    if (block_scales[i] > kLargestScaleCode) return i;
  }
  return std::nullopt;
}

}  // namespace nibble
