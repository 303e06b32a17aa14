// What backends in host memory have in common.
#include "nibble/kernels/kernels.h"

#include <cstring>

#include "nibble/base/check.h"

namespace nibble {

void Kernels::copy_rows(std::span<const RowCopy> rows, int64_t cols) {
  NIBBLE_CHECK(device().is_host());
  for (const RowCopy& row : rows) {
    std::memcpy(row.to, row.from, static_cast<size_t>(cols) * sizeof(float));
  }
}

Result<std::unique_ptr<DeviceSampler>> Kernels::make_sampler(int64_t /*vocab_size*/) {
  return std::unique_ptr<DeviceSampler>();
}

std::unique_ptr<StepGraphs> Kernels::make_step_graphs() { return nullptr; }

}  // namespace nibble
