// The estimator against the golden file, and against what was measured in public.
#include "nibble/plan/speed.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "nibble/plan/published.h"
#include "tests/plan/golden.h"

namespace nibble {
namespace {

using testing::at;
using testing::flag;
using testing::golden;
using testing::integer;
using testing::num;
using testing::r1;
using testing::str;

const Measurement* measurement(const std::string& id) {
  for (const Measurement& row : published_measurements()) {
    if (row.id == id) return &row;
  }
  return nullptr;
}

TEST(PlanSpeed, HasEveryGoldenMeasurement) {
  const auto& rows = *at(golden(), "throughput").as_array();
  ASSERT_EQ(rows.size(), published_measurements().size());
  for (const JsonValue& row : rows) {
    SCOPED_TRACE(str(row, "id"));
    const Measurement* ours = measurement(str(row, "id"));
    ASSERT_NE(ours, nullptr);
    EXPECT_EQ(ours->device, str(row, "device"));
    EXPECT_DOUBLE_EQ(ours->measured, num(row, "measured"));
    EXPECT_EQ(ours->used_to_set_constants, flag(row, "used_to_set_constants"));
    EXPECT_EQ(ours->source, str(row, "source"));
    EXPECT_EQ(ours->per_node, str(row, "unit") == "tok/s/node");
    if (row.find("tiers") != nullptr) {
      const auto& tiers = *at(row, "tiers").as_array();
      ASSERT_EQ(ours->tiers.size(), tiers.size());
      for (size_t i = 0; i < tiers.size(); ++i) {
        EXPECT_DOUBLE_EQ(ours->tiers[i].bytes_per_token, num(tiers[i], "bytes_per_token"));
        EXPECT_DOUBLE_EQ(ours->tiers[i].bandwidth_gbs, num(tiers[i], "bandwidth_gbs"));
      }
      continue;
    }
    EXPECT_EQ(ours->gpus, integer(row, "gpus"));
    EXPECT_DOUBLE_EQ(ours->load.batch, num(row, "concurrency"));
    EXPECT_DOUBLE_EQ(ours->load.mean_context, num(row, "mean_context"));
    EXPECT_EQ(ours->load.draft_tokens, integer(row, "mtp_draft"));
    EXPECT_DOUBLE_EQ(ours->load.accept_length, num(row, "accept_length"));
    EXPECT_EQ(ours->load.kv == KvFormat::kFp8, integer(row, "kv_bytes_per_element") == 1);
  }
  const auto& excluded = *at(at(golden(), "throughput_band"), "excluded").as_array();
  EXPECT_EQ(std::count_if(published_measurements().begin(), published_measurements().end(),
                          [](const Measurement& row) { return row.excluded; }),
            static_cast<int64_t>(excluded.size()));
  for (const JsonValue& id : excluded) EXPECT_TRUE(measurement(*id.as_string())->excluded);
}

TEST(PlanSpeed, PredictsTheGoldenValuesWithinOnePercent) {
  const JsonValue& band = at(golden(), "throughput_band");
  for (const JsonValue& row : *at(golden(), "throughput").as_array()) {
    SCOPED_TRACE(str(row, "id"));
    const Measurement* ours = measurement(str(row, "id"));
    ASSERT_NE(ours, nullptr);
    const auto prediction = predict(*ours, r1(), Catalogue::builtin(), SpeedConstants{});
    ASSERT_TRUE(prediction) << prediction.error().message;
    const double predicted = num(row, "predicted");
    EXPECT_NEAR(prediction->tokens_per_second, predicted, 0.01 * predicted);
    EXPECT_NEAR(prediction->tokens_per_second / ours->measured, num(row, "ratio"),
                0.01 * num(row, "ratio"));
    if (!ours->excluded) {
      EXPECT_GE(num(row, "ratio"), num(band, "ratio_min"));
      EXPECT_LE(num(row, "ratio"), num(band, "ratio_max"));
    }
    const JsonValue* step = row.find("step_ms");
    if (step == nullptr) continue;
    const auto near = [&](std::optional<double> value, std::string_view name, double factor = 1) {
      ASSERT_TRUE(value) << name;
      const double expected = num(*step, name) * factor;
      EXPECT_NEAR(*value, expected, 0.0006 * factor + 0.001 * expected) << name;
    };
    near(prediction->step.mem, "mem");
    near(prediction->step.comp, "comp");
    near(prediction->step.comm, "comm");
    near(prediction->step.fixed, "fixed");
    // The golden rows admit prompts as if a step gave each sequence one token; with drafts it gives
    // accept_length, so as many more prompts come in. Invisible in the totals of these rows.
    near(prediction->step.prefill, "prefill", ours->load.accept_length);
  }
}

TEST(PlanSpeed, HasTheGoldenConstants) {
  const JsonValue& golden_constants = at(golden(), "throughput_constants");
  const SpeedConstants constants;
  EXPECT_DOUBLE_EQ(constants.eta_mem_gpu, num(golden_constants, "eta_mem_gpu"));
  EXPECT_DOUBLE_EQ(constants.eta_mem_cpu, num(golden_constants, "eta_mem_cpu"));
  EXPECT_DOUBLE_EQ(constants.eta_compute, num(golden_constants, "eta_compute"));
  EXPECT_DOUBLE_EQ(constants.eta_link, num(golden_constants, "eta_link"));
  EXPECT_DOUBLE_EQ(constants.layer_overhead_graph_us,
                   num(golden_constants, "layer_overhead_graph_us"));
  EXPECT_DOUBLE_EQ(constants.layer_overhead_generic_us,
                   num(golden_constants, "layer_overhead_generic_us"));
  EXPECT_DOUBLE_EQ(constants.layer_overhead_cpu_us, num(golden_constants, "layer_overhead_cpu_us"));
  EXPECT_DOUBLE_EQ(constants.alpha_nvlink_us, num(golden_constants, "alpha_nvlink_us"));
  EXPECT_DOUBLE_EQ(constants.alpha_pcie_us, num(golden_constants, "alpha_pcie_us"));
  const JsonValue& mtp = at(at(golden(), "mtp_acceptance_published"), "accept_length");
  EXPECT_DOUBLE_EQ(default_accept_length(0), 1);
  for (const auto& [drafts, length] : *mtp.as_object()) {
    EXPECT_DOUBLE_EQ(default_accept_length(std::stoi(drafts)), *length.as_number());
  }
}

TEST(PlanSpeed, IsWithinTheBandOfWhatWasMeasured) {
  const auto report = published_accuracy(r1(), Catalogue::builtin(), SpeedConstants{}).value();
  EXPECT_LE(report.median_error, 1.35);
  EXPECT_LE(report.median_error_all, 1.35);
  // Constants that have not seen the row: the honest figure.
  EXPECT_LE(report.left_out_median_error, 1.35);
  for (const AccuracyRow& row : report.rows) {
    RecordProperty(row.measurement->id, std::to_string(row.left_out_ratio));
  }
  RecordProperty("median", std::to_string(report.median_error));
  RecordProperty("left_out_median", std::to_string(report.left_out_median_error));
}

// Rows made by known constants must give them back; the pull towards the prior costs a little.
TEST(PlanSpeed, FitsConstantsThatMadeTheRows) {
  SpeedConstants truth;
  truth.eta_mem_cpu = 0.31;
  truth.layer_overhead_cpu_us = 910;
  std::vector<Measurement> rows;
  for (const double bytes : {1e9, 3e9, 10e9, 30e9, 100e9}) {
    for (const double rate : {50.0, 200.0, 800.0}) {
      Measurement row;
      row.id = "made";
      row.tiers = {{bytes, rate, EfficiencyClass::kCpu}};
      row.overhead = StepOverhead::kCpu;
      row.measured = predict(row, r1(), Catalogue::builtin(), truth)->tokens_per_second;
      rows.push_back(row);
    }
  }
  const auto fitted = fit_constants(rows, r1(), Catalogue::builtin(), SpeedConstants{}).value();
  EXPECT_NEAR(fitted.eta_mem_cpu, 0.31, 0.02);
  EXPECT_NEAR(fitted.layer_overhead_cpu_us, 910, 60);
  EXPECT_DOUBLE_EQ(fitted.eta_mem_gpu, 0.7);  // no row depends on it
}

TEST(PlanSpeed, LeavesOutWhatIsUnknown) {
  const PlanDevice unknown = device_of(Catalogue::builtin().find("rtxpro4000bw").value()).value();
  ASSERT_FALSE(unknown.bf16_flops);
  const Split split = make_split(ParallelMode::kTp, 2);
  const ModelWeights v2 = testing::golden_weights("v2");
  Workload load;
  const StepTime step =
      decode_step(r1(), v2, unknown, split, load, SpeedConstants{}, StepOverhead::kGraph,
                  link_speed(unknown, 2, SpeedConstants{}, kDefaultNodeLinkRate));
  EXPECT_TRUE(step.mem);
  EXPECT_FALSE(step.comp);
  EXPECT_FALSE(tiers_ms({{1e9, std::nullopt, 0.5}}));
}

TEST(PlanSpeed, TakesTheSlowerLinkBeyondABridgeAndANode) {
  const PlanDevice rtx3090 = device_of(Catalogue::builtin().find("rtx3090").value()).value();
  const SpeedConstants constants;
  EXPECT_DOUBLE_EQ(*link_speed(rtx3090, 2, constants, 50e9).direction_rate, 56.25e9);
  EXPECT_DOUBLE_EQ(*link_speed(rtx3090, 4, constants, 50e9).direction_rate, 32e9);
  EXPECT_DOUBLE_EQ(link_speed(rtx3090, 4, constants, 50e9).alpha_us, 30);
  const PlanDevice h200 = device_of(Catalogue::builtin().find("h200").value()).value();
  EXPECT_DOUBLE_EQ(*link_speed(h200, 8, constants, 50e9).direction_rate, 450e9);
  EXPECT_DOUBLE_EQ(*link_speed(h200, 16, constants, 50e9).direction_rate, 50e9);
}

}  // namespace
}  // namespace nibble
