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
  int64_t most_tokens = 0;
  row_run_.clear();
  for (size_t i = 0; i < runs_.size(); ++i) {
    most_tokens = std::max(most_tokens, runs_[i].tokens);
    row_run_.insert(row_run_.end(), static_cast<size_t>(runs_[i].tokens), static_cast<int32_t>(i));
  }
  reserve_thread_scratch(kGroupFloats + 2 * most_tokens * kGroupCols);

  const auto copy = [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const MlpRun& run = runs_[static_cast<size_t>(row_run_[static_cast<size_t>(i)])];
      const float* const x = rows_[static_cast<size_t>(i)];
      const int64_t t = i - run.first_row;
      copy_to_slices(x, run.weight->gate_proj, t, run.tokens, run.gate_input);
      if (run.up_input != run.gate_input) {
        copy_to_slices(x, run.weight->up_proj, t, run.tokens, run.up_input);
      }
    }
  };
  pool_.parallel_for(static_cast<int64_t>(rows_.size()), 4, copy);

  const auto list_tasks = [&](const auto& outputs_of) {
    tasks_.clear();
    for (size_t i = 0; i < runs_.size(); ++i) {
      const int64_t groups = groups_of(outputs_of(*runs_[i].weight));
      for (int64_t g = 0; g < groups; ++g) {
        tasks_.push_back({static_cast<int32_t>(i), static_cast<int32_t>(g)});
      }
    }
    return static_cast<int64_t>(tasks_.size());
  };

  const auto gate_up = [&](int64_t begin, int64_t end, int thread_id) {
    ScratchCursor scratch = thread_scratch(thread_id);
    float* const weights = scratch.take(kGroupFloats);
    float* const gate = scratch.take(most_tokens * kGroupCols);
    float* const up = scratch.take(most_tokens * kGroupCols);
    for (int64_t i = begin; i < end; ++i) {
      const RunTask task = tasks_[static_cast<size_t>(i)];
      const MlpRun& run = runs_[static_cast<size_t>(task.run)];
      const MlpWeight& weight = *run.weight;
      const int64_t intermediate = weight.gate_proj.rows;
      const int64_t first_panel = int64_t{task.group} * kGroupPanels;
      const int64_t panels = std::min<int64_t>(kGroupPanels, panels_of(intermediate) - first_panel);
      multiply_panels(packed_matrix(weight.gate_proj), first_panel, panels, run.gate_input,
                      run.tokens, gate, kGroupCols, kPanelRows, weights);
      multiply_panels(packed_matrix(weight.up_proj), first_panel, panels, run.up_input, run.tokens,
                      up, kGroupCols, kPanelRows, weights);
      const float gate_scale = output_scale(weight.gate_proj);
      const float up_scale = output_scale(weight.up_proj);
      const int64_t cols = std::min(kGroupCols, intermediate - task.group * kGroupCols);
      const int64_t row_floats = row_slice_floats(row_format(weight.down_proj));
      float* const product = run.product + task.group * run.tokens * row_floats;
      for (int64_t t = 0; t < run.tokens; ++t) {
        float* const row = gate + t * kGroupCols;
        isa_->swiglu(row, gate_scale, up + t * kGroupCols, up_scale, cols, row);
        copy_slice(row, cols, weight.down_proj, product + t * row_floats);
      }
    }
  };
  pool_.parallel_for(list_tasks([](const MlpWeight& w) { return w.gate_proj.rows; }), 1, gate_up);

  const auto down = [&](int64_t begin, int64_t end, int thread_id) {
    ScratchCursor scratch = thread_scratch(thread_id);
    float* const weights = scratch.take(kGroupFloats);
    float* const c = scratch.take(most_tokens * kGroupCols);
    for (int64_t i = begin; i < end; ++i) {
      const RunTask task = tasks_[static_cast<size_t>(i)];
      const MlpRun& run = runs_[static_cast<size_t>(task.run)];
      const LinearWeight& weight = run.weight->down_proj;
      const int64_t first_panel = int64_t{task.group} * kGroupPanels;
      multiply_panels(packed_matrix(weight), first_panel,
                      std::min<int64_t>(kGroupPanels, panels_of(weight.rows) - first_panel),
                      run.product, run.tokens, c, kGroupCols, kPanelRows, weights);
      const float alpha = output_scale(weight);
      const int64_t first_col = task.group * kGroupCols;
      const int64_t cols = std::min(kGroupCols, weight.rows - first_col);
      for (int64_t t = 0; t < run.tokens; ++t) {
        float* const row = run.out + t * run.out_stride + first_col;
        for (int64_t j = 0; j < cols; ++j) row[j] = alpha * c[t * kGroupCols + j];
      }
    }
  };
  pool_.parallel_for(list_tasks([](const MlpWeight& w) { return w.down_proj.rows; }), 1, down);
}

void CpuKernels::mlp(const MatrixView& x, const MlpWeight& weight, const MatrixView& out) {
  NIBBLE_CHECK(x.cols == weight.gate_proj.cols && x.cols == weight.up_proj.cols);
  NIBBLE_CHECK(weight.gate_proj.rows == weight.up_proj.rows);
  NIBBLE_CHECK(weight.gate_proj.rows == weight.down_proj.cols);
  NIBBLE_CHECK(out.cols == weight.down_proj.rows && x.rows == out.rows);
  constexpr int64_t kChunkTokens = 512;
  const int64_t chunk = std::min(x.rows, kChunkTokens);
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
