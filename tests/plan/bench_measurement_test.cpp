// nibble plan with what nibble bench measured, and plans beside the memory that the engine takes.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>

#include "nibble/engine/engine.h"
#include "nibble/engine/kv_cache.h"
#include "nibble/plan/calibration.h"
#include "nibble/plan/device_memory.h"
#include "nibble/plan/model_source.h"
#include "tests/base/temporary_folder.h"
#include "tests/cli/run_program.h"
#include "tests/plan/golden.h"

namespace nibble {
namespace {

using testing::at;
using ::testing::HasSubstr;
using testing::num;
using testing::run_nibble;
using testing::TemporaryFolder;

PlanResult<MeasuredSpeed> bench(const std::string& text) {
  return parse_bench(parse_json(text, "b.json").value(), "b.json");
}

const std::string kHead =
    R"({"model": "/m/demo/", "backend": "cpu", "input_len": 64, "output_len": 32, "num_drafts": 1, )";

TEST(PlanBench, InterpolatesTheTimeOfAStep) {
  // Steps of 10 ms at batch 1 and of 40 ms at batch 4, one and a half tokens each.
  const auto measured = bench(kHead + R"("rows": [
      {"batch_size": 4, "output_tokens_per_second": 150, "acceptance_length": 1.5},
      {"batch_size": 1, "output_tokens_per_second": 150, "acceptance_length": 1.5}]})");
  ASSERT_TRUE(measured) << measured.error().message;
  EXPECT_EQ(measured->model, "demo");
  EXPECT_DOUBLE_EQ(measured->tokens_per_second(1).value(), 150);
  EXPECT_DOUBLE_EQ(measured->tokens_per_second(4).value(), 150);
  // Two sequences: a step of 20 ms that gives three tokens.
  EXPECT_NEAR(measured->tokens_per_second(2).value(), 150, 1e-9);
  EXPECT_FALSE(measured->tokens_per_second(5));
  EXPECT_FALSE(measured->tokens_per_second(0.5));
}

TEST(PlanBench, ReadsTheConcurrencyOfAServer) {
  const auto measured =
      bench(kHead + R"("rows": [{"concurrency": 8, "output_tokens_per_second": 9}]})");
  ASSERT_TRUE(measured) << measured.error().message;
  EXPECT_DOUBLE_EQ(measured->rows[0].batch, 8);
  EXPECT_DOUBLE_EQ(measured->rows[0].accept_length, 1);
}

TEST(PlanBench, NamesTheFieldThatIsWrong) {
  const auto message = [](const std::string& rest) {
    const auto measured = bench(kHead + rest + "}");
    return measured ? std::string("fine") : measured.error().message;
  };
  EXPECT_THAT(message(R"("rows": [])"), HasSubstr("b.json: rows is []"));
  EXPECT_THAT(message(R"("rows": 3)"), HasSubstr("expected an array"));
  EXPECT_THAT(message(R"("rows": [{"batch_size": 1}])"),
              HasSubstr("rows[0]: output_tokens_per_second is missing"));
  EXPECT_THAT(message(R"("rows": [{"batch_size": 0, "output_tokens_per_second": 1}])"),
              HasSubstr("rows[0]: batch_size is 0"));
  EXPECT_THAT(message(R"("rows": [{"batch_size": 1, "output_tokens_per_second": 1,
                          "acceptance_length": 3}])"),
              HasSubstr("acceptance_length is 3, expected a number from 1 to 2"));
  EXPECT_THAT(message(R"("rows": [{"batch_size": 2, "output_tokens_per_second": 1},
                          {"batch_size": 2, "output_tokens_per_second": 1}])"),
              HasSubstr("batch 2 was measured twice"));
  EXPECT_FALSE(bench(R"({"rows": [{"batch_size": 1, "output_tokens_per_second": 1}]})"));
}

// The whole way: the program measures itself, and the plan repeats it.
TEST(PlanBench, PlansWithWhatTheBenchPrinted) {
  const auto measured =
      run_nibble({"bench", "offline", "demo", "--num-requests", "4", "--input-len", "16",
                  "--output-len", "8", "--batch-sizes", "1,4", "--json"});
  ASSERT_EQ(measured.exit_code, 0) << measured.err;
  const TemporaryFolder folder;
  const std::string file = (folder / "bench.json").string();
  std::ofstream(file) << measured.out;
  const auto rows = *at(parse_json(measured.out, "bench").value(), "rows").as_array();

  const auto plan = run_nibble({"plan", "demo", "--calibrate", file, "--batch", "4", "--json"});
  ASSERT_EQ(plan.exit_code, 0) << plan.out << plan.err;
  const auto json = parse_json(plan.out, "plan").value();
  const auto& points = *at(at(json, "speed"), "points").as_array();
  ASSERT_EQ(points.size(), 2u);
  for (size_t i = 0; i < 2; ++i) {
    const double rate = num(rows[i], "output_tokens_per_second");
    EXPECT_NEAR(num(points[i], "tok_s"), rate, 1e-5 * rate);  // six digits are printed
    EXPECT_EQ(*at(points[i], "measured").as_boolean(), true);
  }
  EXPECT_THAT(run_nibble({"plan", "demo", "--calibrate", file}).out,
              HasSubstr("(measured by nibble bench)"));
  EXPECT_THAT(run_nibble({"plan", "demo", "--calibrate", file, "--batch", "9"}).out,
              HasSubstr("1 to 4 were measured"));
  // Of another model, with other drafts, or for other questions it says nothing.
  for (const std::vector<std::string>& other : {std::vector<std::string>{"deepseek-r1"},
                                                {"demo", "--mtp", "1"},
                                                {"demo", "--quant", "fp8"},
                                                {"demo", "--all-gpus"},
                                                {"demo", "--accuracy"}}) {
    std::vector<std::string> arguments = {"plan", "--calibrate", file};
    arguments.insert(arguments.end(), other.begin(), other.end());
    const auto run = run_nibble(arguments);
    EXPECT_EQ(run.exit_code, 2) << other.back() << run.out;
    EXPECT_THAT(run.err, HasSubstr(file));
  }
}

// planner.md section 15, item 7, on the host: what the engine took beside what was planned.
TEST(PlanMemory, IsWhatTheEngineTakes) {
  const std::string folder = NIBBLE_SOURCE_DIR "/models/demo";
  const auto plan = load_plan_model(folder).value();
  for (const bool mtp : {false, true}) {
    SCOPED_TRACE(mtp);
    ModelOptions options;
    options.load_mtp = mtp;
    options.threads = 1;
    options.backend = "reference";
    const auto model = LoadedModel::load(folder, options).value();
    const auto planned = static_cast<double>(plan.stored->resident_bytes(mtp));
    const auto taken = static_cast<double>(model->weights.device_bytes);
    // Norms are stored in BF16 and held in F32, the rotary table is computed, and buffers start at
    // multiples of 256 bytes; on this small model that is some per cent, on R1 far less.
    EXPECT_LE(std::abs(taken / planned - 1), 0.05) << taken << " taken, " << planned << " planned";

    for (const KvFormat format : {KvFormat::kBf16, KvFormat::kFp8}) {
      KvCacheOptions cache;
      cache.dtype = format == KvFormat::kBf16 ? DType::kBf16 : DType::kF8E4m3;
      cache.num_blocks = 16;
      cache.with_mtp = mtp;
      const auto device = make_host_device();
      const auto kv = KvCache::create(model->config, cache, *device).value();
      EXPECT_EQ(static_cast<int64_t>(kv.bytes()), kv_bytes_per_token(model->config, format, mtp) *
                                                      cache.num_blocks * cache.block_size);
    }
  }
}

}  // namespace
}  // namespace nibble
