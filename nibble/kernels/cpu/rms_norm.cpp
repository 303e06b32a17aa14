#include <cmath>

#include "nibble/base/check.h"
#include "nibble/kernels/cpu/cpu_kernels.h"
#include "nibble/kernels/cpu/rows.h"

namespace nibble {

void cpu_rms_norm_row(const float* x, const float* weight, float epsilon, int64_t n, float* out) {
  constexpr int kLanes = 16;
  double partial[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int64_t j = 0; j < kLanes; ++j) {
      const double v = static_cast<double>(x[i + j]);
      partial[j] += v * v;
    }
  }
  double sum = 0;
  for (const double p : partial) sum += p;
  for (; i < n; ++i) sum += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  const double scale = 1 / std::sqrt(sum / static_cast<double>(n) + static_cast<double>(epsilon));
  for (i = 0; i < n; ++i) {
    out[i] = static_cast<float>(static_cast<double>(x[i]) * scale * static_cast<double>(weight[i]));
  }
}

void CpuKernels::rms_norm(const MatrixView& x, const float* weight, float epsilon,
                          const MatrixView& out) {
  NIBBLE_CHECK(x.rows == out.rows && x.cols == out.cols);
  const auto normalize = [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) {
      cpu_rms_norm_row(x.row<float>(t), weight, epsilon, x.cols, out.row<float>(t));
    }
  };
  pool_.parallel_for(x.rows, 4, normalize);
}

}  // namespace nibble
