#include "nibble/engine/verify.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

namespace nibble {
namespace {

using ::testing::ElementsAre;
using Rows = std::vector<std::vector<float>>;

std::vector<float> row_of(const std::vector<double>& p) {
  std::vector<float> logits;
  for (const double value : p) logits.push_back(static_cast<float>(std::log(value)));
  return logits;
}

// Fails the test when a row is asked for out of turn.
ProcessedRow in_turn(const Rows& rows) {
  auto next = std::make_shared<int64_t>(0);
  return [&rows, next](int64_t row) -> Result<std::span<const float>> {
    EXPECT_EQ(row, (*next)++);
    return std::span<const float>(rows[static_cast<size_t>(row)]);
  };
}

Verification strict(const std::vector<int32_t>& drafts, const Rows& rows,
                    const SamplingParams& params, int64_t position = 0) {
  Sampler sampler;
  return verify_strict(drafts, in_turn(rows), {params, position, 0}, sampler).value();
}

Verification relaxed(const std::vector<int32_t>& drafts, const Rows& rows, int64_t topk,
                     double delta) {
  SamplingParams params;
  params.temperature = 0;
  Sampler sampler;
  return verify_relaxed(drafts, in_turn(rows), topk, delta, {params, 0, 0}, sampler).value();
}

TEST(VerifyStrict, GreedyAcceptsDraftsWhileTheyAreTheArgmax) {
  SamplingParams params;
  params.temperature = 0;
  const Rows rows = {{0, 9, 0}, {0, 0, 9}, {9, 0, 0}};
  auto result = strict({1, 2}, rows, params);
  EXPECT_EQ(result.accepted, 2);
  EXPECT_THAT(result.token_ids, ElementsAre(1, 2, 0));
  result = strict({1, 1}, rows, params);
  EXPECT_EQ(result.accepted, 1);
  EXPECT_THAT(result.token_ids, ElementsAre(1, 2));
  result = strict({0, 2}, rows, params);
  EXPECT_EQ(result.accepted, 0);
  EXPECT_THAT(result.token_ids, ElementsAre(1));
  EXPECT_THAT(strict({}, rows, params).token_ids, ElementsAre(1));
}

TEST(VerifyStrict, AnErrorOfARowReachedIsReturnedAndOneNotReachedIsNot) {
  SamplingParams params;
  params.temperature = 0;
  const Rows rows = {{0, 9, 0}, {0, NAN, 9}};
  Sampler sampler;
  const std::vector<int32_t> right = {1};
  const std::vector<int32_t> wrong = {0};
  EXPECT_FALSE(verify_strict(right, in_turn(rows), {params}, sampler).has_value());
  EXPECT_TRUE(verify_strict(wrong, in_turn(rows), {params}, sampler).has_value());
}

// A toy model: the row depends on the last token. The text of a run with drafts, right or wrong,
// equals that of a run without.
TEST(VerifyStrict, SampledTokensAreThoseOfARunWithoutSpeculation) {
  std::mt19937 rng(11);
  Rows model(8);
  for (auto& row : model) {
    for (int i = 0; i < 8; ++i) row.push_back(static_cast<float>(rng() % 1000) / 200);
  }
  SamplingParams params;
  params.temperature = 0.8;
  params.top_p = 0.9;
  params.seed = 5;
  std::vector<int32_t> plain = {0};
  for (int64_t i = 0; i < 300; ++i) {
    plain.push_back(sample(model[static_cast<size_t>(plain.back())], params, i).value());
  }
  std::vector<int32_t> text = {0};
  int64_t accepted = 0;
  while (text.size() < plain.size()) {
    std::vector<int32_t> drafts;
    Rows rows = {model[static_cast<size_t>(text.back())]};
    for (int i = 0; i < 3; ++i) {
      const size_t at = text.size() + drafts.size();
      const bool guess_right = at < plain.size() && rng() % 4 != 0;
      drafts.push_back(guess_right ? plain[at] : static_cast<int32_t>(rng() % 8));
      rows.push_back(model[static_cast<size_t>(drafts.back())]);
    }
    const auto result = strict(drafts, rows, params, static_cast<int64_t>(text.size()) - 1);
    ASSERT_EQ(result.token_ids.size(), static_cast<size_t>(result.accepted) + 1);
    accepted += result.accepted;
    text.insert(text.end(), result.token_ids.begin(), result.token_ids.end());
  }
  text.resize(plain.size());
  EXPECT_EQ(text, plain);
  EXPECT_GT(accepted, 100);
}

// The upper 0.1 % point of chi-square with `freedom` degrees, by Wilson and Hilferty.
double chi_square_limit(double freedom) {
  const double c = 2.0 / (9 * freedom);
  const double root = 1 - c + 3.0902 * std::sqrt(c);
  return freedom * root * root * root;
}

// 200,000 windows over 8 ids: the first token, and the second given the first, follow p whatever q
// proposes. Rows depend on the token before.
void expect_law(const SamplingParams& base, bool drawn_drafts) {
  std::mt19937 rng(23);
  Rows target(9);
  Rows draft(9);
  for (Rows* rows : {&target, &draft}) {
    for (auto& row : *rows) {
      for (int i = 0; i < 8; ++i) row.push_back(static_cast<float>(rng() % 1000) / 300);
    }
  }
  Sampler sampler;
  std::vector<Distribution> q;
  for (const auto& row : draft) q.push_back(sampler.distribution(row, base).value());
  constexpr int64_t kWindows = 200000;
  std::vector<std::vector<int64_t>> counts(9, std::vector<int64_t>(8));
  SamplingParams params = base;
  params.seed = 99;
  for (int64_t window = 0; window < kWindows; ++window) {
    // Positions of windows don't overlap, or their numbers would repeat.
    const int64_t position = 3 * window;
    std::vector<int32_t> drafts;
    std::vector<Distribution> distributions;
    Rows rows = {target[8]};
    size_t before = 8;
    for (int64_t i = 0; i < 2; ++i) {
      distributions.push_back(q[before]);
      drafts.push_back(drawn_drafts ? ::nibble::draw(q[before], uniform(params, position + i,
                                                                        RandomStream::kDraft, 0))
                                    : argmax(draft[before]).value());
      before = static_cast<size_t>(drafts.back());
      rows.push_back(target[before]);
    }
    const VerifyContext context = {params, position, 0};
    const auto result =
        drawn_drafts ? verify_drawn(drafts, distributions, in_turn(rows), context, sampler).value()
                     : verify_strict(drafts, in_turn(rows), context, sampler).value();
    before = 8;
    for (const int32_t token : result.token_ids) {
      ++counts[before][static_cast<size_t>(token)];
      before = static_cast<size_t>(token);
    }
  }
  for (size_t row = 0; row < 9; ++row) {
    const auto p = sampling_distribution(target[row], params).value();
    int64_t total = 0;
    for (const int64_t count : counts[row]) total += count;
    double chi_square = 0;
    double freedom = -1;
    for (size_t id = 0; id < 8; ++id) {
      const double expected = p[id] * static_cast<double>(total);
      if (expected == 0) {
        EXPECT_EQ(counts[row][id], 0);
        continue;
      }
      const double difference = static_cast<double>(counts[row][id]) - expected;
      chi_square += difference * difference / expected;
      freedom += 1;
    }
    if (freedom < 1 || total < 1000) continue;
    EXPECT_LT(chi_square, chi_square_limit(freedom)) << "behind token " << row;
  }
}

TEST(VerifyDrawn, FollowsTheTargetDistribution) {
  for (const double temperature : {0.6, 1.0}) {
    for (const double top_p : {1.0, 0.9}) {
      SCOPED_TRACE(temperature + 10 * top_p);
      SamplingParams params;
      params.temperature = temperature;
      params.top_p = top_p;
      expect_law(params, true);
    }
  }
}

TEST(VerifyStrict, ArgmaxDraftsFollowTheTargetDistribution) {
  for (const double temperature : {0.6, 1.0}) {
    SamplingParams params;
    params.temperature = temperature;
    expect_law(params, false);
    params.top_p = 0.9;
    expect_law(params, false);
  }
}

TEST(VerifyDrawn, ADraftOutsideTheTargetsNucleusIsNeverEmitted) {
  SamplingParams params;
  params.top_k = 1;
  const Rows rows = {row_of({0.6, 0.4}), row_of({0.6, 0.4})};
  Sampler sampler;
  const std::vector<int32_t> drafts = {1};
  const std::vector<Distribution> q = {{{0, 0.5}, {1, 0.5}}};
  for (int64_t position = 0; position < 50; ++position) {
    const auto result =
        verify_drawn(drafts, q, in_turn(rows), {params, position, 0}, sampler).value();
    EXPECT_EQ(result.accepted, 0);
    EXPECT_THAT(result.token_ids, ElementsAre(0));
  }
}

// The table of spec serving section 6.3, rank counted from 0.
TEST(VerifyRelaxed, RowsOfTheRulesTable) {
  EXPECT_TRUE(relaxed_accepts(0.7F, 0.2F, 1, 10, 0.6));
  EXPECT_TRUE(relaxed_accepts(0.7F, 0.1F, 1, 10, 0.6));  // equal; in binary32 0.7 - 0.6 < 0.1
  EXPECT_FALSE(relaxed_accepts(0.9F, 0.1F, 1, 10, 0.6));
  EXPECT_FALSE(relaxed_accepts(0.3F, 0.02F, 10, 10, 0.6));  // the 11th
  EXPECT_TRUE(relaxed_accepts(0.5F, 0.5F, 1, 10, 0.0));     // a tie
  EXPECT_TRUE(relaxed_accepts(0.01F, 0.01F, 0, 1, 0.0));
}

TEST(VerifyRelaxed, TheTableHoldsOnLogits) {
  const auto accepted = [](const std::vector<double>& p, int32_t draft, int64_t topk,
                           double delta) {
    return relaxed({draft}, {row_of(p), row_of(p)}, topk, delta).accepted == 1;
  };
  EXPECT_TRUE(accepted({0.7, 0.2, 0.1}, 1, 10, 0.6));
  EXPECT_FALSE(accepted({0.9, 0.1}, 1, 10, 0.6));
  EXPECT_TRUE(accepted({0.5, 0.5}, 1, 10, 0.0));
  EXPECT_FALSE(accepted({0.5, 0.5}, 1, 1, 0.0));  // topk 1 is strict, also at a tie
  EXPECT_TRUE(accepted({0.2, 0.8}, 1, 1, 0.0));
  EXPECT_FALSE(accepted({0.6, 0.4}, 1, 10, 0.0));
  std::vector<double> eleven = {0.3};
  for (int i = 0; i < 10; ++i) eleven.push_back(0.07);
  EXPECT_TRUE(accepted(eleven, 9, 10, 0.6));    // the 10th: ties by id
  EXPECT_FALSE(accepted(eleven, 10, 10, 0.6));  // the 11th
}

TEST(VerifyRelaxed, StopsAtTheFirstRejectionAndAppendsTheArgmax) {
  const Rows rows = {row_of({0.5, 0.4, 0.1}), row_of({0.1, 0.8, 0.1}), row_of({1e-3, 1e-3, 1})};
  const auto result = relaxed({1, 2}, rows, 2, 0.3);
  EXPECT_EQ(result.accepted, 1);
  EXPECT_THAT(result.token_ids, ElementsAre(1, 1));
  EXPECT_THAT(relaxed({1, 1}, rows, 2, 0.3).token_ids, ElementsAre(1, 1, 2));
}

TEST(VerifyRelaxed, AForbiddenDraftIsRefusedEvenWhenEverythingPasses) {
  const float forbidden = -std::numeric_limits<float>::infinity();
  const Rows rows = {{0, 0, forbidden}, {0, 0, forbidden}};
  const auto result = relaxed({2}, rows, 10, 1);
  EXPECT_EQ(result.accepted, 0);
  EXPECT_THAT(result.token_ids, ElementsAre(0));
}

TEST(VerifyRelaxed, DeltaZeroIsStrictWithoutTies) {
  std::mt19937 rng(5);
  SamplingParams greedy;
  greedy.temperature = 0;
  for (int round = 0; round < 300; ++round) {
    Rows rows(4);
    std::vector<int32_t> drafts;
    for (auto& row : rows) {
      for (int i = 0; i < 6; ++i) row.push_back(static_cast<float>(rng() % 100000) * 1e-4F);
      const int32_t best = argmax(row).value();
      drafts.push_back(rng() % 3 != 0 ? best : static_cast<int32_t>(rng() % 6));
    }
    drafts.pop_back();
    EXPECT_EQ(relaxed(drafts, rows, 10, 0).token_ids, strict(drafts, rows, greedy).token_ids);
  }
}

}  // namespace
}  // namespace nibble
