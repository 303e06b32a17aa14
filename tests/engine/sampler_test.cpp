#include "nibble/engine/sampler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "nibble/engine/philox.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;

// Logits whose softmax at temperature 1 is p.
std::vector<float> logits_of(const std::vector<double>& p) {
  std::vector<float> logits;
  for (const double value : p) logits.push_back(static_cast<float>(std::log(value)));
  return logits;
}

SamplingParams at_temperature_one() {
  SamplingParams params;
  params.temperature = 1;
  return params;
}

std::vector<double> distribution(const std::vector<double>& p, const SamplingParams& params) {
  const std::vector<float> logits = logits_of(p);
  auto result = sampling_distribution(logits, params);
  EXPECT_TRUE(result.has_value());
  return result.value_or(std::vector<double>());
}

void expect_near(const std::vector<double>& got, const std::vector<double>& want) {
  ASSERT_EQ(got.size(), want.size());
  for (size_t i = 0; i < got.size(); ++i) EXPECT_NEAR(got[i], want[i], 1e-6) << i;
}

TEST(Sampler, GreedyTakesTheLargestLogitAndTheLowestIdOnATie) {
  SamplingParams params;
  params.temperature = 0;
  const std::vector<float> logits = {1, 5, 5, -2};
  EXPECT_EQ(sample(logits, params, 0), 1);
  params.temperature = 0.9e-5;
  EXPECT_EQ(sample(logits, params, 0), 1);
}

TEST(Sampler, PlainDistributionIsTheSoftmax) {
  expect_near(distribution({0.1, 0.2, 0.7}, at_temperature_one()), {0.1, 0.2, 0.7});
}

// Temperature 0.5 squares the probabilities: 1 : 4 : 49.
TEST(Sampler, TemperatureDividesTheLogits) {
  SamplingParams params = at_temperature_one();
  params.temperature = 0.5;
  expect_near(distribution({0.1, 0.2, 0.7}, params), {1.0 / 54, 4.0 / 54, 49.0 / 54});
}

TEST(Sampler, MinPDropsTokensBelowItsShareOfTheLargest) {
  SamplingParams params = at_temperature_one();
  params.min_p = 0.3;  // 0.3 * 0.5 = 0.15
  expect_near(distribution({0.1, 0.2, 0.5, 0.2}, params), {0, 2.0 / 9, 5.0 / 9, 2.0 / 9});
}

TEST(Sampler, TopKKeepsTheLowerIdsAtATie) {
  SamplingParams params = at_temperature_one();
  params.top_k = 2;
  expect_near(distribution({0.2, 0.4, 0.2, 0.2}, params), {1.0 / 3, 2.0 / 3, 0, 0});
}

TEST(Sampler, TopKOfZeroMinusOneOrTheVocabularyKeepsAll) {
  for (const int64_t top_k : {0, -1, 3, 100}) {
    SamplingParams params = at_temperature_one();
    params.top_k = top_k;
    expect_near(distribution({0.1, 0.2, 0.7}, params), {0.1, 0.2, 0.7});
  }
}

// Masses before the tokens in descending order: 0, 0.5, 0.8, 0.95. With top_p 0.8 the third token
// is out because the mass before it is not below 0.8 (a shade less than 0.8 would let rounding
// decide).
TEST(Sampler, TopPKeepsWhileTheMassBeforeIsBelowIt) {
  SamplingParams params = at_temperature_one();
  params.top_p = 0.75;
  expect_near(distribution({0.15, 0.5, 0.05, 0.3}, params), {0, 0.625, 0, 0.375});
  params.top_p = 0.9;
  expect_near(distribution({0.15, 0.5, 0.05, 0.3}, params),
              {0.15 / 0.95, 0.5 / 0.95, 0, 0.3 / 0.95});
}

TEST(Sampler, ATinyTopPKeepsTheLikeliestToken) {
  SamplingParams params = at_temperature_one();
  params.top_p = 1e-9;
  expect_near(distribution({0.1, 0.2, 0.7}, params), {0, 0, 1});
}

// min_p first (drops 0.05), then top_k 2 of what is left, then top_p on the renormalised rest.
TEST(Sampler, FiltersApplyInTheSpecifiedOrder) {
  SamplingParams params = at_temperature_one();
  params.min_p = 0.2;
  params.top_k = 2;
  params.top_p = 0.6;  // 0.5 / 0.8 = 0.625 lies before the second: out
  expect_near(distribution({0.3, 0.5, 0.15, 0.05}, params), {0, 1, 0, 0});
}

TEST(Sampler, DrawsTheFirstTokenWhoseCumulativeProbabilityExceedsTheNumber) {
  const std::vector<double> p = {0.1, 0.2, 0.7};
  const std::vector<float> logits = logits_of(p);
  SamplingParams params = at_temperature_one();
  params.seed = 42;
  for (int64_t position = 0; position < 50; ++position) {
    const double u = philox_uniform(42, static_cast<uint32_t>(position), RandomStream::kDraw, 0);
    EXPECT_EQ(sample(logits, params, position), u < 0.1 ? 0 : u < 0.3 ? 1 : 2);
  }
}

// Chi-square with 3 degrees of freedom: 16.27 is exceeded by chance once in a thousand.
TEST(Sampler, FrequenciesFollowTheDistribution) {
  const std::vector<double> p = {0.05, 0.15, 0.3, 0.5};
  const std::vector<float> logits = logits_of(p);
  SamplingParams params = at_temperature_one();
  params.seed = 7;
  std::vector<int> counts(p.size());
  constexpr int kDraws = 20000;
  for (int i = 0; i < kDraws; ++i) ++counts[static_cast<size_t>(*sample(logits, params, i))];
  double chi_square = 0;
  for (size_t i = 0; i < p.size(); ++i) {
    const double expected = p[i] * kDraws;
    chi_square += (counts[i] - expected) * (counts[i] - expected) / expected;
  }
  EXPECT_LT(chi_square, 16.27);
}

TEST(Sampler, BadLogitsAreAnErrorNotAToken) {
  const float infinity = std::numeric_limits<float>::infinity();
  SamplingParams greedy;
  greedy.temperature = 0;
  for (const SamplingParams& params : {greedy, at_temperature_one()}) {
    for (const std::vector<float>& logits :
         {std::vector<float>{1, NAN}, {infinity, 1}, {-infinity, -infinity}}) {
      const auto token = sample(logits, params, 0);
      ASSERT_FALSE(token.has_value());
      EXPECT_EQ(token.error().code, ErrorCode::kCorrupt);
    }
    const std::vector<float> masked = {-infinity, 2, -infinity};
    EXPECT_EQ(sample(masked, params, 0), 1);
  }
}

// Sorting everything is the plain way; the distribution must not depend on how the order is found.
// Logits on a coarse grid make many ties.
TEST(Sampler, FiltersOfALargeVocabularyAreThoseOfAFullSort) {
  uint32_t state = 1;
  for (const float spread : {0.0F, 3.0F, 20.0F, 200.0F}) {
    std::vector<float> logits(5003);
    for (float& logit : logits) {
      state = state * 1664525 + 1013904223;
      logit = std::round(spread * static_cast<float>(state >> 8) / 16777216.0F * 8) / 8;
    }
    std::vector<size_t> order(logits.size());
    std::iota(order.begin(), order.end(), size_t{0});
    std::stable_sort(order.begin(), order.end(),
                     [&](size_t a, size_t b) { return logits[a] > logits[b]; });
    for (const auto& [top_k, top_p] :
         {std::pair<int64_t, double>{0, 0.93}, {7, 1.0}, {700, 0.5}, {4000, 0.999}}) {
      SamplingParams params = at_temperature_one();
      params.top_k = top_k;
      params.top_p = top_p;
      params.temperature = 0.7;
      const size_t limit = top_k > 0 ? static_cast<size_t>(top_k) : logits.size();
      std::vector<double> p(logits.size());
      double total = 0;
      for (size_t i = 0; i < limit; ++i) {
        const size_t id = order[i];
        p[id] = std::exp(static_cast<double>((logits[id] - logits[order[0]]) / 0.7F));
        total += p[id];
      }
      double before = 0;
      size_t keep = 0;
      while (keep < limit && before < top_p) before += p[order[keep++]] / total;
      const auto got = sampling_distribution(logits, params).value();
      // Rounding may let one token more or less into the nucleus.
      size_t kept = 0;
      for (const double value : got) kept += value > 0 ? 1 : 0;
      double drawable = 0;
      for (size_t i = 0; i < keep; ++i) drawable += p[order[i]] > 1e-37 ? 1 : 0;
      EXPECT_NEAR(static_cast<double>(kept), drawable, 1) << spread << ' ' << top_k << ' ' << top_p;
      for (size_t i = 0; i + 1 < std::min(keep, kept); ++i) {
        EXPECT_NEAR(got[order[i]], p[order[i]] / (total * before),
                    1e-5 / static_cast<double>(keep) + 1e-5 * got[order[i]] + 1e-6);
        if (got[order[i]] == 0) {
          EXPECT_LT(p[order[i]], 1e-37);
        }
      }
    }
  }
}

TEST(Sampler, SoftmaxWeightsAreTheExponentialWithinTwoUnitsInTheLastPlace) {
  std::vector<float> logits;
  for (int i = 0; i < 8700; ++i) logits.push_back(-0.01F * static_cast<float>(i));
  std::vector<float> weights(logits.size());
  (void)softmax_weights(logits, 0, 1, weights);
  EXPECT_EQ(weights[0], 1.0F);
  for (size_t i = 0; i < logits.size(); ++i) {
    const double exact = std::exp(static_cast<double>(logits[i]));
    EXPECT_NEAR(weights[i], exact, exact * 2.4e-7) << logits[i];
  }
  const std::vector<float> low = {-88.0F, -1000.0F, -std::numeric_limits<float>::infinity()};
  std::vector<float> none(3);
  EXPECT_EQ(softmax_weights(low, 0, 1, none), 0);
}

TEST(Sampler, DrawTakesTheLastTokenWhenRoundingLeavesAGap) {
  EXPECT_EQ(draw({{3, 0.25}, {9, 0.5}}, 0.99), 9);
  EXPECT_EQ(draw({{3, 0.25}, {9, 0.75}}, 0.25), 9);
  EXPECT_EQ(draw({{3, 0.25}, {9, 0.75}}, 0.2499), 3);
}

}  // namespace
}  // namespace nibble
