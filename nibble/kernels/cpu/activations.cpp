#include "nibble/kernels/cpu/activations.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "nibble/kernels/cpu/block_isa.h"
#include "nibble/kernels/cpu/panel_layout.h"
#include "nibble/kernels/cpu/tile_isa.h"
#include "nibble/numeric/fp4.h"
#include "nibble/numeric/fp8.h"
#include "nibble/numeric/nvfp4.h"

namespace nibble {

void copy_floats_to_slices(const float* x, int64_t cols, int64_t row, int64_t rows, float* slices) {
  for (int64_t c = 0; c < cols; c += kSliceCols) {
    std::memcpy(slices + c * rows + row * kSliceCols, x + c,
                static_cast<size_t>(std::min<int64_t>(kSliceCols, cols - c)) * sizeof(float));
  }
}

void quantize_nvfp4_row(const float* x, int64_t count, float input_scale, void* record) {
  // The place of a block's column in the record: eight by eight, 0 2 4 6 1 3 5 7.
  constexpr int kPlace[8] = {0, 4, 1, 5, 2, 6, 3, 7};
  auto* values = static_cast<int8_t*>(record);
  auto* bias = reinterpret_cast<int32_t*>(values + kInt8BiasOffset);
  auto* block_scale = reinterpret_cast<float*>(values + kInt8ScaleOffset);
  for (int64_t b = 0; b < count; b += kNvfp4BlockSize, x += kNvfp4BlockSize) {
    float amax = 0;
    float poison = 0;  // stays 0 while all are finite
    for (int i = 0; i < kNvfp4BlockSize; ++i) {
      amax = std::max(amax, std::fabs(x[i]));
      poison += x[i] - x[i];
    }
    const bool finite = poison == 0;
    const float ratio = finite ? amax / (kE2m1Max * input_scale) : 0;
    const float scale = kE4m3Values[float_to_e4m3(std::min(ratio, kE4m3Max))];
    const float divisor = scale * input_scale;
    int32_t sum = 0;
    for (int i = 0; i < kNvfp4BlockSize; ++i) {
      const float v = divisor == 0 ? 0 : x[i] / divisor;
      const float a = std::fabs(v);
      // Twice the value of float_to_e2m1's code: steps of a half up to 2, of one up to 4, then 6;
      // ties to the even code.
      const int step = (a > 0.25f) + (a >= 0.75f) + (a > 1.25f) + (a >= 1.75f) +
                       2 * ((a > 2.5f) + (a >= 3.5f)) + 4 * (a > 5.0f);
      const int code = v < 0 ? -step : step;
      values[i / 8 * 8 + kPlace[i % 8]] = static_cast<int8_t>(code);
      sum += code;
    }
    values += kNvfp4BlockSize;
    *bias++ = -12 * sum;
    *block_scale++ = finite ? 0.5f * scale : std::numeric_limits<float>::quiet_NaN();
  }
}

bool same_activation(const LinearWeight& a, const LinearWeight& b) {
  // Rows of NVFP4 and BF16 weights have forms of their own; all others are floats.
  const auto own_form = [](const LinearWeight& weight) {
    return weight.format == LinearFormat::kNvfp4 || weight.format == LinearFormat::kBf16;
  };
  if (a.format != b.format && (own_form(a) || own_form(b))) return false;
  if (a.activation != b.activation) return false;
  return a.activation == ActivationFormat::kUnquantized || a.input_scale == b.input_scale;
}

float output_scale(const LinearWeight& weight, RowFormat rows) {
  const bool tiles = rows == RowFormat::kBf16 || rows == RowFormat::kBf16Split;
  if (weight.format != LinearFormat::kNvfp4) return tiles ? kTileBf16Factor : 1;
  if (weight.activation == ActivationFormat::kNvfp4) {
    return weight.input_scale * weight.global_scale;
  }
  return tiles ? kTileNvfp4Factor * weight.global_scale : weight.global_scale;
}

}  // namespace nibble
