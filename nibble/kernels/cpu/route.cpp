// noaux_tc routing: the logits are one linear, the choice is done per token without allocation. The
// definition is in reference/route.cpp; the two agree exactly on equal logits.
#include <algorithm>
#include <cmath>

#include "nibble/base/check.h"
#include "nibble/kernels/cpu/cpu_kernels.h"

namespace nibble {
namespace {

// Moves the `count` items of the largest key to the front, in descending order; among equal keys
// the lower item comes first. items are in rising order at the start.
void select_largest(int32_t* items, int num_items, const float* key, int count) {
  // A total order, so that partial_sort, which is not stable, has one answer.
  std::partial_sort(items, items + count, items + num_items, [&](int32_t a, int32_t b) {
    return key[a] > key[b] || (!(key[a] < key[b]) && a < b);
  });
}

// As Kernels::route for one token. score, biased [n_routed_experts], group_score [n_group] and
// items [n_routed_experts] are scratch.
void choose_experts(const float* logits, const float* bias, const RouterShape& shape, float* score,
                    float* biased, float* group_score, int32_t* items, int32_t* expert_ids,
                    float* weights) {
  for (int e = 0; e < shape.n_routed_experts; ++e) {
    score[e] = static_cast<float>(1 / (1 + std::exp(-static_cast<double>(logits[e]))));
    biased[e] = score[e] + bias[e];
    if (std::isnan(biased[e])) biased[e] = -INFINITY;  // no place in an order: last
  }
  const int group_size = shape.n_routed_experts / shape.n_group;
  for (int g = 0; g < shape.n_group; ++g) {
    float first = -INFINITY;
    float second = -INFINITY;
    for (int e = g * group_size; e < (g + 1) * group_size; ++e) {
      if (biased[e] > first) {
        second = first;
        first = biased[e];
      } else if (biased[e] > second) {
        second = biased[e];
      }
    }
    group_score[g] = first + second;
    items[g] = g;
  }
  select_largest(items, shape.n_group, group_score, shape.topk_group);
  std::sort(items, items + shape.topk_group);
  // Groups become their experts, from the back so that no group is overwritten before it is read.
  for (int i = shape.topk_group - 1; i >= 0; --i) {
    const int32_t group = items[i];
    for (int j = group_size - 1; j >= 0; --j) items[i * group_size + j] = group * group_size + j;
  }
  select_largest(items, shape.topk_group * group_size, biased, shape.num_experts_per_tok);

  float sum = 0;
  for (int j = 0; j < shape.num_experts_per_tok; ++j) sum += score[items[j]];
  for (int j = 0; j < shape.num_experts_per_tok; ++j) {
    float weight = score[items[j]];
    if (shape.norm_topk_prob) weight /= sum + 1e-20f;
    expert_ids[j] = items[j];
    weights[j] = weight * shape.routed_scaling_factor;
  }
}

}  // namespace

void CpuKernels::route(const MatrixView& x, const LinearWeight& gate, const float* bias,
                       const RouterShape& shape, int32_t* expert_ids, float* weights) {
  NIBBLE_CHECK(gate.rows == shape.n_routed_experts);
  NIBBLE_CHECK(shape.n_group >= 1 && shape.n_routed_experts % shape.n_group == 0);
  NIBBLE_CHECK(shape.n_routed_experts / shape.n_group >= 2 || shape.n_group == 1);
  NIBBLE_CHECK(shape.topk_group * (shape.n_routed_experts / shape.n_group) >=
               shape.num_experts_per_tok);
  const int64_t experts = shape.n_routed_experts;
  MatrixView logits;
  logits.rows = x.rows;
  logits.cols = experts;
  logits.stride = experts;
  logits.data = outputs_.reserve(*device_, x.rows * experts);
  // Without tiles: a logit's last bits may decide which expert is chosen.
  perform_linear(x, gate, logits, /*tiles=*/false);

  const int64_t part = ScratchCursor::padded(experts);
  reserve_thread_scratch(4 * part);
  const auto choose = [&](int64_t begin, int64_t end, int thread_id) {
    ScratchCursor scratch = thread_scratch(thread_id);
    float* const score = scratch.take(part);
    float* const biased = scratch.take(part);
    float* const group_score = scratch.take(part);
    auto* const items = reinterpret_cast<int32_t*>(scratch.take(part));
    for (int64_t t = begin; t < end; ++t) {
      choose_experts(logits.row<float>(t), bias, shape, score, biased, group_score, items,
                     expert_ids + t * shape.num_experts_per_tok,
                     weights + t * shape.num_experts_per_tok);
    }
  };
  pool_.parallel_for(x.rows, 8, choose);
}

}  // namespace nibble
