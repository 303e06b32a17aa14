// Parallel over groups of 8 panels (128 outputs), for up to 512 tokens at a time.
//
// Few tokens are bound by the weights' bytes, many by FMAs; bench/kernels/linear_bench.cpp prints
// the share of either limit that is reached.
#include <algorithm>

#include "nibble/base/check.h"
#include "nibble/kernels/cpu/activations.h"
#include "nibble/kernels/cpu/cpu_kernels.h"

namespace nibble {
namespace {

constexpr int64_t kChunkTokens = 512;  // a slice of them, 256 KB, stays in L2

}  // namespace

void CpuKernels::linear(const MatrixView& x, const LinearWeight& weight, const MatrixView& out) {
  NIBBLE_CHECK(x.cols == weight.cols && out.cols == weight.rows && x.rows == out.rows);
  NIBBLE_CHECK(x.dtype == DType::kF32 && out.dtype == DType::kF32);
  if (x.rows == 0) return;
  const PanelMatrix matrix = packed_matrix(weight);
  const int64_t panels = panels_of(weight.rows);
  const int64_t chunk = std::min(x.rows, kChunkTokens);
  const float alpha = output_scale(weight);
  float* const slices = activations_.reserve(*device_, slices_of(weight.cols) * kSliceCols * chunk);
  constexpr int64_t kGroupCols = int64_t{kGroupPanels} * kPanelRows;
  reserve_thread_scratch(kGroupFloats + chunk * kGroupCols);

  for (int64_t first = 0; first < x.rows; first += chunk) {
    const int64_t tokens = std::min(chunk, x.rows - first);
    const auto copy = [&](int64_t begin, int64_t end, int) {
      for (int64_t t = begin; t < end; ++t) {
        copy_to_slices(x.row<float>(first + t), weight, t, tokens, slices);
      }
    };
    pool_.parallel_for(tokens, 16, copy);

    const auto multiply = [&](int64_t begin, int64_t end, int thread_id) {
      ScratchCursor scratch = thread_scratch(thread_id);
      float* const weights = scratch.take(kGroupFloats);
      float* const c = scratch.take(tokens * kGroupCols);
      for (int64_t group = begin; group < end; ++group) {
        const int64_t first_panel = group * kGroupPanels;
        multiply_panels(matrix, first_panel, std::min<int64_t>(kGroupPanels, panels - first_panel),
                        slices, tokens, c, kGroupCols, kPanelRows, weights);
        const int64_t first_col = group * kGroupCols;
        const int64_t cols = std::min(kGroupCols, weight.rows - first_col);
        for (int64_t t = 0; t < tokens; ++t) {
          float* const row = out.row<float>(first + t) + first_col;
          for (int64_t i = 0; i < cols; ++i) row[i] = alpha * c[t * kGroupCols + i];
        }
      }
    };
    pool_.parallel_for(groups_of(weight.rows), 1, multiply);
  }
}

}  // namespace nibble
