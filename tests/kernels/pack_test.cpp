// What a backend makes of a checkpoint's weights.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <thread>

#include "tests/kernels/backends.h"
#include "tests/kernels/kernel_test_helpers.h"

namespace nibble {
namespace {

TEST(Pack, RefusesBlockScalesThatNoCheckpointMayHold) {
  for (const uint8_t bad : std::initializer_list<uint8_t>{0x7f, 0x80, 0xb8, 0xff}) {
    for (const auto& [name, kernels] : available_backends()) {
      SCOPED_TRACE(name);
      TestWeight weight = TestWeight::random(LinearFormat::kNvfp4, 3, 48, 27);
      weight.scales[5] = bad;
      weight.bind();
      std::vector<std::byte> memory(kernels->packed_bytes(LinearFormat::kNvfp4, 3, 48) + 64);
      const auto packed = kernels->pack(weight.host, kAsIs, memory.data());
      ASSERT_FALSE(packed.has_value());
      EXPECT_EQ(packed.error().code, ErrorCode::kCorrupt);
      EXPECT_THAT(packed.error().message, testing::HasSubstr("[1, 2]"));
    }
  }
}

TEST(Pack, RefusesFp8WeightsThatAreNan) {
  for (const uint8_t bad : std::initializer_list<uint8_t>{0x7f, 0xff}) {
    for (const auto& [name, kernels] : available_backends()) {
      SCOPED_TRACE(name);
      TestWeight weight = TestWeight::random(LinearFormat::kFp8Block, 20, 40, 27);
      weight.data[3 * 40 + 7] = bad;
      weight.bind();
      std::vector<std::byte> memory(kernels->packed_bytes(LinearFormat::kFp8Block, 20, 40) + 64);
      const auto packed = kernels->pack(weight.host, kAsIs, memory.data());
      ASSERT_FALSE(packed.has_value());
      EXPECT_EQ(packed.error().code, ErrorCode::kCorrupt);
      EXPECT_THAT(packed.error().message, testing::HasSubstr("[3, 7]"));
    }
  }
}

TEST(Pack, WritesOnlyTheBytesItAskedFor) {
  for (const auto& [name, kernels] : all_backends()) {
    for (const LinearFormat format : kAllFormats) {
      SCOPED_TRACE(testing::Message() << name << " " << format_name(format));
      const TestWeight weight = TestWeight::random(format, 130, 144, 28);
      const size_t bytes = kernels->packed_bytes(format, 130, 144);
      Buffer buffer = kernels->device().allocate(bytes + 256).value();
      std::memset(buffer.data(), 0xa5, buffer.size());
      ASSERT_TRUE(kernels->pack(weight.host, kAsIs, buffer.data()).has_value());
      for (size_t i = bytes; i < buffer.size(); ++i) ASSERT_EQ(buffer.as<uint8_t>()[i], 0xa5) << i;
    }
  }
}

TEST(Pack, TakesAboutTheCheckpointsOwnSize) {
  for (const auto& [name, kernels] : available_backends()) {
    EXPECT_EQ(kernels->packed_bytes(LinearFormat::kNvfp4, 2048, 7168), 2048u * 7168 * 9 / 16);
    EXPECT_EQ(kernels->packed_bytes(LinearFormat::kBf16, 2048, 7168), 2048u * 7168 * 2);
    // FP8's scales are kept once for each panel of 16 rows: 56 * 128 floats, at most 16 bytes
    // apart.
    EXPECT_LE(kernels->packed_bytes(LinearFormat::kFp8Block, 2048, 7168),
              2048u * 7168 + 56 * 128 * (name.starts_with("cpu") ? 4 : 16));
  }
}

// What a scale of the layout stands for: unsigned E5M3 with bias 15, never subnormal.
double e5m3_value(uint8_t code) { return std::ldexp(8 + (code & 7), (code >> 3) - 15 - 3); }
double e4m3_value(uint8_t code) {
  return code < 8 ? std::ldexp(code, -9) : std::ldexp(8 + (code & 7), (code >> 3) - 7 - 3);
}

// docs/performance-cpu.md: a panel is 16 rows; of four blocks of 16 columns come 512 bytes of
// codes, for each block first those of its columns 0-7, four bytes a row, then of 8-15; then 64
// scales. 33 rows: two whole panels and one that is mostly padding. 7 blocks: a whole group and a
// part of one. Some scales are 0, so that whole groups take both ways.
TEST(Pack, LaysOutNvfp4AsTheDocumentSays) {
  const int64_t rows = 33;
  const int64_t blocks = 7;
  TestWeight weight = TestWeight::random(LinearFormat::kNvfp4, rows, blocks * 16, 30);
  for (uint8_t& scale : weight.scales) scale = std::max<uint8_t>(scale, 1);
  weight.scales[20 * blocks + 2] = 0;
  weight.bind();
  for (const auto& [name, kernels] : available_backends()) {
    SCOPED_TRACE(name);
    if (name == "cuda") GTEST_SKIP() << "cuda has a layout of its own";
    const PackedWeight packed = pack_weight(*kernels, weight);
    const auto* const bytes = static_cast<const uint8_t*>(packed.weight.data);
    for (int64_t r = 0; r < 48; ++r) {
      for (int64_t b = 0; b < blocks; ++b) {
        const int64_t first = b / 4 * 4;
        const int64_t in_group = std::min<int64_t>(4, blocks - first);
        const uint8_t* const group = bytes + (r / 16 * blocks + first) * 144;
        const uint8_t scale =
            r < rows ? weight.scales[static_cast<size_t>(r * blocks + b)] : uint8_t{0};
        const uint8_t stored = group[in_group * 128 + (b - first) * 16 + r % 16];
        EXPECT_EQ(e5m3_value(stored), scale == 0 ? 1.0 : e4m3_value(scale)) << r << ", " << b;
        for (int64_t i = 0; i < 8; ++i) {
          const uint8_t code = group[(b - first) * 128 + i / 4 * 64 + r % 16 * 4 + i % 4];
          const uint8_t want =
              scale == 0 ? uint8_t{0} : weight.data[static_cast<size_t>((r * blocks + b) * 8 + i)];
          ASSERT_EQ(code, want) << r << ", " << b << ", " << i;
        }
      }
    }
  }
}

TEST(Pack, MayRunOnSeveralThreadsAtOnce) {
  for (const auto& [name, kernels] : available_backends()) {
    SCOPED_TRACE(name);
    const TestWeight weight = TestWeight::random(LinearFormat::kNvfp4, 200, 256, 29);
    std::vector<PackedWeight> packed(3);
    std::vector<std::thread> threads;
    threads.reserve(packed.size());
    for (PackedWeight& one : packed) {
      threads.emplace_back([&one, &weight, k = kernels.get()] { one = pack_weight(*k, weight); });
    }
    for (std::thread& thread : threads) thread.join();
    for (const PackedWeight& one : packed) {
      EXPECT_EQ(0, std::memcmp(one.weight.data, packed[0].weight.data, 200 * 256 * 9 / 16));
    }
  }
}

}  // namespace
}  // namespace nibble
