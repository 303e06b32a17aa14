#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/kernels/backends.h"
#include "tests/kernels/kernel_test_helpers.h"

namespace nibble {
namespace {

TEST(Add, AddsTheSecondMatrixToTheFirst) {
  for (const auto& [name, kernels] : all_backends()) {
    SCOPED_TRACE(name);
    TestMatrix x(20, 3);
    TestMatrix y(20, 3);
    for (int64_t t = 0; t < 20; ++t) {
      for (int64_t c = 0; c < 3; ++c) {
        x.at(t, c) = static_cast<float>(t);
        y.at(t, c) = 0.5f * static_cast<float>(c);
      }
    }
    const std::vector<float> y_before = y.values();
    kernels->add(x.view(), y.view());
    for (int64_t t = 0; t < 20; ++t) {
      const auto base = static_cast<float>(t);
      EXPECT_THAT(x.row(t), testing::ElementsAre(base, base + 0.5f, base + 1));
    }
    EXPECT_TRUE(x.padding_intact());
    EXPECT_EQ(y.values(), y_before);
  }
}

}  // namespace
}  // namespace nibble
