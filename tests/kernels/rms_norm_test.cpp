#include <gtest/gtest.h>

#include <cmath>

#include "nibble/kernels/reference/reference_kernels.h"
#include "tests/kernels/backends.h"
#include "tests/kernels/kernel_test_helpers.h"

namespace nibble {
namespace {

// By hand: the mean of 1, 49 is 25, its root 5; with epsilon 11 it is 36 and 6.
TEST(RmsNorm, DividesByTheRootOfTheMeanSquare) {
  for (const auto& [name, kernels] : all_backends()) {
    SCOPED_TRACE(name);
    TestMatrix x = TestMatrix::of({{1, -7}, {0, 0}});
    TestMatrix out(2, 2);
    const float weight[] = {10, 5};
    kernels->rms_norm(x.view(), weight, 0.0f, out.view());
    EXPECT_FLOAT_EQ(out.at(0, 0), 2);
    EXPECT_FLOAT_EQ(out.at(0, 1), -7);
    kernels->rms_norm(x.view(), weight, 11.0f, out.view());
    EXPECT_FLOAT_EQ(out.at(0, 0), 10.0f / 6);
    EXPECT_FLOAT_EQ(out.at(0, 1), -35.0f / 6);
    EXPECT_EQ(out.at(1, 0), 0);  // epsilon keeps a zero row finite
    EXPECT_TRUE(out.padding_intact());
  }
}

TEST(RmsNorm, EveryBackendIsWithinFourUnitsOfTheReferenceAlsoInPlace) {
  ReferenceKernels reference;
  for (const int64_t cols : {1, 15, 16, 33, 7168}) {
    TestMatrix x = TestMatrix::random(11, cols, 31, 3);
    TestMatrix weight = TestMatrix::random(1, cols, 32);
    TestMatrix want(11, cols);
    reference.rms_norm(x.view(), &weight.at(0, 0), 1e-6f, want.view());
    for (const auto& [name, kernels] : available_backends()) {
      SCOPED_TRACE(testing::Message() << name << " " << cols);
      TestMatrix out(11, cols);
      kernels->rms_norm(x.view(), &weight.at(0, 0), 1e-6f, out.view());
      TestMatrix in_place = x;
      kernels->rms_norm(in_place.view(), &weight.at(0, 0), 1e-6f, in_place.view());
      for (int64_t t = 0; t < 11; ++t) {
        for (int64_t c = 0; c < cols; ++c) ASSERT_FLOAT_EQ(out.at(t, c), want.at(t, c));
      }
      EXPECT_TRUE(same_bits(out.values(), in_place.values()));
      EXPECT_TRUE(out.padding_intact());
    }
  }
}

// A sum in binary32 would lose the ones beside 1e8.
TEST(RmsNorm, TheMeanIsTakenInBinary64) {
  std::vector<float> row(4097, 1);
  row[0] = 8192;  // its square is 2^26
  std::vector<float> weight(4097, 1);
  const double mean = (8192.0 * 8192 + 4096) / 4097;
  for (const auto& [name, kernels] : all_backends()) {
    SCOPED_TRACE(name);
    TestMatrix x = TestMatrix::of({row});
    TestMatrix out(1, 4097);
    kernels->rms_norm(x.view(), weight.data(), 0, out.view());
    EXPECT_FLOAT_EQ(out.at(0, 0), static_cast<float>(8192 / std::sqrt(mean)));
    EXPECT_FLOAT_EQ(out.at(0, 4096), static_cast<float>(1 / std::sqrt(mean)));
  }
}

}  // namespace
}  // namespace nibble
