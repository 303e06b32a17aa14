// Tokens are sorted by expert (a counting sort), every expert runs once over its tokens, and a
// token then adds up its experts' outputs in slot order. The shared expert is one more run over all
// tokens.
#include <algorithm>

#include "nibble/base/check.h"
#include "nibble/kernels/cpu/activations.h"
#include "nibble/kernels/cpu/cpu_kernels.h"

namespace nibble {
namespace {

constexpr int64_t kRunTokens = 512;

}  // namespace

void CpuKernels::moe(const MatrixView& x, std::span<const MlpWeight> experts,
                     const MlpWeight* shared, const RouterShape& shape, const int32_t* expert_ids,
                     const float* weights, const MatrixView& out) {
  NIBBLE_CHECK(static_cast<int>(experts.size()) == shape.local_experts());
  NIBBLE_CHECK(x.rows == out.rows && x.cols == out.cols);
  if (x.rows == 0) return;
  const int64_t slots = shape.num_experts_per_tok;
  const int64_t num_experts = shape.local_experts();

  // The widest of all MLPs decides what a row needs; inputs count twice where gate and up differ.
  int64_t intermediate = shared != nullptr ? shared->gate_proj.rows : 0;
  bool shared_input = shared == nullptr || same_activation(shared->gate_proj, shared->up_proj);
  for (const MlpWeight& expert : experts) {
    intermediate = std::max(intermediate, expert.gate_proj.rows);
    shared_input = shared_input && same_activation(expert.gate_proj, expert.up_proj);
  }
  const int64_t input_floats = slices_of(x.cols) * kSliceCols;
  const int64_t product_floats = slices_of(intermediate) * kSliceCols;
  const int64_t row_floats = input_floats * (shared_input ? 1 : 2) + product_floats + x.cols;
  const int64_t rows_per_token = slots + (shared != nullptr ? 1 : 0);
  const int64_t chunk =
      std::clamp<int64_t>(moe_scratch_floats_ / (row_floats * rows_per_token), 1, x.rows);
  const int64_t max_rows = chunk * rows_per_token;
  float* const inputs =
      activations_.reserve(*device_, max_rows * input_floats * (shared_input ? 1 : 2));
  float* const products = products_.reserve(*device_, max_rows * product_floats);
  float* const outputs = outputs_.reserve(*device_, max_rows * x.cols);

  for (int64_t first = 0; first < x.rows; first += chunk) {
    const int64_t tokens = std::min(chunk, x.rows - first);
    const int32_t* const ids = expert_ids + first * slots;
    const float* const slot_weights = weights + first * slots;

    // expert_rows_[e]: the next free row of expert e; slot_rows_: where each slot's output will be,
    // -1 for an expert of another rank.
    expert_count_.assign(static_cast<size_t>(num_experts), 0);
    for (int64_t i = 0; i < tokens * slots; ++i) {
      NIBBLE_CHECK(ids[i] >= 0 && ids[i] < shape.n_routed_experts);
      const int expert = shape.local_expert(ids[i]);
      if (expert >= 0) ++expert_count_[static_cast<size_t>(expert)];
    }
    expert_rows_.resize(static_cast<size_t>(num_experts));
    int64_t next_row = 0;
    for (size_t e = 0; e < expert_rows_.size(); ++e) {
      expert_rows_[e] = next_row;
      next_row += expert_count_[e];
    }
    slot_rows_.resize(static_cast<size_t>(tokens * slots));
    rows_.resize(static_cast<size_t>(next_row + (shared != nullptr ? tokens : 0)));
    for (int64_t i = 0; i < tokens * slots; ++i) {
      const int expert = shape.local_expert(ids[i]);
      slot_rows_[static_cast<size_t>(i)] = -1;
      if (expert < 0) continue;
      const int64_t row = expert_rows_[static_cast<size_t>(expert)]++;
      slot_rows_[static_cast<size_t>(i)] = row;
      rows_[static_cast<size_t>(row)] = x.row<float>(first + i / slots);
    }

    runs_.clear();
    const auto add_runs = [&](const MlpWeight& weight, int64_t row, int64_t count) {
      const bool same_input = same_activation(weight.gate_proj, weight.up_proj);
      for (const int64_t end = row + count; row < end; row += kRunTokens) {
        float* const input = inputs + row * input_floats;
        runs_.push_back({&weight, row, std::min(kRunTokens, end - row), input,
                         same_input ? input : input + max_rows * input_floats,
                         products + row * product_floats, outputs + row * x.cols, x.cols});
      }
    };
    for (size_t e = 0; e < experts.size(); ++e) {
      add_runs(experts[e], expert_rows_[e] - expert_count_[e], expert_count_[e]);
    }
    if (shared != nullptr) {
      for (int64_t t = 0; t < tokens; ++t) {
        rows_[static_cast<size_t>(next_row + t)] = x.row<float>(first + t);
      }
      add_runs(*shared, next_row, tokens);
    }
    perform_runs();

    const auto combine = [&](int64_t begin, int64_t end, int) {
      for (int64_t t = begin; t < end; ++t) {
        float* const sum = out.row<float>(first + t);
        std::fill_n(sum, x.cols, 0.0f);
        for (int64_t j = t * slots; j < (t + 1) * slots; ++j) {
          const int64_t row = slot_rows_[static_cast<size_t>(j)];
          if (row < 0) continue;  // another rank's
          const float* const y = outputs + row * x.cols;
          const float w = slot_weights[j];
          for (int64_t i = 0; i < x.cols; ++i) sum[i] += w * y[i];
        }
        if (shared != nullptr) {
          const float* const y = outputs + (next_row + t) * x.cols;
          for (int64_t i = 0; i < x.cols; ++i) sum[i] += y[i];
        }
      }
    };
    pool_.parallel_for(tokens, 4, combine);
  }
}

}  // namespace nibble
