// Which rank gets which token, by hand and by drawing; and the rule of takes_alltoall().
#include "nibble/model/moe_alltoall.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <random>
#include <set>

namespace nibble {
namespace {

using ::testing::ElementsAre;

// Three ranks with two experts each; two, one and no tokens of two choices.
TEST(ExpertExchange, SendsEachTokenOnceToEachRankWithOneOfItsExperts) {
  const std::vector<int32_t> ids = {0, 1,   // token 0, of rank 0: rank 0 alone
                                    5, 2,   // token 1, of rank 0: ranks 2 and 1
                                    3, 0};  // token 2, of rank 1: ranks 1 and 0
  const std::vector<int64_t> tokens = {2, 1, 0};
  Shard shard{0, 3, 3, true};
  const ExpertExchange first = plan_exchange(ids, 2, 6, tokens, shard);
  EXPECT_THAT(first.send_rows, ElementsAre(0, 1, 1));
  EXPECT_THAT(first.send_counts, ElementsAre(1, 1, 1));
  EXPECT_THAT(first.receive_rows, ElementsAre(0, 2));
  EXPECT_THAT(first.receive_counts, ElementsAre(1, 1, 0));
  EXPECT_THAT(first.sum_rows, ElementsAre(0, -1, -1, -1, 1, 2));
  shard.rank = 2;
  const ExpertExchange last = plan_exchange(ids, 2, 6, tokens, shard);
  EXPECT_THAT(last.send_rows, ElementsAre());
  EXPECT_THAT(last.receive_rows, ElementsAre(1));
  EXPECT_THAT(last.receive_counts, ElementsAre(1, 0, 0));
}

// Both ranks of a group hold a slice of each of its experts.
TEST(ExpertExchange, AllRanksOfAGroupGetItsTokens) {
  const std::vector<int32_t> ids = {1, 3};
  const std::vector<int64_t> tokens = {0, 1, 0, 0};
  const ExpertExchange plan = plan_exchange(ids, 2, 4, tokens, Shard{1, 4, 2, true});
  EXPECT_THAT(plan.send_counts, ElementsAre(1, 1, 1, 1));
  const std::vector<int32_t> one_group = {0, 1};
  const ExpertExchange near = plan_exchange(one_group, 2, 4, tokens, Shard{1, 4, 2, true});
  EXPECT_THAT(near.send_counts, ElementsAre(1, 1, 0, 0));
  EXPECT_THAT(near.sum_rows, ElementsAre(0, 1, -1, -1));
}

// What one rank sends another one receives, whatever was chosen.
TEST(ExpertExchange, RanksAgreeOnWhatTheySend) {
  std::mt19937 rng(3);
  const std::vector<int64_t> tokens = {5, 0, 17, 9};
  std::vector<int32_t> ids;
  for (int t = 0; t < 31; ++t) {
    std::vector<int32_t> all(16);
    std::iota(all.begin(), all.end(), 0);
    std::shuffle(all.begin(), all.end(), rng);
    ids.insert(ids.end(), all.begin(), all.begin() + 3);
  }
  std::vector<ExpertExchange> plans;
  plans.reserve(4);
  for (int r = 0; r < 4; ++r) plans.push_back(plan_exchange(ids, 3, 16, tokens, {r, 4, 4, true}));
  for (size_t from = 0; from < 4; ++from) {
    const int64_t before = std::accumulate(tokens.begin(), tokens.begin() + from, int64_t{0});
    for (size_t to = 0; to < 4; ++to) {
      ASSERT_EQ(plans[from].send_counts[to], plans[to].receive_counts[from]);
      const auto part = [](const std::vector<int32_t>& rows, const std::vector<int64_t>& counts,
                           size_t index) {
        const int64_t begin = std::accumulate(counts.begin(), counts.begin() + index, int64_t{0});
        return std::vector<int32_t>(rows.begin() + begin, rows.begin() + begin + counts[index]);
      };
      std::vector<int32_t> sent = part(plans[from].send_rows, plans[from].send_counts, to);
      for (int32_t& row : sent) row += static_cast<int32_t>(before);
      EXPECT_EQ(sent, part(plans[to].receive_rows, plans[to].receive_counts, from));
    }
  }
}

// DeepSeek-R1's routing with random scores.
double drawn_groups(int ep_size) {
  std::mt19937 rng(5);
  constexpr int kDraws = 20000;
  int64_t needed = 0;
  std::vector<int> groups(8);
  std::iota(groups.begin(), groups.end(), 0);
  for (int draw = 0; draw < kDraws; ++draw) {
    std::shuffle(groups.begin(), groups.end(), rng);
    std::vector<int> experts;
    for (int g = 0; g < 4; ++g) {
      for (int e = 0; e < 32; ++e) experts.push_back(groups[static_cast<size_t>(g)] * 32 + e);
    }
    std::shuffle(experts.begin(), experts.end(), rng);
    std::set<int> held;
    for (int j = 0; j < 8; ++j) held.insert(experts[static_cast<size_t>(j)] * ep_size / 256);
    needed += std::ssize(held);
  }
  return static_cast<double>(needed) / kDraws;
}

const RouterShape kR1 = {256, 8, 8, 4, true, 2.5F};

TEST(MeanGroupsOfToken, IsWhatDrawingGives) {
  for (const int ep_size : {1, 2, 4, 8, 16, 32}) {
    EXPECT_NEAR(mean_groups_of_token(kR1, ep_size), drawn_groups(ep_size), 0.03) << ep_size;
  }
}

bool takes(const std::vector<int64_t>& tokens, All2AllBackend backend = All2AllBackend::kAuto) {
  const auto ranks = static_cast<int>(tokens.size());
  return takes_alltoall({0, ranks, ranks, true, backend}, kR1, tokens, 7168, false);
}

// What two H200 showed: even at 256 tokens each, faster at 512.
TEST(TakesAlltoall, AutoWeighsWhatIsSaved) {
  EXPECT_FALSE(takes({256, 256}));
  EXPECT_TRUE(takes({512, 512}));
  EXPECT_FALSE(takes({2048, 8})) << "the first rank saves nothing";
  EXPECT_FALSE(takes(std::vector<int64_t>(8, 16))) << "a step of decoding";
  EXPECT_TRUE(takes(std::vector<int64_t>(8, 2048)));
}

TEST(TakesAlltoall, ANameDecides) {
  EXPECT_TRUE(takes({1, 1}, parse_all2all_backend("alltoall").value()));
  EXPECT_FALSE(takes({4096, 4096}, parse_all2all_backend("allgather_reducescatter").value()));
  EXPECT_EQ(parse_all2all_backend("auto").value(), All2AllBackend::kAuto);
  const auto unknown = parse_all2all_backend("deepep");
  ASSERT_FALSE(unknown.has_value());
  EXPECT_EQ(unknown.error().message,
            "unknown all2all_backend 'deepep', expected auto, allgather_reducescatter or alltoall");
}

}  // namespace
}  // namespace nibble
