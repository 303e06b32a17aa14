#include <cstring>

#include "nibble/base/check.h"
#include "nibble/kernels/cpu/cpu_kernels.h"

namespace nibble {

void CpuKernels::embed(const MatrixView& table, std::span<const int32_t> token_ids,
                       const MatrixView& out) {
  NIBBLE_CHECK(table.cols == out.cols && static_cast<int64_t>(token_ids.size()) == out.rows);
  NIBBLE_CHECK(table.dtype == DType::kBf16 || table.dtype == DType::kF32);
  const PanelFormat format = table.dtype == DType::kBf16 ? PanelFormat::kBf16 : PanelFormat::kF32;
  const auto copy = [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) {
      const int64_t id = token_ids[static_cast<size_t>(t)];
      NIBBLE_CHECK(id >= 0 && id < table.rows);
      const MatrixView row = table.slice_rows(id, 1);
      isa_->to_float(format, row.data, out.cols, out.row<float>(t));
    }
  };
  pool_.parallel_for(out.rows, 16, copy);
}

}  // namespace nibble
