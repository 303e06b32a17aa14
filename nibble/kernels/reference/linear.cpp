#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "nibble/base/check.h"
#include "nibble/kernels/reference/dequantize.h"
#include "nibble/kernels/reference/dot.h"
#include "nibble/kernels/reference/reference_kernels.h"
#include "nibble/numeric/nvfp4.h"
#include "nibble/numeric/nvfp4_exact_dot.h"

namespace nibble {
namespace {

// W4A16 and its like: dequantize a row of the weight, then dot products with every token.
void linear_unquantized(const MatrixView& x, const LinearWeight& weight, const MatrixView& out) {
  std::vector<float> row(static_cast<size_t>(weight.cols));
  for (int64_t n = 0; n < weight.rows; ++n) {
    dequantize_row(weight, n, row.data());
    for (int64_t t = 0; t < x.rows; ++t) {
      out.row<float>(t)[n] = static_cast<float>(dot(row.data(), x.row<float>(t), weight.cols));
    }
  }
}

// W4A4: both sides are codes and scales; the sum is an exact integer in units of 2^-20 (spec nvfp4
// section 8.5), multiplied by alpha and rounded once at the end. A row that holds a NaN or an
// infinity, which has no code, gives NaN.
void linear_w4a4(const MatrixView& x, const LinearWeight& weight, const MatrixView& out) {
  const int64_t blocks = weight.cols / kNvfp4BlockSize;
  std::vector<uint8_t> packed(static_cast<size_t>(weight.cols / 2));
  std::vector<uint8_t> scales(static_cast<size_t>(blocks));
  const double alpha = static_cast<double>(weight.input_scale * weight.global_scale);
  for (int64_t t = 0; t < x.rows; ++t) {
    bool finite = true;
    for (int64_t b = 0; b < blocks; ++b) {
      const std::span<const float, kNvfp4BlockSize> values(x.row<float>(t) + b * kNvfp4BlockSize,
                                                           kNvfp4BlockSize);
      const auto block = quantize_nvfp4_activation_block(values, weight.input_scale);
      finite = finite && block.has_value();
      if (!finite) break;
      std::copy(block->packed.begin(), block->packed.end(),
                packed.begin() + b * kNvfp4BlockSize / 2);
      scales[static_cast<size_t>(b)] = block->scale;
    }
    for (int64_t n = 0; n < weight.rows; ++n) {
      const auto* codes = static_cast<const uint8_t*>(weight.data) + n * weight.cols / 2;
      const auto* code_scales = static_cast<const uint8_t*>(weight.scales) + n * blocks;
      const int64_t sum =
          finite ? nvfp4_exact_dot(packed.data(), scales.data(), codes, code_scales, weight.cols)
                 : 0;
      out.row<float>(t)[n] =
          finite ? static_cast<float>(std::ldexp(static_cast<double>(sum), -20) * alpha)
                 : std::numeric_limits<float>::quiet_NaN();
    }
  }
}

}  // namespace

void ReferenceKernels::linear(const MatrixView& x, const LinearWeight& weight,
                              const MatrixView& out) {
  NIBBLE_CHECK(x.cols == weight.cols && out.cols == weight.rows && x.rows == out.rows);
  if (weight.activation == ActivationFormat::kNvfp4) {
    NIBBLE_CHECK(weight.format == LinearFormat::kNvfp4);
    linear_w4a4(x, weight, out);
  } else {
    linear_unquantized(x, weight, out);
  }
}

}  // namespace nibble
