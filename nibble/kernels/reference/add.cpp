#include "nibble/base/check.h"
#include "nibble/kernels/reference/reference_kernels.h"

namespace nibble {

void ReferenceKernels::add(const MatrixView& x, const MatrixView& y) {
  NIBBLE_CHECK(x.rows == y.rows && x.cols == y.cols);
  for (int64_t t = 0; t < x.rows; ++t) {
    for (int64_t i = 0; i < x.cols; ++i) x.row<float>(t)[i] += y.row<float>(t)[i];
  }
}

}  // namespace nibble
