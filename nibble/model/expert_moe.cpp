#include "nibble/model/expert_moe.h"

#include <algorithm>
#include <cstring>

#include "nibble/base/check.h"
#include "nibble/model/expert_store.h"
#include "nibble/model/expert_uses.h"

namespace nibble {
namespace {

void predict_next(const Weights& weights, int layer, Kernels& kernels, const MatrixView& x,
                  Workspace& workspace) {
  const MoeWeights* const next = layer_to_predict(weights, layer, x.rows);
  if (next == nullptr) return;
  ExpertScratch& scratch = workspace.experts;
  const int64_t choices = x.rows * weights.router_shape.num_experts_per_tok;
  scratch.guess_ids.resize(static_cast<size_t>(choices));
  scratch.guess_weights.resize(static_cast<size_t>(choices));
  kernels.route(x, next->gate, next->e_score_correction_bias, weights.router_shape,
                scratch.guess_ids.data(), scratch.guess_weights.data());
  prefetch_guesses(weights, layer, scratch.guess_ids, scratch.guess_weights, scratch);
}

// Expert e over the tokens that chose it: gathered, computed together, scattered to
// outputs [tokens * num_experts_per_tok, hidden_size].
void run_expert(int32_t e, const MlpWeight& weight, int64_t count, Kernels& kernels,
                const MatrixView& x, const int32_t* ids, int64_t slots, ExpertScratch& scratch) {
  const auto row_bytes = static_cast<size_t>(x.cols) * sizeof(float);
  scratch.inputs.resize(std::max(scratch.inputs.size(), static_cast<size_t>(count * x.cols)));
  scratch.results.resize(scratch.inputs.size());
  scratch.rows.clear();
  for (int64_t i = 0; i < x.rows * slots; ++i) {
    if (ids[i] != e) continue;
    std::memcpy(scratch.inputs.data() + static_cast<int64_t>(scratch.rows.size()) * x.cols,
                x.row<float>(i / slots), row_bytes);
    scratch.rows.push_back(i);
  }
  NIBBLE_CHECK(static_cast<int64_t>(scratch.rows.size()) == count);
  const MatrixView in{scratch.inputs.data(), DType::kF32, count, x.cols, x.cols};
  const MatrixView result{scratch.results.data(), DType::kF32, count, x.cols, x.cols};
  kernels.mlp(in, weight, result);
  for (int64_t r = 0; r < count; ++r) {
    std::memcpy(scratch.outputs.data() + scratch.rows[static_cast<size_t>(r)] * x.cols,
                result.row<float>(r), row_bytes);
  }
}

// out[t] = sum_j weights[t, j] * outputs[t, j] + shared[t], added in that order in binary32: what
// Kernels::moe ends with.
void combine(const ExpertScratch& scratch, const float* weights, int64_t slots, bool with_shared,
             const MatrixView& out) {
  for (int64_t t = 0; t < out.rows; ++t) {
    float* const sum = out.row<float>(t);
    std::fill_n(sum, out.cols, 0.0f);
    for (int64_t j = t * slots; j < (t + 1) * slots; ++j) {
      const float* const y = scratch.outputs.data() + j * out.cols;
      const float w = weights[j];
      for (int64_t i = 0; i < out.cols; ++i) sum[i] += w * y[i];
    }
    if (!with_shared) continue;
    const float* const y = scratch.shared.data() + t * out.cols;
    for (int64_t i = 0; i < out.cols; ++i) sum[i] += y[i];
  }
}

}  // namespace

Status moe_from_store(const Weights& weights, const MoeWeights& layer, Kernels& kernels,
                      const MatrixView& x, Workspace& workspace, const MatrixView& out) {
  NIBBLE_CHECK(kernels.device().is_host() && x.dtype == DType::kF32);
  ExpertStore& store = *weights.expert_store;
  const RouterShape& shape = weights.router_shape;
  const int64_t slots = shape.num_experts_per_tok;
  const int32_t* const ids = workspace.expert_ids;
  const float* const choice_weights = workspace.expert_weights;
  const MlpWeight* const shared = layer.shared_experts ? &*layer.shared_experts : nullptr;
  ExpertScratch& scratch = workspace.experts;

  const auto choices = static_cast<size_t>(x.rows * slots);
  gather_uses({ids, choices}, {choice_weights, choices}, shape.n_routed_experts, scratch,
              scratch.uses);
  store.announce(layer.layer, scratch.uses, x.rows);
  predict_next(weights, layer.layer, kernels, x, workspace);
  scratch.wanted.clear();
  for (const ExpertUse& use : scratch.uses) scratch.wanted.push_back(use.expert);
  bool first = true;
  while (!scratch.wanted.empty()) {
    const ExpertLease lease = NIBBLE_TRY(store.acquire(layer.layer, scratch.wanted));
    if (first && lease.ids().size() == scratch.wanted.size()) {
      kernels.moe(x, lease.experts(), shared, shape, ids, choice_weights, out);
      return {};
    }
    if (first) scratch.outputs.resize(static_cast<size_t>(x.rows * slots * x.cols));
    for (const int32_t e : lease.ids()) {
      const auto use = std::find_if(scratch.uses.begin(), scratch.uses.end(),
                                    [e](const ExpertUse& u) { return u.expert == e; });
      NIBBLE_CHECK(use != scratch.uses.end());
      run_expert(e, lease.experts()[static_cast<size_t>(e)], use->tokens, kernels, x, ids, slots,
                 scratch);
      std::erase(scratch.wanted, e);
    }
    if (first && shared != nullptr) {  // meanwhile the missing ones are read
      scratch.shared.resize(static_cast<size_t>(x.rows * x.cols));
      kernels.mlp(x, *shared, {scratch.shared.data(), DType::kF32, x.rows, x.cols, x.cols});
    }
    first = false;
  }
  combine(scratch, choice_weights, slots, shared != nullptr, out);
  return {};
}

}  // namespace nibble
