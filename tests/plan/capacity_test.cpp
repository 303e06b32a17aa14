#include "nibble/plan/capacity.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "nibble/plan/capacity_report.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;

const PlanModel& capacity_model() {
  static const PlanModel model = load_plan_model("deepseek-r1").value();
  return model;
}

PlanResult<CapacityReport> capacity_on(std::string_view devices, const CapacityRequest& capacity,
                                       int64_t isl = 4000, int64_t osl = 1000) {
  PlanRequest request;
  request.isl = isl;
  request.osl = osl;
  const Hardware hardware =
      hardware_of({parse_device_count(devices, Catalogue::builtin()).value()}).value();
  return plan_capacity(capacity_model(), find_format("nvfp4-v2").value(), hardware, request,
                       capacity, PlanConstants{});
}

CapacityRequest of_rate(double requests_per_second, double prefix_share = 0) {
  CapacityRequest capacity;
  capacity.requests_per_second = requests_per_second;
  capacity.prefix_share = prefix_share;
  return capacity;
}

// Each row is within its limit, and the replicas suffice, one fewer would not.
TEST(Capacity, RowsKeepTheirLimitsAndUseThem) {
  const CapacityReport report = capacity_on("h200x8", of_rate(100)).value();
  ASSERT_EQ(report.rows.size(), 12U);  // three ways; 8, 16, 32, 64 devices
  for (const CapacityRow& row : report.rows) {
    SCOPED_TRACE(::testing::Message() << capacity_way_name(row.way) << " " << row.split.gpus);
    ASSERT_EQ(row.problem, "");
    EXPECT_LE(row.tpot_ms, 50);
    EXPECT_GE(static_cast<double>(row.replicas) * row.rate * 0.8, 100 * (1 - 1e-9));
    EXPECT_LT(static_cast<double>(row.replicas - 1) * row.rate * 0.8, 100);
    EXPECT_EQ(row.gpus, row.replicas * row.split.gpus + row.prompt_replicas * 8);
    // Little's law: as many sequences as come in a second, times the seconds that each takes.
    if (row.way != CapacityWay::kDisaggregated) {
      EXPECT_NEAR(static_cast<double>(row.batch), row.rate * row.tpot_ms * 1000 / 1e3,
                  1e-6 * static_cast<double>(row.batch));
    } else {
      EXPECT_GE(static_cast<double>(row.prompt_replicas) * row.prompt_rate * 0.8, 100 * (1 - 1e-9));
    }
  }
}

TEST(Capacity, MoreOfEverythingTakesMoreDevices) {
  const auto devices = [](const PlanResult<CapacityReport>& report, CapacityWay way) {
    return report->best(way)->gpus;
  };
  for (const CapacityWay way :
       {CapacityWay::kRandom, CapacityWay::kCacheAware, CapacityWay::kDisaggregated}) {
    SCOPED_TRACE(capacity_way_name(way));
    const int64_t usual = devices(capacity_on("h200x8", of_rate(200)), way);
    EXPECT_GT(devices(capacity_on("h200x8", of_rate(400)), way), usual);
    EXPECT_GT(devices(capacity_on("h200x8", of_rate(200), 16000), way), usual);
    EXPECT_GT(devices(capacity_on("h200x8", of_rate(200), 4000, 4000), way), usual);
    CapacityRequest fast = of_rate(200);
    fast.max_tpot_ms = 25;
    EXPECT_GT(devices(capacity_on("h200x8", fast), way), usual);
  }
  // Hundreds of nodes.
  EXPECT_GT(devices(capacity_on("h200x8", of_rate(5000)), CapacityWay::kCacheAware), 8 * 200);
}

// Prefixes help where requests find them: with many replicas hardly ever by chance.
TEST(Capacity, CachedPrefixesHelpWhereRequestsFindThem) {
  const CapacityReport none = capacity_on("h200x8", of_rate(400)).value();
  const CapacityReport shared = capacity_on("h200x8", of_rate(400, 0.8)).value();
  const auto devices = [](const CapacityReport& report, CapacityWay way) {
    return static_cast<double>(report.best(way)->gpus);
  };
  EXPECT_EQ(devices(none, CapacityWay::kRandom), devices(none, CapacityWay::kCacheAware));
  EXPECT_LT(devices(shared, CapacityWay::kCacheAware),
            0.8 * devices(none, CapacityWay::kCacheAware));
  EXPECT_GT(devices(shared, CapacityWay::kRandom), 0.95 * devices(none, CapacityWay::kRandom));
  // Of the smallest replica: larger ones trade some of it for fewer devices.
  const auto smallest = [](const CapacityReport& report) {
    return *std::find_if(report.rows.begin(), report.rows.end(), [](const CapacityRow& row) {
      return row.way == CapacityWay::kCacheAware && row.split.gpus == 8;
    });
  };
  EXPECT_LT(smallest(shared).ttft_ms, 0.8 * smallest(none).ttft_ms);
}

// By hand: 4000 tokens of 61 layers x 576 bytes are 140.5 MB; over 8 links of 50 GB/s at 70 %
// 0.50 ms.
TEST(Capacity, ThePromptsCacheTakesItsTimeOnTheLink) {
  const CapacityReport report = capacity_on("h200x8", of_rate(10)).value();
  const CapacityRow* const row = report.best(CapacityWay::kDisaggregated);
  ASSERT_NE(row, nullptr);
  EXPECT_NEAR(row->transfer_ms, 4000.0 * 61 * 576 / (50e9 * 0.7 * 8) * 1e3, 1e-6);
}

TEST(Capacity, WhatCannotBeIsSaid) {
  CapacityRequest impossible = of_rate(10);
  impossible.max_tpot_ms = 1;
  const CapacityReport report = capacity_on("h200x8", impossible).value();
  for (const CapacityRow& row : report.rows) EXPECT_THAT(row.problem, HasSubstr("a token takes"));
  EXPECT_EQ(report.best(CapacityWay::kRandom), nullptr);
  EXPECT_THAT(capacity_text(report, TableStyle::kText),
              HasSubstr("cache-aware: not possible within the limits"));
  EXPECT_THAT(capacity_on("h200x2", of_rate(10)).error().message,
              HasSubstr("2 devices don't hold the model and one request of 5000 tokens"));
  EXPECT_THAT(capacity_on("h200x8", of_rate(10), 0).error().message, HasSubstr("needs the tokens"));
  EXPECT_THAT(capacity_on("h200x8", of_rate(0)).error().message, HasSubstr("--capacity is 0"));
  EXPECT_THAT(capacity_on("h200x8", of_rate(1, 1)).error().message,
              HasSubstr("--prefix-share is 1, expected 0 to below 1"));
}

TEST(Capacity, JsonHasTheTable) {
  const CapacityReport report = capacity_on("h200x8", of_rate(100)).value();
  const JsonValue json = capacity_json(report);
  EXPECT_THAT(to_json(json), HasSubstr(R"("schema": "nibble.plan.capacity/1")"));
  EXPECT_THAT(to_json(json), HasSubstr(R"("routing": "prompts apart")"));
}

}  // namespace
}  // namespace nibble
