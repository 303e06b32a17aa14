#include "nibble/model/expert_placement.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <random>
#include <set>

namespace nibble {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::vector<double> skewed_load(int seed, int num_experts) {
  std::mt19937 rng(static_cast<unsigned>(seed));
  std::vector<double> load;
  for (int e = 0; e < num_experts; ++e) load.push_back(1000 / std::pow(1.0 + e, 0.8));
  std::shuffle(load.begin(), load.end(), rng);
  return load;
}

// By hand: 7, 5, 4, 3, 2, 1 to two groups of three, each to the one with less, is 7 + 3 + 1 and
// 5 + 4 + 2.
TEST(BalanceExperts, TheHeaviestGoesToTheGroupWithTheLeastLoad) {
  const ExpertLoad load = {{3, {7, 5, 4, 3, 2, 1}}};
  const ExpertPlacement placement = balance_experts(load, 6, 2, 0).value();
  EXPECT_THAT(placement.layers.at(3), ElementsAre(0, 3, 5, 1, 2, 4));
  EXPECT_DOUBLE_EQ(imbalance(placement.layers.at(3), 2, load.at(3)), 1);
  // By number: 16 and 6 of 22.
  EXPECT_THAT(placement.slots_of(4), ElementsAre(0, 1, 2, 3, 4, 5));
  EXPECT_DOUBLE_EQ(imbalance(placement.slots_of(4), 2, load.at(3)), 16.0 / 11);
}

// Expert 1 has as much as all others; its two copies share that.
TEST(BalanceExperts, ReplicasAreOfTheBusiestAndInDifferentGroups) {
  const ExpertLoad load = {{0, {1, 9, 2, 3, 3, 0}}};
  const ExpertPlacement placement = balance_experts(load, 6, 2, 2).value();
  EXPECT_EQ(placement.slots_per_group, 4);
  const std::vector<int32_t>& slots = placement.layers.at(0);
  std::multiset<int32_t> first(slots.begin(), slots.begin() + 4);
  std::multiset<int32_t> second(slots.begin() + 4, slots.end());
  EXPECT_EQ(first.count(1), 1U);
  EXPECT_EQ(second.count(1), 1U);
  EXPECT_LT(imbalance(slots, 2, load.at(0)), 1.2);
  const ExpertSlots index = placement.index_of(0);
  EXPECT_EQ(index.begin.back(), 8);
  EXPECT_EQ(index.begin[2] - index.begin[1], 2);
  for (int e = 0; e < 6; ++e) {
    for (auto i = index.begin[static_cast<size_t>(e)]; i < index.begin[static_cast<size_t>(e) + 1];
         ++i) {
      EXPECT_EQ(slots[static_cast<size_t>(index.slots[static_cast<size_t>(i)])], e);
    }
  }
}

// Tokens of a replicated expert go to all of its copies, about evenly, and always to the same one.
TEST(ExpertSlots, DealTokensToTheCopiesByTheirWeight) {
  const ExpertLoad load = {{0, {1, 9, 2, 3, 3, 0}}};
  const ExpertSlots slots = balance_experts(load, 6, 2, 2).value().index_of(0);
  std::mt19937 rng(5);
  std::uniform_real_distribution<float> weight(0, 2.5F);
  std::map<int32_t, int> uses;
  for (int i = 0; i < 4000; ++i) {
    const float w = weight(rng);
    int32_t first = 1;
    int32_t second = 1;
    slots.place(1, &w, &first);
    slots.place(1, &w, &second);
    EXPECT_EQ(first, second);
    ++uses[first];
  }
  ASSERT_EQ(uses.size(), 2U);
  for (const auto& [slot, count] : uses) EXPECT_NEAR(count, 2000, 200);
  const float w = 1;
  int32_t single = 5;
  slots.place(1, &w, &single);
  EXPECT_EQ(single, slots.slots[static_cast<size_t>(slots.begin[5])]);
}

// As large as R1's: 256 experts, 8 groups, a skew like Zipf's.
TEST(BalanceExperts, SkewedLoadBecomesEven) {
  ExpertLoad load;
  for (int layer = 3; layer < 13; ++layer) load[layer] = skewed_load(layer, 256);
  for (const int replicas : {0, 16, 64}) {
    SCOPED_TRACE(replicas);
    const ExpertPlacement placement = balance_experts(load, 256, 8, replicas).value();
    EXPECT_EQ(to_text(placement), to_text(balance_experts(load, 256, 8, replicas).value()));
    for (const auto& [layer, of_expert] : load) {
      // No group can do less than the busiest expert with 31 of the least used: without replicas
      // that is the bound.
      std::vector<double> sorted = of_expert;
      std::sort(sorted.begin(), sorted.end());
      const double total = std::accumulate(sorted.begin(), sorted.end(), 0.0);
      const double least = std::accumulate(sorted.begin(), sorted.begin() + 31, sorted.back());
      const double bound = replicas == 0 ? std::max(1.0, least * 8 / total) : 1;
      EXPECT_LT(imbalance(placement.layers.at(layer), 8, of_expert), 1.02 * bound);
      EXPECT_GT(imbalance(placement.slots_of(99), 8, of_expert), 1.15);
    }
    // What it writes it reads: every group's experts differ, and none is missing.
    const auto read = parse_expert_placement(to_text(placement));
    ASSERT_TRUE(read.has_value()) << read.error().message;
    EXPECT_EQ(read->layers, placement.layers);
  }
}

TEST(BalanceExperts, WhatCannotBeDealtIsRefused) {
  EXPECT_THAT(balance_experts({}, 6, 4, 0).error().message,
              HasSubstr("6 experts and 0 replicas cannot be dealt evenly to 4 groups"));
  EXPECT_TRUE(balance_experts({}, 6, 4, 2).has_value());
  EXPECT_THAT(balance_experts({}, 6, 2, 8).error().message, HasSubstr("can hold 6 at most"));
  EXPECT_TRUE(balance_experts({{0, {5, 1, 1, 1, 1, 1}}}, 6, 2, 6).has_value());
}

TEST(ExpertPlacementText, ProblemsAreNamedByLine) {
  const auto problem = [](const std::string& text) {
    const auto parsed = parse_expert_placement(text);
    return parsed ? std::string() : parsed.error().message;
  };
  const std::string head = "nibble-expert-placement 1 experts 4 groups 2 slots 2\n";
  EXPECT_EQ(problem(head + "3 0 2 1 3\n"), "");
  EXPECT_THAT(problem(""), HasSubstr("the file is empty"));
  EXPECT_THAT(problem("3 0 2 1 3\n"), HasSubstr("line 1: expected 'nibble-expert-placement"));
  EXPECT_THAT(problem("nibble-expert-placement 1 experts 4 groups 1 slots 2\n"),
              HasSubstr("1 groups of 2 slots for 4 experts"));
  EXPECT_THAT(problem(head + "x\n"), HasSubstr("line 2: expected a layer's number"));
  EXPECT_THAT(problem(head + "3 0 2 1 4\n"), HasSubstr("line 2: slot 3 is not an expert, 0 to 3"));
  EXPECT_THAT(problem(head + "3 0 2 1\n"), HasSubstr("line 2: 3 slots, expected 4"));
  EXPECT_THAT(problem(head + "3 0 0 1 3\n"), HasSubstr("line 2: group 0 holds expert 0 twice"));
  EXPECT_THAT(problem(head + "3 0 1 1 3\n"), HasSubstr("line 2: expert 2 is nowhere"));
  EXPECT_THAT(problem(head + "3 0 2 1 3\n3 0 2 1 3\n"), HasSubstr("line 3: layer 3 a second time"));
}

}  // namespace
}  // namespace nibble
