// What backends in host memory have in common.
#include "nibble/kernels/kernels.h"

#include <cstring>

#include "nibble/base/check.h"
#include "nibble/kernels/device_sampler.h"
#include "nibble/kernels/step_graphs.h"

namespace nibble {

void Kernels::copy_rows(std::span<const RowCopy> rows, int64_t cols) {
  NIBBLE_CHECK(device().is_host());
  for (const RowCopy& row : rows) {
    std::memcpy(row.to, row.from, static_cast<size_t>(cols) * sizeof(float));
  }
}

void Kernels::copy_matrix(const MatrixView& from, const MatrixView& to) {
  NIBBLE_CHECK(device().is_host() && from.rows == to.rows && from.cols == to.cols);
  for (int64_t r = 0; r < from.rows; ++r) {
    std::memcpy(to.row<float>(r), from.row<float>(r),
                static_cast<size_t>(from.cols) * sizeof(float));
  }
}

void Kernels::embed_part(const MatrixView& table, int64_t first_id,
                         std::span<const int32_t> token_ids, const MatrixView& out) {
  NIBBLE_CHECK(device().is_host() && static_cast<int64_t>(token_ids.size()) == out.rows);
  for (int64_t t = 0; t < out.rows; ++t) {
    const int64_t row = token_ids[static_cast<size_t>(t)] - first_id;
    const MatrixView to = out.slice_rows(t, 1);
    if (row >= 0 && row < table.rows) {
      const auto id = static_cast<int32_t>(row);
      embed(table, std::span(&id, 1), to);
    } else {
      std::memset(to.data, 0, static_cast<size_t>(to.cols) * sizeof(float));
    }
  }
}

Result<std::unique_ptr<DeviceSampler>> Kernels::make_sampler(int64_t /*vocab_size*/) {
  return std::unique_ptr<DeviceSampler>();
}

std::unique_ptr<StepGraphs> Kernels::make_step_graphs() { return nullptr; }

StagedMoe* Kernels::staged_moe() { return nullptr; }

}  // namespace nibble
