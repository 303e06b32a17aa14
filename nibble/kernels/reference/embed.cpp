#include "nibble/base/check.h"
#include "nibble/kernels/reference/reference_kernels.h"
#include "nibble/numeric/bf16.h"

namespace nibble {

void ReferenceKernels::embed(const MatrixView& table, std::span<const int32_t> token_ids,
                             const MatrixView& out) {
  NIBBLE_CHECK(table.cols == out.cols && static_cast<int64_t>(token_ids.size()) == out.rows);
  for (int64_t t = 0; t < out.rows; ++t) {
    const int64_t id = token_ids[static_cast<size_t>(t)];
    NIBBLE_CHECK(id >= 0 && id < table.rows);
    for (int64_t i = 0; i < out.cols; ++i) {
      out.row<float>(t)[i] = table.dtype == DType::kBf16
                                 ? bf16_to_float(table.row<const uint16_t>(id)[i])
                                 : table.row<const float>(id)[i];
    }
  }
}

}  // namespace nibble
