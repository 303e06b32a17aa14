#include "nibble/base/check.h"
#include "nibble/kernels/cpu/cpu_kernels.h"

namespace nibble {

void CpuKernels::add(const MatrixView& x, const MatrixView& y) {
  NIBBLE_CHECK(x.rows == y.rows && x.cols == y.cols);
  const auto add_rows = [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) {
      float* const a = x.row<float>(t);
      const float* const b = y.row<float>(t);
      for (int64_t i = 0; i < x.cols; ++i) a[i] += b[i];
    }
  };
  pool_.parallel_for(x.rows, 8, add_rows);
}

}  // namespace nibble
