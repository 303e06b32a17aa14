// Whole plans: verdicts, limits, choices, offload, refusals.
#include "nibble/plan/planner.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "nibble/plan/device_sets.h"
#include "nibble/plan/report_json.h"
#include "nibble/plan/report_text.h"
#include "tests/plan/golden.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

const PlanModel& deepseek() {
  static const PlanModel model = load_plan_model("deepseek-r1").value();
  return model;
}

Hardware gpus(std::string_view text) {
  return hardware_of({parse_device_count(text, Catalogue::builtin()).value()}).value();
}

PlanResult<PlanReport> plan_on(const Hardware& hardware, const PlanRequest& request = {},
                               std::string_view format = "nvfp4-v2") {
  return make_plan(deepseek(), find_format(format).value(), hardware, request, PlanConstants{});
}

Verdict verdict_on(std::string_view devices, std::string_view format, int64_t context) {
  const Hardware hardware = gpus(devices);
  PlanRequest request;
  request.context = context;
  return plan_on(hardware, request, format)->chosen.verdict;
}

// planner.md section 6: the smallest sets for NVFP4 v2 with 163,840 tokens, and for FP8; half of
// each does not do.
TEST(Planner, FindsTheSmallestSetsThatAreKnown) {
  for (const std::string_view set :
       {"b200x4", "h200x4", "h100-sxmx8", "rtxpro6000bwx8", "b300x2", "m3-ultra-512"}) {
    EXPECT_NE(verdict_on(set, "nvfp4-v2", 163840), Verdict::kDoesNotFit) << set;
  }
  for (const std::string_view half :
       {"b200x2", "h200x2", "h100-sxmx4", "rtxpro6000bwx4", "b300x1"}) {
    EXPECT_EQ(verdict_on(half, "nvfp4-v2", 163840), Verdict::kDoesNotFit) << half;
  }
  EXPECT_NE(verdict_on("b200x4", "fp8", 32768), Verdict::kDoesNotFit);
  EXPECT_NE(verdict_on("h200x8", "fp8", 32768), Verdict::kDoesNotFit);
  EXPECT_NE(verdict_on("h100-sxmx16", "fp8", 32768), Verdict::kDoesNotFit);
  EXPECT_EQ(verdict_on("h100-sxmx8", "fp8", 32768), Verdict::kDoesNotFit);
}

// What is said to fit must fit when it is asked for, and one block or sequence more must not.
TEST(Planner, LimitsAreTheLargestThatFit) {
  const Hardware hardware = gpus("h200x4");
  for (const ParallelMode mode : {ParallelMode::kTp, ParallelMode::kAdp}) {
    PlanRequest request;
    request.parallel = mode;
    request.batch = 40;
    request.context = 8192;
    const Placement first = plan_on(hardware, request)->chosen;
    request.batch = first.max_batch;
    EXPECT_NE(plan_on(hardware, request)->chosen.verdict, Verdict::kDoesNotFit);
    request.batch = first.max_batch + 1;
    EXPECT_EQ(plan_on(hardware, request)->chosen.verdict, Verdict::kDoesNotFit);
    request.batch = 40;
    request.context = first.max_context;
    EXPECT_NE(plan_on(hardware, request)->chosen.verdict, Verdict::kDoesNotFit);
    if (first.max_context + 64 > 163840) continue;
    request.context = first.max_context + 64;
    const Placement beyond = plan_on(hardware, request)->chosen;
    EXPECT_EQ(beyond.verdict, Verdict::kDoesNotFit);
    EXPECT_GT(beyond.short_bytes, 0);
  }
}

// The shortfall is what is missing: with so many bytes more on each device it fits.
TEST(Planner, TheShortfallIsEnough) {
  for (const int64_t batch : {1, 64}) {
    PlanRequest request;
    request.batch = batch;
    request.parallel = ParallelMode::kTp;
    Hardware hardware = gpus("h100-sxmx8");
    const auto before = plan_on(hardware, request, "fp8");
    ASSERT_EQ(before->chosen.verdict, Verdict::kDoesNotFit);
    hardware.groups.front().device.memory_bytes += before->chosen.short_bytes + (64 * 70272) * 2;
    EXPECT_NE(plan_on(hardware, request, "fp8")->chosen.verdict, Verdict::kDoesNotFit);
    hardware.groups.front().device.memory_bytes -= before->chosen.short_bytes / 2;
    EXPECT_EQ(plan_on(hardware, request, "fp8")->chosen.verdict, Verdict::kDoesNotFit);
  }
}

TEST(Planner, PrefersTpForFewAndAdpForManySequences) {
  const Hardware hardware = gpus("b200x8");
  PlanRequest request;
  request.batch = 32;
  EXPECT_EQ(plan_on(hardware, request)->chosen.split.mode, ParallelMode::kTp);
  request.batch = 33;
  const auto many = plan_on(hardware, request);
  EXPECT_EQ(many->chosen.split.mode, ParallelMode::kAdp);
  ASSERT_EQ(many->alternatives.size(), 1u);
  EXPECT_EQ(many->alternatives.front().split.mode, ParallelMode::kTp);
}

TEST(Planner, EndsWithACommandAndWhatWasAssumed) {
  PlanRequest request;
  request.batch = 256;
  const Hardware hardware = gpus("b200x8");
  const auto report = plan_on(hardware, request);
  EXPECT_EQ(
      report->launch,
      "nibble serve DIR --tp 8 --ep 8 --attention-dp --kv fp8 --kv-fraction 0.9 --max-batch 93 "
      "--max_num_tokens 8192 --max_seq_len 32768 --backend cuda");
  EXPECT_THAT(report->steps_before,
              ::testing::ElementsAre("nibble quantize FP8_DIR DIR --scheme nvfp4-v2"));
  EXPECT_FALSE(report->assumptions.empty());
  const std::string text = plan_text(*report);
  EXPECT_THAT(text, HasSubstr("file 413.31 GB (384.9 GiB)"));
  EXPECT_THAT(text, HasSubstr("weights              64.53"));
  EXPECT_THAT(text, HasSubstr("3,078,656 tokens per device"));
  EXPECT_THAT(text, HasSubstr("run on H200 GPUs alone"));
}

TEST(Planner, GivesNoCommandWhereNothingRuns) {
  const Hardware amd = gpus("mi355xx4");
  const auto report = plan_on(amd);
  EXPECT_EQ(report->chosen.verdict, Verdict::kFits);
  EXPECT_EQ(report->launch, "");
  EXPECT_THAT(plan_text(*report), HasSubstr("no backend for AMD GPUs"));
  const Hardware h200 = gpus("h200x8");
  EXPECT_EQ(plan_on(h200, {}, "q4_k_m")->launch, "");
}

TEST(Planner, MarksUncheckedAndNominalFigures) {
  const Hardware unchecked = gpus("gb200x4");
  const std::string text = plan_text(*plan_on(unchecked));
  EXPECT_THAT(text, HasSubstr("unchecked catalogue figures"));
  EXPECT_THAT(text, HasSubstr("nominal memory"));
  const Hardware checked = gpus("h200-sxmx4");
  EXPECT_THAT(plan_text(*plan_on(checked)), Not(HasSubstr("unchecked")));
}

// 4 GB and 5 % of RAM stay with the system; experts are whole; every byte of them is somewhere.
TEST(Planner, OffloadsExpertsToRamAndSsd) {
  Hardware hardware = gpus("rtx4090");
  hardware.ram_bytes = 512'000'000'000;
  const auto with_ram = plan_on(hardware);
  ASSERT_EQ(with_ram->chosen.verdict, Verdict::kOffload);
  const OffloadPlan ram = *with_ram->chosen.offload;
  const int64_t experts = 367'824'039'936;  // counts.checkpoints.v2.bytes_by_class.routed_experts
  EXPECT_EQ(ram.gpu + ram.ram + ram.ssd, experts);
  EXPECT_EQ(ram.ssd, 0);
  EXPECT_EQ(ram.gpu % 24'772'632, 0);
  EXPECT_LE(ram.ram + 1'853'358'080, 512'000'000'000 - 4'000'000'000 - 25'600'000'000);
  // Without a CPU's rate they are copied: PCIe 4 x16, half of what PCIe 5 was measured at.
  ASSERT_TRUE(with_ram->asked_point());
  const double copy_ms = ram.ram_hits * 8 * 58 * 24'772'632 / 27.5e9 * 1e3;
  EXPECT_GT(*with_ram->asked_point()->step.mem, copy_ms);
  EXPECT_LT(*with_ram->asked_point()->step.mem, copy_ms + 40);
  EXPECT_THAT(plan_text(*with_ram), HasSubstr("copied over one link at 28 GB/s"));

  hardware.ram_bytes = 256'000'000'000;
  EXPECT_EQ(plan_on(hardware)->chosen.verdict, Verdict::kDoesNotFit);
  hardware.ssd = true;
  hardware.ssd_rate = 7e9;
  hardware.cpu = device_of(Catalogue::builtin().find("cpu-xeon-6980p").value()).value();
  const auto with_ssd = plan_on(hardware);
  ASSERT_EQ(with_ssd->chosen.verdict, Verdict::kOffload);
  const OffloadPlan ssd = *with_ssd->chosen.offload;
  EXPECT_EQ(ssd.gpu + ssd.ram + ssd.ssd, experts);
  EXPECT_GT(ssd.ssd, 0);
  ASSERT_TRUE(with_ssd->asked_point());
  // The SSD alone takes its share of the 8 experts of 58 layers at 7 GB/s.
  const double ssd_ms = ssd.ssd_hits * 8 * 58 * 24'772'632 / 7e9 * 1e3;
  EXPECT_GT(*with_ssd->asked_point()->step.mem, ssd_ms);

  hardware.ssd_bytes = 1'000'000;
  EXPECT_EQ(plan_on(hardware)->chosen.verdict, Verdict::kDoesNotFit);
}

// docs/offload.md measured 10.8 and 14.2 tokens a second with nibble on this machine.
TEST(Planner, PredictsCopiedExpertsNearWhatWasMeasured) {
  Hardware hardware = gpus("h200-sxmx2");
  hardware.ram_bytes = 256'000'000'000;
  const auto report = plan_on(hardware);
  ASSERT_EQ(report->chosen.verdict, Verdict::kOffload);
  ASSERT_TRUE(report->asked_point());
  EXPECT_NEAR(report->asked_point()->tokens_per_second, 10.8, 2.2);
  EXPECT_EQ(host_link_rate(device_of(Catalogue::builtin().find("h200-sxm").value()).value()), 55e9);
  EXPECT_EQ(host_link_rate(device_of(Catalogue::builtin().find("cpu-xeon-6980p").value()).value()),
            std::nullopt);
}

TEST(Planner, LowersMaxNumTokensBeforeGivingUpOnOffload) {
  Hardware hardware = gpus("custom:mem=22,bw=1000");
  hardware.ram_bytes = 512'000'000'000;
  const auto report = plan_on(hardware);
  ASSERT_EQ(report->chosen.verdict, Verdict::kOffload);
  EXPECT_LT(report->chosen.max_num_tokens, 8192);
  EXPECT_GE(report->chosen.max_num_tokens, 512);
  EXPECT_THAT(plan_text(*report), HasSubstr("max_num_tokens lowered from 8192"));
  hardware = gpus("custom:mem=16,bw=1000");
  hardware.ram_bytes = 512'000'000'000;
  EXPECT_EQ(plan_on(hardware)->chosen.verdict, Verdict::kDoesNotFit);
}

// Skewed use makes the same room on the device worth more.
TEST(Planner, SkewRaisesTheHitRate) {
  EXPECT_DOUBLE_EQ(zipf_share(0.25, 256, 0), 0.25);
  EXPECT_DOUBLE_EQ(zipf_share(1, 256, 1.1), 1);
  EXPECT_DOUBLE_EQ(zipf_share(0, 256, 1.1), 0);
  // Two experts with weights 1 and 1/2: the first is wanted two times of three.
  EXPECT_DOUBLE_EQ(zipf_share(0.5, 2, 1), 2.0 / 3);
  Hardware hardware = gpus("h200x1");
  hardware.ram_bytes = 512'000'000'000;
  hardware.cpu = device_of(Catalogue::builtin().find("cpu-xeon-6980p").value()).value();
  PlanRequest request;
  const double uniform = plan_on(hardware, request)->asked_point()->tokens_per_second;
  request.skew = 1.0;
  EXPECT_GT(plan_on(hardware, request)->asked_point()->tokens_per_second, uniform * 1.2);
}

TEST(Planner, SuggestsOnlyChangesThatFit) {
  const Hardware hardware = gpus("rtx4090");
  const auto changes =
      nearest_changes(deepseek(), find_format("nvfp4-v2").value(), hardware, {}, PlanConstants{});
  EXPECT_THAT(changes, ::testing::Contains("--ram 512"));
  EXPECT_THAT(changes, ::testing::Contains(HasSubstr("--ssd")));
  EXPECT_THAT(changes, ::testing::Contains("32 of GeForce RTX 4090 instead of 1"));
  const Hardware h100 = gpus("h100-sxmx8");
  PlanRequest request;
  request.context = 163840;
  request.batch = 32;
  for (const std::string& change : nearest_changes(deepseek(), find_format("nvfp4-v2").value(),
                                                   h100, request, PlanConstants{})) {
    if (change.starts_with("--context ")) {
      PlanRequest shorter = request;
      shorter.context = std::stoll(change.substr(10));
      EXPECT_TRUE(plan_on(h100, shorter)->exits_with_success());
    }
  }
}

TEST(Planner, RefusesImpossibleCombinations) {
  struct Case {
    std::string_view devices;
    PlanRequest request;
    std::string_view code;
    std::string_view part;
  };
  const auto with = [](auto change) {
    PlanRequest request;
    change(request);
    return request;
  };
  const std::vector<Case> cases = {
      {"h200x3", {}, "bad_parallel", "128 heads"},
      {"h200x8", with([](auto& r) { r.tp = 4; }), "bad_parallel", "uses 4 of 8 devices"},
      {"h200x8", with([](auto& r) {
         r.tp = 8;
         r.ep = 3;
       }),
       "bad_parallel", "divide"},
      {"h200x8", with([](auto& r) { r.pp = 99; }), "bad_parallel", "99 stages"},
      {"h200x6", with([](auto& r) { r.parallel = ParallelMode::kAdp; }), "bad_parallel",
       "256 experts"},
      {"h200x8", with([](auto& r) { r.context = 163841; }), "context_too_long", "163840 positions"},
      {"h200x8", with([](auto& r) { r.context = 0; }), "bad_value", "--context is 0"},
      {"h200x8", with([](auto& r) { r.context = -5; }), "bad_value", "--context is -5"},
      {"h200x8", with([](auto& r) { r.batch = 0; }), "bad_value", "--batch is 0"},
      {"h200x8", with([](auto& r) { r.batch = INT64_MAX; }), "bad_value", "--batch is 9223"},
      {"h200x8", with([](auto& r) { r.kv_fraction = 1.2; }), "bad_value", "between 0 and 1"},
      {"h200x8", with([](auto& r) { r.kv_fraction = 0; }), "bad_value", "between 0 and 1"},
      {"h200x8", with([](auto& r) { r.isl = 100; }), "conflict", "--isl and --osl"},
      {"h200x8", with([](auto& r) {
         r.isl = 30000;
         r.osl = 3000;
       }),
       "conflict", "more than --context"},
      {"h200x8", with([](auto& r) { r.draft_tokens = 6; }), "bad_value", "--mtp is 6"},
      {"h200x8", with([](auto& r) {
         r.draft_tokens = 1;
         r.accept_length = 2.5;
       }),
       "bad_value", "1 to 2"},
      {"h200x8", with([](auto& r) { r.max_num_tokens = 0; }), "bad_value", "--max-num-tokens is 0"},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.part);
    const Hardware hardware = gpus(c.devices);
    const auto report = plan_on(hardware, c.request);
    ASSERT_FALSE(report);
    EXPECT_EQ(report.error().code, c.code);
    EXPECT_THAT(report.error().message, HasSubstr(std::string(c.part)));
  }
  const Hardware h200 = gpus("h200x8");
  PlanRequest drafts;
  drafts.draft_tokens = 1;
  EXPECT_EQ(plan_on(h200, drafts, "q8_0").error().code, "impossible");
}

TEST(Planner, MixedDevicesAreAsTheWeakest) {
  const Catalogue& catalogue = Catalogue::builtin();
  const Hardware mixed = hardware_of({parse_device_count("h200x4", catalogue).value(),
                                      parse_device_count("h100-sxmx4", catalogue).value()})
                             .value();
  const Hardware weak = gpus("h100-sxmx8");
  EXPECT_EQ(plan_on(mixed)->chosen.memory.tokens, plan_on(weak)->chosen.memory.tokens);
  PlanRequest request;
  request.parallel = ParallelMode::kAdp;
  EXPECT_EQ(plan_on(mixed, request).error().code, "impossible");
}

TEST(Planner, UsesAPowerOfTwoOfARack) {
  const Hardware rack = gpus("gb200-nvl72");
  const auto report = plan_on(rack);
  EXPECT_EQ(report->chosen.split.gpus, 64);
  EXPECT_THAT(plan_text(*report), HasSubstr("64 of 72 devices are used"));
}

TEST(Planner, SplitsLayersOverAnyCount) {
  const Hardware five = gpus("h200x5");
  PlanRequest request;
  request.parallel = ParallelMode::kLayer;
  const auto report = plan_on(five, request);
  ASSERT_TRUE(report) << report.error().message;
  EXPECT_EQ(report->chosen.split.pp, 5);
  EXPECT_EQ(report->chosen.verdict, Verdict::kFits);
  EXPECT_EQ(report->launch, "");
  // One device at work at a time: slower than four of them together.
  const Hardware four = gpus("h200x4");
  EXPECT_LT(report->asked_point()->tokens_per_second,
            plan_on(four)->asked_point()->tokens_per_second);
}

TEST(Planner, TranslatesTheSharesOfThreeEngines) {
  const Hardware hardware = gpus("b200x8");
  const auto report = plan_on(hardware);
  const RankMemory& m = report->chosen.memory;
  EXPECT_DOUBLE_EQ(
      report->gpu_memory_utilization(),
      static_cast<double>(m.device_bytes - m.reserve()) / static_cast<double>(m.device_bytes));
  EXPECT_LT(report->mem_fraction_static(), report->gpu_memory_utilization());
}

// 8 devices of 2 an hour at R tokens a second: 16 / 3600 / R * 1e6 for a million.
TEST(Planner, PricesAndTimesFollowFromRates) {
  Hardware hardware = gpus("h200x8");
  hardware.ssd_rate = 5e9;
  PlanRequest request;
  request.device_hour = 2;
  request.net_rate = 125e6;
  const auto report = plan_on(hardware, request);
  const double rate = report->asked_point()->tokens_per_second;
  EXPECT_DOUBLE_EQ(*report->price_per_mtok, 16.0 / 3600 * 1e6 / rate);
  EXPECT_DOUBLE_EQ(*report->load_s, 413306995616.0 / 5e9);
  EXPECT_DOUBLE_EQ(*report->download_s, 413306995616.0 / 125e6);
  EXPECT_DOUBLE_EQ(*report->watts, 8 * 700 * 0.7);
  EXPECT_DOUBLE_EQ(*report->joules_per_token, 8 * 700 * 0.7 / rate);
}

TEST(Planner, JsonHasEveryFieldAndRoundTrips) {
  Hardware hardware = gpus("b200x8");
  const auto report = plan_on(hardware);
  const std::string text = to_json(plan_json(*report));
  const auto parsed = parse_json(text, "plan");
  ASSERT_TRUE(parsed);
  EXPECT_EQ(to_json(*parsed), text);
  for (const std::string_view name : {"schema", "model", "request", "hardware", "format", "plan",
                                      "speed", "alternatives", "launch", "notes", "error"}) {
    EXPECT_NE(parsed->find(name), nullptr) << name;
  }
  const JsonValue& plan = *parsed->find("plan");
  for (const std::string_view name : {"verdict", "mode", "tp", "ep", "dp", "pp", "per_device", "kv",
                                      "limits", "offload", "fractions"}) {
    EXPECT_NE(plan.find(name), nullptr) << name;
  }
  EXPECT_EQ(*parsed->find("format")->find("file_bytes")->as_integer(), 413306995616);
  EXPECT_EQ(*parsed->find("model")->find("parameters")->as_integer(), 671026419200);
  // Unknown is null, never 0.
  EXPECT_TRUE(parsed->find("speed")->find("load_s")->is_null());
  EXPECT_TRUE(parsed->find("error")->is_null());
}

TEST(DeviceSets, CoverTheCatalogueSortedAndFiltered) {
  const auto format = find_format("nvfp4-v2").value();
  auto sets = smallest_sets(deepseek(), format, Catalogue::builtin(), {}, {}, PlanConstants{},
                            {{"h200-sxm", 3.5}, {"b200-sxm", 6}});
  ASSERT_EQ(sets.size(), 98u);
  for (const DeviceSet& set : sets) {
    if (set.spec.id == "h200-sxm") {
      EXPECT_EQ(set.gpus, 4);
    }
    if (set.spec.id == "h100-sxm") {
      EXPECT_EQ(set.gpus, 8);
    }
    if (set.spec.id == "dgx-spark") {
      EXPECT_FALSE(set.holds());
    }  // two can be linked, four can't
    if (!set.holds() || set.entries == 1 || set.spec.id == "gb200-nvl72") continue;
    // Half as many do not hold it.
    const Hardware half = hardware_of({{set.spec, set.entries / 2}}).value();
    const auto report = make_plan(deepseek(), format, half, {}, PlanConstants{});
    EXPECT_TRUE(!report || !report->exits_with_success()) << set.spec.id;
  }
  ASSERT_TRUE(sort_sets(sets, "cheapest"));
  EXPECT_EQ(sets[0].spec.id, "h200-sxm");  // 4 * 3.5 = 14 an hour
  EXPECT_EQ(sets[1].spec.id, "b200-sxm");  // 4 * 6 = 24
  ASSERT_TRUE(filter_sets(sets, "vendor=amd"));
  EXPECT_EQ(sets.size(), 18u);  // 14 GPUs and 4 CPUs
  ASSERT_TRUE(filter_sets(sets, "verdict=holds"));
  for (const DeviceSet& set : sets) EXPECT_TRUE(set.holds());
  ASSERT_TRUE(sort_sets(sets, "gpus"));
  for (size_t i = 1; i < sets.size(); ++i) EXPECT_LE(sets[i - 1].gpus, sets[i].gpus);
  EXPECT_EQ(filter_sets(sets, "colour=red").error().code, "bad_value");
  EXPECT_EQ(filter_sets(sets, "verdict=maybe").error().code, "bad_value");
  EXPECT_THAT(sort_sets(sets, "gpu").error().message, HasSubstr("did you mean 'gpus'"));
}

TEST(DeviceSets, CountNodes) {
  const auto format = find_format("fp8").value();
  const auto set = smallest_set(deepseek(), format, Catalogue::builtin().find("h100-sxm").value(),
                                {}, {}, PlanConstants{}, {});
  EXPECT_EQ(set.gpus, 16);
  EXPECT_EQ(set.nodes, 2);
  EXPECT_THAT(set.report->assumptions, ::testing::Contains(HasSubstr("between nodes")));
}

TEST(PlanTables, AreAlignedMarkdownOrCsv) {
  const std::vector<std::vector<std::string>> rows = {{"name", "n"}, {"a, b", "10"}, {"c\"d", "9"}};
  EXPECT_EQ(table_text(rows, TableStyle::kText), "name   n\na, b  10\nc\"d    9\n");
  EXPECT_EQ(table_text(rows, TableStyle::kMarkdown),
            "| name | n |\n|---|--:|\n| a, b | 10 |\n| c\"d | 9 |\n");
  EXPECT_EQ(table_text(rows, TableStyle::kCsv), "name,n\n\"a, b\",10\n\"c\"\"d\",9\n");
}

TEST(PlanPage, IsOneFileWithoutOutsideReferences) {
  PlanModel model = deepseek();
  model.name = "</script><b>";
  const auto format = find_format("nvfp4-v2").value();
  const auto sets =
      smallest_sets(deepseek(), format, Catalogue::builtin(), {}, {}, PlanConstants{}, {});
  const std::string page = page_html(model, {}, "NVFP4 v2", sets);
  EXPECT_THAT(page, Not(HasSubstr("http://")));
  EXPECT_THAT(page, Not(HasSubstr("https://")));
  EXPECT_THAT(page, Not(HasSubstr("</script><b>")));
  EXPECT_THAT(page, Not(HasSubstr("@DATA@")));
  const size_t begin = page.find("id=\"data\">") + 10;
  const auto data = parse_json(page.substr(begin, page.find("</script>", begin) - begin), "data");
  ASSERT_TRUE(data) << data.error().message;
  EXPECT_EQ(data->find("devices")->as_array()->size(), 98u);
  EXPECT_EQ(*data->find("model")->as_string(), "</script><b>");
}

}  // namespace
}  // namespace nibble
