#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "nibble/kernels/reference/reference_kernels.h"
#include "tests/kernels/backends.h"
#include "tests/kernels/kernel_test_helpers.h"

namespace nibble {
namespace {

using testing::ElementsAre;

struct Routed {
  std::vector<int32_t> ids;
  std::vector<float> weights;
};

// Routes one token whose logits are given: the gate has them as its single column.
Routed route_logits(Kernels& kernels, const std::vector<float>& logits,
                    const std::vector<float>& bias, const RouterShape& shape) {
  std::vector<std::vector<float>> gate;
  for (const float logit : logits) gate.push_back({logit});
  const PackedWeight packed = pack_weight(kernels, TestWeight::of(LinearFormat::kF32, gate));
  TestMatrix x = TestMatrix::of({{1}});
  Routed routed;
  routed.ids.assign(static_cast<size_t>(shape.num_experts_per_tok), -1);
  routed.weights.assign(routed.ids.size(), NAN);
  kernels.route(x.view(), packed.weight, bias.data(), shape, routed.ids.data(),
                routed.weights.data());
  return routed;
}

RouterShape router(int experts, int per_token, int groups, int topk_group) {
  RouterShape shape;
  shape.n_routed_experts = experts;
  shape.num_experts_per_tok = per_token;
  shape.n_group = groups;
  shape.topk_group = topk_group;
  return shape;
}

// The logit whose sigmoid is p.
float logit(double p) { return static_cast<float>(std::log(p / (1 - p))); }

TEST(Route, ChoosesTheLargestInDescendingOrderAndNormalizes) {
  for (const auto& [name, kernels] : all_backends()) {
    SCOPED_TRACE(name);
    RouterShape shape = router(4, 2, 1, 1);
    shape.routed_scaling_factor = 2.5f;
    const std::vector<float> logits = {logit(0.2), logit(0.6), logit(0.1), logit(0.4)};
    const Routed routed = route_logits(*kernels, logits, {0, 0, 0, 0}, shape);
    EXPECT_THAT(routed.ids, ElementsAre(1, 3));
    EXPECT_FLOAT_EQ(routed.weights[0], 1.5f);
    EXPECT_FLOAT_EQ(routed.weights[1], 1.0f);

    shape.norm_topk_prob = false;
    const Routed plain = route_logits(*kernels, logits, {0, 0, 0, 0}, shape);
    EXPECT_FLOAT_EQ(plain.weights[0], 1.5f);
    EXPECT_FLOAT_EQ(plain.weights[1], 1.0f);
    shape.routed_scaling_factor = 1;
    EXPECT_FLOAT_EQ(route_logits(*kernels, logits, {0, 0, 0, 0}, shape).weights[0], 0.6f);
  }
}

TEST(Route, TheBiasChoosesButDoesNotWeigh) {
  for (const auto& [name, kernels] : all_backends()) {
    SCOPED_TRACE(name);
    const Routed routed = route_logits(*kernels, {logit(0.5), logit(0.5), logit(0.9), logit(0.25)},
                                       {0, 0.125f, -10, 1}, router(4, 2, 1, 1));
    EXPECT_THAT(routed.ids, ElementsAre(3, 1));  // b: 0.5, 0.625, -9.1, 1.25
    EXPECT_FLOAT_EQ(routed.weights[0], 1.0f / 3);
    EXPECT_FLOAT_EQ(routed.weights[1], 2.0f / 3);
  }
}

TEST(Route, TiesGoToTheLowerExpertAndTheLowerGroup) {
  for (const auto& [name, kernels] : all_backends()) {
    SCOPED_TRACE(name);
    const std::vector<float> equal(16, 0.3f);
    const std::vector<float> none(16, 0);
    EXPECT_THAT(route_logits(*kernels, equal, none, router(16, 4, 1, 1)).ids,
                ElementsAre(0, 1, 2, 3));
    EXPECT_THAT(route_logits(*kernels, equal, none, router(16, 5, 4, 2)).ids,
                ElementsAre(0, 1, 2, 3, 4));
    // Groups 1 and 3 tie for the second place behind 2.
    std::vector<float> bias(16, 0);
    bias[9] = 3;
    bias[5] = bias[14] = 1;
    EXPECT_THAT(route_logits(*kernels, equal, bias, router(16, 3, 4, 2)).ids, ElementsAre(9, 5, 4));
  }
}

// A group counts by its two best: 0.5 + 0.4 beat 0.8 + 0. The lone best expert is then out.
TEST(Route, AGroupCountsByTheSumOfItsTwoBest) {
  for (const auto& [name, kernels] : all_backends()) {
    SCOPED_TRACE(name);
    const std::vector<float> bias = {0.3f, -0.5f, -0.5f, 0, -0.1f, -0.5f};
    const std::vector<float> logits(6, 0);  // b = 0.5 + bias
    EXPECT_THAT(route_logits(*kernels, logits, bias, router(6, 2, 2, 1)).ids, ElementsAre(3, 4));
    EXPECT_THAT(route_logits(*kernels, logits, bias, router(6, 2, 2, 2)).ids, ElementsAre(0, 3));
  }
}

// Masked experts are out altogether: with every b negative, a mask of 0 would prefer them.
TEST(Route, NegativeBiasesDoNotLetMaskedGroupsIn) {
  for (const auto& [name, kernels] : all_backends()) {
    SCOPED_TRACE(name);
    const std::vector<float> bias = {-3, -2, -4, -5, -7, -6, -9, -8};
    const std::vector<float> logits(8, 0);
    EXPECT_THAT(route_logits(*kernels, logits, bias, router(8, 4, 4, 2)).ids,
                ElementsAre(1, 0, 2, 3));
  }
}

TEST(Route, EveryBackendAgreesWithTheReferenceOnDeepSeeksShape) {
  ReferenceKernels reference;
  const TestWeight gate = TestWeight::random(LinearFormat::kBf16, 256, 272, 121);
  TestMatrix bias = TestMatrix::random(1, 256, 122, 0.1f);
  TestMatrix x = TestMatrix::random(61, 272, 123);
  RouterShape shape = router(256, 8, 8, 4);
  shape.routed_scaling_factor = 2.5f;
  const auto route = [&](Kernels& kernels) {
    const PackedWeight packed = pack_weight(kernels, gate);
    Routed routed{std::vector<int32_t>(61 * 8, -1), std::vector<float>(61 * 8, NAN)};
    kernels.route(x.view(), packed.weight, &bias.at(0, 0), shape, routed.ids.data(),
                  routed.weights.data());
    return routed;
  };
  const Routed want = route(reference);
  for (const auto& [name, kernels] : available_backends()) {
    SCOPED_TRACE(name);
    const Routed got = route(*kernels);
    // Two keys within 1e-6 of each other may change places; this seed has no such pair.
    EXPECT_EQ(got.ids, want.ids);
    EXPECT_LE(nmse(got.weights, want.weights), 1e-12);
  }
}

}  // namespace
}  // namespace nibble
