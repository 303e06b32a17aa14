// What a backend makes of a checkpoint's weights.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

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

TEST(Pack, MayRunOnSeveralThreadsAtOnce) {
  for (const auto& [name, kernels] : available_backends()) {
    SCOPED_TRACE(name);
    const TestWeight weight = TestWeight::random(LinearFormat::kNvfp4, 200, 256, 29);
    std::vector<PackedWeight> packed(3);
    std::vector<std::thread> threads;
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
