#include "nibble/offload/tuner.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/offload/offload_fixture.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;

TEST(Tuning, WhatIsKeptIsReadBack) {
  const auto tuning =
      parse_tuning("# measured\nio pread\nio_depth 8\nexpert_memory 123456\n").value();
  EXPECT_EQ(tuning.io, IoBackend::kPread);
  EXPECT_EQ(tuning.io_depth, 8);
  EXPECT_EQ(tuning.expert_memory, 123456u);
  EXPECT_FALSE(tuning.preset.has_value());
  EXPECT_EQ(parse_tuning("preset low-latency\n")->preset, ExpertPreset::kLowLatency);
  OffloadTuning named;
  named.preset = ExpertPreset::kHighThroughput;
  EXPECT_EQ(tuning_text(named), "preset high-throughput\n");
  EXPECT_EQ(tuning_text(tuning), "io pread\nio_depth 8\nexpert_memory 123456\n");
  EXPECT_FALSE(parse_tuning("")->io.has_value());
  EXPECT_FALSE(load_tuning(testing::offload_folder() / "nowhere")->io_depth.has_value());
}

TEST(Tuning, AWrongLineIsNamed) {
  for (const char* line : {"io mmap", "io_depth 0", "io_depth 257", "io_depth 8x",
                           "expert_memory 0", "expert_memory -1", "speed 3", "io", "preset fast"}) {
    const auto wrong = parse_tuning(std::string("io auto\n") + line + "\n");
    ASSERT_FALSE(wrong) << line;
    EXPECT_THAT(wrong.error().message, HasSubstr("line 2")) << line;
  }
}

// By hand: 100 bytes a token, 50 bytes/s from disk, 1000 bytes/s in memory.
TEST(Tuning, TheBoundIsTheSlowerOfReadsAndExperts) {
  TuneReport report;
  report.token_bytes = 100;
  report.expert_rate = 1000;
  report.choice.io = IoBackend::kUring;
  report.choice.io_depth = 16;
  ReaderOptions options;
  options.backend = IoBackend::kUring;
  options.depth = 16;
  report.reads.push_back({options, "", 50});
  EXPECT_DOUBLE_EQ(report.bound(0), 0.5);
  EXPECT_DOUBLE_EQ(report.bound(0.5), 1);
  EXPECT_DOUBLE_EQ(report.bound(1), 10);
}

TEST(Tuning, RatesAreMeasured) {
  ReaderOptions options;
  options.backend = IoBackend::kPread;
  EXPECT_GT(measure_reads(testing::packed_demo(), options, 0.05).value(), 1e6);
  auto& parts = testing::demo_parts();
  EXPECT_GT(measure_experts(testing::packed_demo(), parts.config, *parts.kernels, 0.05).value(),
            1e6);
  const auto cut = testing::copy_of_packed_demo("tune.nibble");
  std::filesystem::resize_file(cut, 100000);
  EXPECT_FALSE(measure_reads(cut, options, 0.05));
}

}  // namespace
}  // namespace nibble
