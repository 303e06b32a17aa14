#include "nibble/kernels/cpu/activations.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "nibble/kernels/cpu/panel_isa.h"
#include "nibble/numeric/fp4.h"
#include "nibble/numeric/fp8.h"
#include "nibble/numeric/nvfp4.h"

namespace nibble {

void quantize_activations(const float* x, int64_t cols, float input_scale, float* out) {
  for (int64_t b = 0; b < cols;
       b += kNvfp4BlockSize, x += kNvfp4BlockSize, out += kNvfp4BlockSize) {
    float amax = 0;
    float poison = 0;  // stays 0 while all are finite
    for (int i = 0; i < kNvfp4BlockSize; ++i) {
      amax = std::max(amax, std::fabs(x[i]));
      poison += x[i] - x[i];
    }
    if (poison != 0 || std::isnan(poison)) {
      std::fill_n(out, kNvfp4BlockSize, std::numeric_limits<float>::quiet_NaN());
      continue;
    }
    const float ratio = amax / (kE2m1Max * input_scale);
    const float scale = kE4m3Values[float_to_e4m3(std::min(ratio, kE4m3Max))];
    const float divisor = scale * input_scale;
    if (divisor == 0) {
      std::fill_n(out, kNvfp4BlockSize, 0.0f);
      continue;
    }
    for (int i = 0; i < kNvfp4BlockSize; ++i) {
      const float v = x[i] / divisor;
      const float a = std::fabs(v);
      // The value of float_to_e2m1's code: steps of a half up to 2, of one up to 4, then 6; ties
      // to the even code.
      const float step =
          0.5f * static_cast<float>((a > 0.25f) + (a >= 0.75f) + (a > 1.25f) + (a >= 1.75f)) +
          static_cast<float>((a > 2.5f) + (a >= 3.5f)) + 2.0f * static_cast<float>(a > 5.0f);
      out[i] = std::copysign(step, v) * scale;
    }
  }
}

void copy_to_slices(const float* x, const LinearWeight& weight, int64_t row, int64_t rows,
                    float* slices) {
  float* out = slices + row * kSliceCols;
  for (int64_t left = weight.cols; left > 0; left -= kSliceCols) {
    const int64_t count = std::min<int64_t>(left, kSliceCols);
    if (weight.activation == ActivationFormat::kNvfp4) {
      quantize_activations(x, count, weight.input_scale, out);
    } else {
      std::memcpy(out, x, static_cast<size_t>(count) * sizeof(float));
    }
    x += kSliceCols;
    out += rows * kSliceCols;
  }
}

bool same_activation(const LinearWeight& a, const LinearWeight& b) {
  if (a.activation != b.activation) return false;
  return a.activation == ActivationFormat::kUnquantized || a.input_scale == b.input_scale;
}

float output_scale(const LinearWeight& weight) {
  if (weight.format != LinearFormat::kNvfp4) return 1;
  return weight.activation == ActivationFormat::kNvfp4 ? weight.input_scale * weight.global_scale
                                                       : weight.global_scale;
}

}  // namespace nibble
