#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "nibble/kernels/reference/reference_kernels.h"
#include "tests/kernels/backends.h"
#include "tests/kernels/mla_helpers.h"

namespace nibble {
namespace {

// By hand: position 0 has angle 0, position 1 a quarter turn for pair 0 and a half turn for pair 1.
TEST(RotaryQuery, TurnsNeighbouringPairsOfTheLastElementsOfEveryHead) {
  const float cos[] = {1, 1, 0, -1};
  const float sin[] = {0, 0, 1, 0};
  const RopeTable rope{cos, sin, 2, 2};
  const MlaShape shape{2, 4, 1, 4, 1, 1};  // two heads of 1 + 4
  const std::vector<float> row = {9, 1, 2, 3, 4, 8, 5, 6, 7, 8};
  const AttentionSegment segments[] = {{0, 1, 1, nullptr, MlaForm::kExpanded},
                                       {1, 2, 0, nullptr, MlaForm::kAbsorbed}};
  for (const auto& [name, kernels] : all_backends()) {
    SCOPED_TRACE(name);
    TestMatrix q = TestMatrix::of({row, row, row});
    kernels->rotary_query(q.view(), shape, rope, {3, segments});
    const auto turned = testing::ElementsAre(9, -2, 1, -3, -4, 8, -6, 5, -7, -8);
    EXPECT_THAT(q.row(0), turned);
    EXPECT_EQ(q.row(1), row);
    EXPECT_THAT(q.row(2), turned);
    EXPECT_TRUE(q.padding_intact());
  }
}

TEST(RotaryQuery, EveryBackendAgreesWithTheReference) {
  ReferenceKernels reference;
  const MlaShape shape = real_mla_shape(3);
  const TestRope rope(300, 32);
  const AttentionSegment segments[] = {{0, 30, 7, nullptr, MlaForm::kExpanded},
                                       {30, 1, 299, nullptr, MlaForm::kAbsorbed}};
  TestMatrix want = TestMatrix::random(31, 3 * 192, 41);
  const TestMatrix before = want;
  reference.rotary_query(want.view(), shape, rope.table(), {31, segments});
  for (const auto& [name, kernels] : available_backends()) {
    SCOPED_TRACE(name);
    TestMatrix q = before;
    kernels->rotary_query(q.view(), shape, rope.table(), {31, segments});
    EXPECT_LE(nmse(q.values(), want.values()), 1e-14);
  }
}

}  // namespace
}  // namespace nibble
