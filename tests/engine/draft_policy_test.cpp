#include "nibble/engine/draft_policy.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace nibble {
namespace {

TEST(AcceptanceHistory, AcceptedDraftsAskForAllAndRefusedOnesForOne) {
  AcceptanceHistory good;
  AcceptanceHistory bad;
  for (int i = 0; i < 100; ++i) {
    good.add(5, 5);
    bad.add(5, 0);
  }
  EXPECT_EQ(good.best_num_drafts(5, 0.1), 5);
  EXPECT_EQ(bad.best_num_drafts(5, 0.1), 1);
  EXPECT_EQ(good.best_num_drafts(0, 0.1), 0);
}

// One draft always stands, the second never: with cost 0.1, 2 / 1.1 for one, 2 / 1.2 for two.
TEST(AcceptanceHistory, StopsBehindThePlaceThatIsRefused) {
  AcceptanceHistory history;
  for (int i = 0; i < 100; ++i) history.add(3, 1);
  EXPECT_EQ(history.best_num_drafts(3, 0.1), 1);
  EXPECT_EQ(history.best_num_drafts(3, 0.0), 3);  // what costs nothing is always tried
}

TEST(AcceptanceHistory, APlaceThatWasGivenUpIsTriedAgainSomeDay) {
  AcceptanceHistory history;
  for (int i = 0; i < 100; ++i) history.add(3, 1);
  int windows = 0;
  for (; history.best_num_drafts(3, 0.1) == 1 && windows < 1000; ++windows) history.add(1, 1);
  EXPECT_GT(windows, 3);
  EXPECT_LT(windows, 50);
}

TEST(DraftPolicy, FollowsTheScheduleByBatchSizeAndTheConcurrencyLimit) {
  DraftOptions options;
  options.draft_len_schedule = {{4, 3}, {16, 1}, {32, 0}};
  options.max_concurrency = 40;
  const DraftPolicy policy(options, 5);
  const AcceptanceHistory history;
  const std::vector<std::pair<int64_t, int64_t>> cases = {{1, 5},  {3, 5},  {4, 3},  {15, 3},
                                                          {16, 1}, {31, 1}, {32, 0}, {41, 0}};
  for (const auto& [running, drafts] : cases) {
    EXPECT_EQ(policy.num_drafts(history, running), drafts) << running << " running";
  }
}

TEST(DraftPolicy, GoesOffForGoodWhenTheLastWindowsAreBelowTheThreshold) {
  DraftOptions options;
  options.acceptance_window = 4;
  options.acceptance_length_threshold = 2;
  DraftPolicy policy(options, 3);
  for (const int64_t accepted : {2, 0, 2, 0, 1}) policy.add(accepted);  // means 2.0, then 1.75
  EXPECT_TRUE(policy.is_off());
  for (int i = 0; i < 10; ++i) policy.add(3);
  EXPECT_EQ(policy.num_drafts({}, 1), 0);
}

TEST(DraftPolicy, RefusesOptionsOutOfRangeByName) {
  DraftOptions options;
  options.draft_len_schedule = {{1, 4}};
  EXPECT_THAT(validate(options, 3).error().message,
              ::testing::HasSubstr("draft_len_schedule is 4"));
  options = {};
  options.draft_cost = 2;
  EXPECT_THAT(validate(options, 3).error().message, ::testing::HasSubstr("draft_cost is 2"));
  EXPECT_TRUE(validate({}, 3).has_value());
}

}  // namespace
}  // namespace nibble
