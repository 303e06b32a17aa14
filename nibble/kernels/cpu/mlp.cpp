// SwiGLU MLPs: a list of runs (weights and the tokens that take them) is done in three parallel
// loops: rows into slices, gate and up with their product, down. A dense MLP is one run, a mixture
// of experts many (moe.cpp). A group of 128 outputs of gate and up is one slice of down's input, so
// the product is written where down will read it.
#include <algorithm>

#include "nibble/base/check.h"
#include "nibble/kernels/cpu/activations.h"
#include "nibble/kernels/cpu/cpu_kernels.h"

namespace nibble {
namespace {

constexpr int64_t kGroupCols = int64_t{kGroupPanels} * kPanelRows;
static_assert(kGroupCols == kSliceCols);

}  // namespace

void CpuKernels::perform_runs() {
  row_run_.clear();
  for (size_t i = 0; i < runs_.size(); ++i) {
    row_run_.insert(row_run_.end(), static_cast<size_t>(runs_[i].tokens), static_cast<int32_t>(i));
  }

  const auto matrix_of = [&](const LinearWeight& weight) {
    return panel_matrix(weight, row_format(weight));
  };

  const auto copy = [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin, stop = begin; i < end; i = stop) {
      const MlpRun& run = runs_[static_cast<size_t>(row_run_[static_cast<size_t>(i)])];
      stop = std::min(end, run.first_row + run.tokens);
      const float* const* const x = rows_.data() + i;
      const int64_t t = i - run.first_row;
      const MlpWeight& weight = *run.weight;
      copy_to_slices(x, stop - i, weight.gate_proj, row_format(weight.gate_proj), t, run.tokens,
                     run.gate_input);
      if (run.up_input != run.gate_input) {
        copy_to_slices(x, stop - i, weight.up_proj, row_format(weight.up_proj), t, run.tokens,
                       run.up_input);
      }
    }
  };
  const auto num_rows = static_cast<int64_t>(rows_.size());
  pool_.parallel_for(num_rows, num_rows >= int64_t{64} * pool_.num_threads() ? 16 : 4, copy);

  // Tasks of a few groups of the outputs of `matrices` matrices of each run, node by node with
  // their bounds, and each thread's scratch for them.
  int64_t scratch_weights = 0;
  int64_t scratch_results = 0;  // of each matrix
  const auto list_tasks = [&](LinearWeight MlpWeight::*matrix, int64_t matrices) {
    int64_t all_groups = 0;
    for (const MlpRun& run : runs_) all_groups += groups_of((run.weight->*matrix).rows);
    tasks_.clear();
    bounds_.assign(1, 0);
    scratch_weights = 0;
    scratch_results = 0;
    for (size_t node = 0; node < pool_.nodes().size(); ++node) {
      for (size_t i = 0; i < runs_.size(); ++i) {
        const LinearWeight& weight = runs_[i].weight->*matrix;
        const int64_t end = placement_.first_group(groups_of(weight.rows), node + 1);
        const int64_t tokens = runs_[i].tokens;
        const int64_t step = groups_of_task(row_format(weight), all_groups, tokens, matrices);
        scratch_weights = std::max(scratch_weights, weight_floats(tokens, step * matrices));
        scratch_results = std::max(scratch_results, step * tokens * kGroupCols);
        for (int64_t g = placement_.first_group(groups_of(weight.rows), node); g < end; g += step) {
          tasks_.push_back({static_cast<int32_t>(i), static_cast<int32_t>(g),
                            static_cast<int32_t>(std::min(step, end - g))});
        }
      }
      bounds_.push_back(static_cast<int64_t>(tasks_.size()));
    }
    reserve_thread_scratch(ScratchCursor::padded(scratch_weights) + matrices * scratch_results);
  };

  const auto gate_up = [&](int64_t begin, int64_t end, int thread_id) {
    ScratchCursor scratch = thread_scratch(thread_id);
    float* const weights = scratch.take(scratch_weights);
    float* const gate = scratch.take(scratch_results);
    float* const up = scratch.take(scratch_results);
    for (int64_t i = begin; i < end; ++i) {
      const RunTask task = tasks_[static_cast<size_t>(i)];
      const MlpRun& run = runs_[static_cast<size_t>(task.run)];
      const MlpWeight& weight = *run.weight;
      const int64_t intermediate = weight.gate_proj.rows;
      const PanelMatrix gate_matrix = matrix_of(weight.gate_proj);
      const PanelMatrix up_matrix = matrix_of(weight.up_proj);
      const auto num_groups = static_cast<size_t>(task.num_groups);
      PanelPart parts[kTaskParts];
      NIBBLE_CHECK(2 * num_groups <= std::size(parts));
      for (size_t g = 0; g < num_groups; ++g) {
        const int64_t group = task.group + static_cast<int64_t>(g);
        const int64_t first_panel = group * kGroupPanels;
        const int64_t panels =
            std::min<int64_t>(kGroupPanels, panels_of(intermediate) - first_panel);
        const int64_t offset = static_cast<int64_t>(g) * run.tokens * kGroupCols;
        parts[g] = {gate_matrix, first_panel, panels, gate + offset};
        parts[num_groups + g] = {up_matrix, first_panel, panels, up + offset};
      }
      const std::span<const PanelPart> all(parts, 2 * num_groups);
      if (run.up_input == run.gate_input && weight.gate_proj.format == weight.up_proj.format) {
        multiply_parts(all, run.gate_input, run.tokens, kGroupCols, kPanelRows, weights);
      } else {
        multiply_parts(all.first(num_groups), run.gate_input, run.tokens, kGroupCols, kPanelRows,
                       weights);
        multiply_parts(all.last(num_groups), run.up_input, run.tokens, kGroupCols, kPanelRows,
                       weights);
      }
      const float gate_scale = output_scale(weight.gate_proj, gate_matrix.rows);
      const float up_scale = output_scale(weight.up_proj, up_matrix.rows);
      const RowFormat down_rows = row_format(weight.down_proj);
      const int64_t row_floats = row_slice_floats(down_rows);
      for (size_t g = 0; g < num_groups; ++g) {
        const int64_t group = task.group + static_cast<int64_t>(g);
        const int64_t cols = std::min(kGroupCols, intermediate - group * kGroupCols);
        float* const product = run.product + group * run.tokens * row_floats;
        for (int64_t t = 0; t < run.tokens; ++t) {
          float* const row = parts[g].c + t * kGroupCols;
          isa_->swiglu(row, gate_scale, parts[num_groups + g].c + t * kGroupCols, up_scale, cols,
                       row);
          copy_slice(row, cols, weight.down_proj, down_rows, t, run.tokens, product);
        }
      }
    }
  };
  list_tasks(&MlpWeight::gate_proj, 2);
  pool_.parallel_for_nodes(bounds_, 1, gate_up);

  const auto down = [&](int64_t begin, int64_t end, int thread_id) {
    ScratchCursor scratch = thread_scratch(thread_id);
    float* const weights = scratch.take(scratch_weights);
    float* const c = scratch.take(scratch_results);
    for (int64_t i = begin; i < end; ++i) {
      const RunTask task = tasks_[static_cast<size_t>(i)];
      const MlpRun& run = runs_[static_cast<size_t>(task.run)];
      const LinearWeight& weight = run.weight->down_proj;
      const PanelMatrix matrix = matrix_of(weight);
      PanelPart parts[kTaskParts];
      for (int g = 0; g < task.num_groups; ++g) {
        const int64_t first_panel = int64_t{task.group + g} * kGroupPanels;
        parts[g] = {matrix, first_panel,
                    std::min<int64_t>(kGroupPanels, panels_of(weight.rows) - first_panel),
                    c + g * run.tokens * kGroupCols};
      }
      multiply_parts({parts, static_cast<size_t>(task.num_groups)}, run.product, run.tokens,
                     kGroupCols, kPanelRows, weights);
      const float alpha = output_scale(weight, matrix.rows);
      for (int g = 0; g < task.num_groups; ++g) {
        const int64_t first_col = (task.group + g) * kGroupCols;
        const int64_t cols = std::min(kGroupCols, weight.rows - first_col);
        for (int64_t t = 0; t < run.tokens; ++t) {
          float* const row = run.out + t * run.out_stride + first_col;
          const float* const sums = parts[g].c + t * kGroupCols;
          for (int64_t j = 0; j < cols; ++j) row[j] = alpha * sums[j];
        }
      }
    }
  };
  list_tasks(&MlpWeight::down_proj, 1);
  pool_.parallel_for_nodes(bounds_, 1, down);
}

void CpuKernels::mlp(const MatrixView& x, const MlpWeight& weight, const MatrixView& out) {
  NIBBLE_CHECK(x.cols == weight.gate_proj.cols && x.cols == weight.up_proj.cols);
  NIBBLE_CHECK(weight.gate_proj.rows == weight.up_proj.rows);
  NIBBLE_CHECK(weight.gate_proj.rows == weight.down_proj.cols);
  NIBBLE_CHECK(out.cols == weight.down_proj.rows && x.rows == out.rows);
  const int64_t chunk = std::min(x.rows, chunk_tokens(row_format(weight.gate_proj)));
  const int64_t input = chunk * slices_of(x.cols) * kSliceCols;
  for (int64_t first = 0; first < x.rows; first += chunk) {
    const int64_t tokens = std::min(chunk, x.rows - first);
    const bool shared_input = same_activation(weight.gate_proj, weight.up_proj);
    float* const gate_input = activations_.reserve(*device_, shared_input ? input : 2 * input);
    float* const product =
        products_.reserve(*device_, chunk * slices_of(weight.gate_proj.rows) * kSliceCols);
    rows_.clear();
    for (int64_t t = 0; t < tokens; ++t) rows_.push_back(x.row<float>(first + t));
    runs_.clear();
    runs_.push_back({&weight, 0, tokens, gate_input, shared_input ? gate_input : gate_input + input,
                     product, out.row<float>(first), out.stride});
    perform_runs();
  }
}

}  // namespace nibble
