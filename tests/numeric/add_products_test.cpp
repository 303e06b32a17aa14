#include "nibble/numeric/add_products.h"

#include <gtest/gtest.h>

#include <random>
#include <vector>

namespace nibble {
namespace {

// Every product and sum in order, one by one; strides are larger than what lies between them.
TEST(AddProducts, AddsInOrderAtEveryLevelForAnyShape) {
  struct Case {
    int64_t depth, m, n;
  };
  constexpr int64_t kStride = 80;
  std::mt19937 rng(3);
  std::normal_distribution<float> normal;
  for (const Case& c : {Case{1, 1, 1}, Case{16, 8, 32}, Case{5, 9, 33}, Case{33, 7, 15},
                        Case{2, 17, 16}, Case{40, 64, 70}, Case{0, 3, 3}}) {
    const auto random = [&](int64_t rows) {
      std::vector<float> values(static_cast<size_t>(rows * kStride));
      for (float& v : values) v = std::ldexp(normal(rng), static_cast<int>(rng() % 20));
      return values;
    };
    const auto a = random(c.depth);
    const auto b = random(c.depth);
    const auto y = random(c.m);
    auto want = y;
    for (int64_t i = 0; i < c.m; ++i) {
      for (int64_t k = 0; k < c.n; ++k) {
        float& sum = want[static_cast<size_t>(i * kStride + k)];
        for (int64_t t = 0; t < c.depth; ++t) {
          sum += a[static_cast<size_t>(t * kStride + i)] * b[static_cast<size_t>(t * kStride + k)];
        }
      }
    }
    for (int level = 0; level <= static_cast<int>(detected_isa()); ++level) {
      auto got = y;
      add_products({a.data(), kStride, b.data(), kStride, c.depth, c.m, c.n, got.data(), kStride},
                   static_cast<Isa>(level));
      EXPECT_EQ(got, want) << c.depth << " " << c.m << " " << c.n << " level " << level;
    }
  }
}

}  // namespace
}  // namespace nibble
