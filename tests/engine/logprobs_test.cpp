#include "nibble/engine/logprobs.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace nibble {
namespace {

std::vector<float> logits_for(const std::vector<double>& p) {
  std::vector<float> logits;
  for (const double value : p) logits.push_back(static_cast<float>(std::log(value) + 50));
  return logits;
}

void expect_entry(const TokenLogprob& got, int32_t id, double p, int64_t rank) {
  EXPECT_EQ(got.id, id);
  EXPECT_NEAR(got.logprob, std::log(p), 1e-5);
  EXPECT_EQ(got.rank, rank);
}

TEST(Logprobs, TopEntriesAreInOrderAndTiesById) {
  const auto result = logprobs(logits_for({0.1, 0.25, 0.4, 0.25}), 2, 3).value();
  expect_entry(result.chosen, 2, 0.4, 1);
  ASSERT_EQ(result.top.size(), 3U);
  expect_entry(result.top[0], 2, 0.4, 1);
  expect_entry(result.top[1], 1, 0.25, 2);
  expect_entry(result.top[2], 3, 0.25, 3);
}

TEST(Logprobs, TheChosenTokenIsAlwaysIncludedWithItsRank) {
  const auto result = logprobs(logits_for({0.1, 0.2, 0.4, 0.3}), 0, 2).value();
  ASSERT_EQ(result.top.size(), 3U);
  expect_entry(result.top[2], 0, 0.1, 4);
  const auto none = logprobs(logits_for({0.6, 0.4}), 1, 0).value();
  ASSERT_EQ(none.top.size(), 1U);
  expect_entry(none.top[0], 1, 0.4, 2);
}

TEST(Logprobs, ForbiddenTokensAreNotAmongTheTop) {
  const float forbidden = -std::numeric_limits<float>::infinity();
  const std::vector<float> logits = {0, forbidden, 0};
  const auto result = logprobs(logits, 0, 20).value();
  ASSERT_EQ(result.top.size(), 2U);
  expect_entry(result.top[1], 2, 0.5, 2);
}

// A sum of 129,280 equal terms in binary32 would be off by far more.
TEST(Logprobs, TheNormalisationIsInBinary64) {
  const std::vector<float> logits(129280, 3.0F);
  EXPECT_NEAR(logprobs(logits, 7, 0).value().chosen.logprob, -std::log(129280.0), 1e-12);
}

TEST(Logprobs, BadLogitsAreAnError) {
  EXPECT_FALSE(logprobs(std::vector<float>{1, NAN}, 0, 1).has_value());
}

TEST(Logprobs, OfADistributionAreThoseItDrawsFrom) {
  const Distribution distribution = {{1, 0.25}, {4, 0.5}, {9, 0.25}};
  const auto result = logprobs(distribution, 9, 2);
  expect_entry(result.chosen, 9, 0.25, 3);
  ASSERT_EQ(result.top.size(), 3U);
  expect_entry(result.top[0], 4, 0.5, 1);
  expect_entry(result.top[1], 1, 0.25, 2);
  EXPECT_EQ(logprobs(distribution, 5, 1).chosen.logprob, -std::numeric_limits<double>::infinity());
}

}  // namespace
}  // namespace nibble
