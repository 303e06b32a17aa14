#include <cmath>

#include "nibble/base/check.h"
#include "nibble/kernels/reference/reference_kernels.h"
#include "nibble/kernels/reference/rows.h"

namespace nibble {

void rms_norm_row(const float* x, const float* weight, float epsilon, int64_t n, float* out) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  const double mean = sum / static_cast<double>(n);
  const double scale = 1 / std::sqrt(mean + static_cast<double>(epsilon));
  for (int64_t i = 0; i < n; ++i) {
    out[i] = static_cast<float>(static_cast<double>(x[i]) * scale * static_cast<double>(weight[i]));
  }
}

void ReferenceKernels::rms_norm(const MatrixView& x, const float* weight, float epsilon,
                                const MatrixView& out) {
  NIBBLE_CHECK(x.rows == out.rows && x.cols == out.cols);
  for (int64_t t = 0; t < x.rows; ++t) {
    rms_norm_row(x.row<float>(t), weight, epsilon, x.cols, out.row<float>(t));
  }
}

}  // namespace nibble
