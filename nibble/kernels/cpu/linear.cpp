// Parallel over groups of 8 panels (128 outputs), or several of them where tiles are used, for up
// to 512 tokens at a time.
//
// Few tokens are bound by the weights' bytes, many by FMAs; bench/kernels/linear_bench.cpp prints
// the share of either limit that is reached.
#include <algorithm>

#include "nibble/base/check.h"
#include "nibble/kernels/cpu/activations.h"
#include "nibble/kernels/cpu/cpu_kernels.h"

namespace nibble {

void CpuKernels::linear(const MatrixView& x, const LinearWeight& weight, const MatrixView& out) {
  perform_linear(x, weight, out, /*tiles=*/true);
}

void CpuKernels::perform_linear(const MatrixView& x, const LinearWeight& weight,
                                const MatrixView& out, bool tiles) {
  NIBBLE_CHECK(x.cols == weight.cols && out.cols == weight.rows && x.rows == out.rows);
  NIBBLE_CHECK(x.dtype == DType::kF32 && out.dtype == DType::kF32);
  if (x.rows == 0) return;
  const bool floats = !tiles && weight.format != LinearFormat::kNvfp4;
  const RowFormat rows = floats ? RowFormat::kFloat : row_format(weight);
  const int64_t panels = panels_of(weight.rows);
  const int64_t groups = groups_of(weight.rows);
  const int64_t chunk = std::min(x.rows, chunk_tokens(rows));
  float* const slices = activations_.reserve(*device_, slices_of(weight.cols) * kSliceCols * chunk);
  constexpr int64_t kGroupCols = int64_t{kGroupPanels} * kPanelRows;

  for (int64_t first = 0; first < x.rows; first += chunk) {
    const int64_t tokens = std::min(chunk, x.rows - first);
    const PanelMatrix matrix = panel_matrix(weight, rows);
    const float alpha = output_scale(weight, matrix.rows);
    rows_.clear();
    for (int64_t t = 0; t < tokens; ++t) rows_.push_back(x.row<float>(first + t));
    const auto copy = [&](int64_t begin, int64_t end, int) {
      copy_to_slices(rows_.data() + begin, end - begin, weight, matrix.rows, begin, tokens, slices);
    };
    pool_.parallel_for(tokens, 16, copy);

    const int64_t step = groups_of_task(matrix.rows, groups, tokens, 1);
    reserve_thread_scratch(ScratchCursor::padded(weight_floats(tokens, step)) +
                           step * tokens * kGroupCols);
    const auto multiply = [&](int64_t begin, int64_t end, int thread_id) {
      ScratchCursor scratch = thread_scratch(thread_id);
      float* const weights = scratch.take(weight_floats(tokens, step));
      float* const c = scratch.take(step * tokens * kGroupCols);
      for (int64_t task = begin; task < end; ++task) {
        const int64_t first_group = task * step;
        const int64_t num_groups = std::min(step, groups - first_group);
        PanelPart parts[kTaskParts];
        for (int64_t i = 0; i < num_groups; ++i) {
          const int64_t first_panel = (first_group + i) * kGroupPanels;
          parts[i] = {matrix, first_panel, std::min<int64_t>(kGroupPanels, panels - first_panel),
                      c + i * tokens * kGroupCols};
        }
        multiply_parts({parts, static_cast<size_t>(num_groups)}, slices, tokens, kGroupCols,
                       kPanelRows, weights);
        for (int64_t i = 0; i < num_groups; ++i) {
          const int64_t first_col = (first_group + i) * kGroupCols;
          const int64_t cols = std::min(kGroupCols, weight.rows - first_col);
          for (int64_t t = 0; t < tokens; ++t) {
            float* const row = out.row<float>(first + t) + first_col;
            const float* const sums = parts[i].c + t * kGroupCols;
            for (int64_t j = 0; j < cols; ++j) row[j] = alpha * sums[j];
          }
        }
      }
    };
    placement_.piece_bounds(groups, step, &bounds_);
    pool_.parallel_for_nodes(bounds_, 1, multiply);
  }
}

}  // namespace nibble
