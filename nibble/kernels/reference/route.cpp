// Source: DeepSeek-V3 inference/model.py, Gate.forward; spec kernels section 1.4.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "nibble/base/check.h"
#include "nibble/kernels/reference/reference_kernels.h"
#include "nibble/kernels/reference/rows.h"

namespace nibble {
namespace {

// The `count` candidates with the largest key, in descending order; ties: the lower one first.
std::vector<int32_t> largest(std::vector<int32_t> candidates, const std::vector<float>& key,
                             int count) {
  std::stable_sort(candidates.begin(), candidates.end(), [&](int32_t a, int32_t b) {
    return key[static_cast<size_t>(a)] > key[static_cast<size_t>(b)];
  });
  candidates.resize(static_cast<size_t>(count));
  return candidates;
}

}  // namespace

void route_row(const float* logits, const float* bias, const RouterShape& shape,
               int32_t* expert_ids, float* weights) {
  const int experts = shape.n_routed_experts;
  const int group_size = experts / shape.n_group;
  std::vector<float> score(static_cast<size_t>(experts));
  std::vector<float> biased(score.size());
  for (size_t e = 0; e < score.size(); ++e) {
    score[e] = static_cast<float>(1 / (1 + std::exp(-static_cast<double>(logits[e]))));
    biased[e] = score[e] + bias[e];
    if (std::isnan(biased[e])) biased[e] = -INFINITY;  // no place in an order: last
  }

  std::vector<float> group_score(static_cast<size_t>(shape.n_group));
  for (int g = 0; g < shape.n_group; ++g) {
    std::vector<int32_t> members(static_cast<size_t>(group_size));
    std::iota(members.begin(), members.end(), g * group_size);
    const std::vector<int32_t> best = largest(members, biased, 2);
    group_score[static_cast<size_t>(g)] =
        biased[static_cast<size_t>(best[0])] + biased[static_cast<size_t>(best[1])];
  }
  std::vector<int32_t> groups(static_cast<size_t>(shape.n_group));
  std::iota(groups.begin(), groups.end(), 0);
  groups = largest(groups, group_score, shape.topk_group);
  std::sort(groups.begin(), groups.end());  // so that equal experts keep their order below

  std::vector<int32_t> kept;
  for (const int32_t g : groups) {
    for (int i = 0; i < group_size; ++i) kept.push_back(g * group_size + i);
  }
  const std::vector<int32_t> chosen = largest(kept, biased, shape.num_experts_per_tok);

  float sum = 0;
  for (const int32_t e : chosen) sum += score[static_cast<size_t>(e)];
  for (size_t j = 0; j < chosen.size(); ++j) {
    float weight = score[static_cast<size_t>(chosen[j])];
    if (shape.norm_topk_prob) weight /= sum + 1e-20f;
    expert_ids[j] = chosen[j];
    weights[j] = weight * shape.routed_scaling_factor;
  }
}

void ReferenceKernels::route(const MatrixView& x, const LinearWeight& gate, const float* bias,
                             const RouterShape& shape, int32_t* expert_ids, float* weights) {
  NIBBLE_CHECK(gate.rows == shape.n_routed_experts);
  std::vector<float> logits(static_cast<size_t>(x.rows * gate.rows));
  const MatrixView logits_view{logits.data(), DType::kF32, x.rows, gate.rows, gate.rows};
  linear(x, gate, logits_view);
  for (int64_t t = 0; t < x.rows; ++t) {
    route_row(logits_view.row<float>(t), bias, shape, expert_ids + t * shape.num_experts_per_tok,
              weights + t * shape.num_experts_per_tok);
  }
}

}  // namespace nibble
