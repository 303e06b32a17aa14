#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>

#include "tests/kernels/backends.h"
#include "tests/kernels/kernel_test_helpers.h"

namespace nibble {
namespace {

TEST(Embed, CopiesTheRowsOfTheTokens) {
  // BF16: 0x3f80 = 1, 0xc000 = -2, 0x4040 = 3, 0x0001 = 2^-133.
  std::vector<uint16_t> half = {0x3f80, 0xc000, 0x4040, 0x0001, 0x0000, 0x8000};
  std::vector<float> full = {1, -2, 3, 4, 5, 6};
  const std::vector<int32_t> ids = {2, 0, 2};
  for (const auto& [name, kernels] : all_backends()) {
    SCOPED_TRACE(name);
    TestMatrix out(3, 2);
    kernels->embed({half.data(), DType::kBf16, 3, 2, 2}, ids, out.view());
    EXPECT_THAT(out.values(), testing::ElementsAre(0, 0, 1, -2, 0, 0));
    kernels->embed({full.data(), DType::kF32, 3, 2, 2}, ids, out.view());
    EXPECT_THAT(out.values(), testing::ElementsAre(5, 6, 1, -2, 5, 6));
    EXPECT_TRUE(out.padding_intact());
  }
}

TEST(Embed, APartGivesZerosForTheTokensOfOthers) {
  const std::vector<float> part = {1, -2, 3, 4};  // tokens 5 and 6
  const std::vector<int32_t> ids = {6, 0, 5, 7};
  for (const auto& [name, kernels] : all_backends()) {
    SCOPED_TRACE(name);
    TestMatrix out(4, 2);
    const std::vector<float> copy = part;
    kernels->embed_part({const_cast<float*>(copy.data()), DType::kF32, 2, 2, 2}, 5, ids,
                        out.view());
    EXPECT_THAT(out.values(), testing::ElementsAre(3, 4, 0, 0, 1, -2, 0, 0));
    EXPECT_TRUE(out.padding_intact());
  }
}

TEST(Embed, WorksAtEveryWidth) {
  for (const auto& [name, kernels] : all_backends()) {
    for (const int64_t cols : {1, 15, 16, 100}) {
      SCOPED_TRACE(testing::Message() << name << " " << cols);
      std::vector<uint16_t> table;
      for (int64_t i = 0; i < 7 * cols; ++i) table.push_back(static_cast<uint16_t>(0x4000 + i));
      std::vector<int32_t> ids;
      for (int i = 0; i < 40; ++i) ids.push_back(i * 3 % 7);
      TestMatrix out(40, cols);
      kernels->embed({table.data(), DType::kBf16, 7, cols, cols}, ids, out.view());
      for (int64_t t = 0; t < 40; ++t) {
        for (int64_t c = 0; c < cols; ++c) {
          const uint32_t bits = static_cast<uint32_t>(0x4000 + (t * 3 % 7) * cols + c) << 16;
          float want = 0;
          std::memcpy(&want, &bits, 4);
          ASSERT_EQ(out.at(t, c), want);
        }
      }
      EXPECT_TRUE(out.padding_intact());
    }
  }
}

}  // namespace
}  // namespace nibble
