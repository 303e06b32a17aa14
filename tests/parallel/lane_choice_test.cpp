#include "nibble/engine/lane_choice.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

namespace nibble {
namespace {

LaneLoad lane(int64_t cached, int64_t pending, int64_t sequences, int64_t tokens) {
  return {cached, pending, sequences, tokens};
}

TEST(LaneChoice, TheMostCachedTokensLessThePendingOnesWin) {
  const LaneLimits limits;
  const std::vector<LaneLoad> cached = {lane(0, 0, 1, 100), lane(64, 32, 1, 100)};
  EXPECT_EQ(choose_lane(cached, limits), 1);
  const std::vector<LaneLoad> busy = {lane(0, 0, 1, 100), lane(64, 65, 1, 100)};
  EXPECT_EQ(choose_lane(busy, limits), 0);
}

TEST(LaneChoice, TiesGoToFewestSequencesThenFewestTokensThenTheFirst) {
  const LaneLimits limits;
  const std::vector<LaneLoad> sequences = {lane(0, 3, 3, 10), lane(0, 3, 2, 90)};
  EXPECT_EQ(choose_lane(sequences, limits), 1);
  const std::vector<LaneLoad> tokens = {lane(0, 3, 3, 90), lane(0, 3, 3, 10)};
  EXPECT_EQ(choose_lane(tokens, limits), 1);
  const std::vector<LaneLoad> equal = {lane(0, 3, 3, 10), lane(0, 3, 3, 10)};
  EXPECT_EQ(choose_lane(equal, limits), 0);
}

TEST(LaneChoice, ACachedPrefixDrawsNoRankBeyondTheLimits) {
  const LaneLimits limits;  // 2 sequences, 8192 tokens, or a quarter
  EXPECT_EQ(choose_lane(std::vector{lane(500, 2, 2, 50), lane(0, 0, 0, 0)}, limits), 0);
  EXPECT_EQ(choose_lane(std::vector{lane(500, 3, 3, 50), lane(0, 0, 0, 0)}, limits), 1);
  EXPECT_EQ(choose_lane(std::vector{lane(500, 50, 50, 50), lane(0, 40, 40, 0)}, limits), 0);
  EXPECT_EQ(choose_lane(std::vector{lane(500, 51, 51, 50), lane(0, 40, 40, 0)}, limits), 1);
  EXPECT_EQ(choose_lane(std::vector{lane(500, 1, 1, 8192), lane(0, 1, 1, 0)}, limits), 0);
  EXPECT_EQ(choose_lane(std::vector{lane(500, 1, 1, 8193), lane(0, 1, 1, 0)}, limits), 1);
}

// Many requests that share a prefix, each of which runs for long: all ranks come to have it.
TEST(LaneChoice, ACommonPrefixSpreadsOverAllRanks) {
  std::vector<LaneLoad> lanes(4);
  std::vector<bool> has_prefix(4);
  for (int request = 0; request < 64; ++request) {
    for (size_t i = 0; i < lanes.size(); ++i) lanes[i].cached_tokens = has_prefix[i] ? 1024 : 0;
    const auto best = static_cast<size_t>(choose_lane(lanes, {}));
    has_prefix[best] = true;
    ++lanes[best].num_sequences;
    ++lanes[best].pending_tokens;  // it decodes
    lanes[best].num_tokens += 1100;
  }
  for (const LaneLoad& of : lanes) {
    EXPECT_GE(of.num_sequences, 14);
    EXPECT_LE(of.num_sequences, 18);
  }
}

}  // namespace
}  // namespace nibble
