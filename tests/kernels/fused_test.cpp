// Operations that stand for several: the same as those one after another.
#include <gtest/gtest.h>

#include "tests/kernels/backends.h"
#include "tests/kernels/mla_helpers.h"

namespace nibble {
namespace {

TEST(Fused, AddRmsNormIsAddThenRmsNorm) {
  for (const auto& [name, kernels] : all_backends()) {
    // Rows that a thread's registers hold, and longer ones.
    for (const int64_t cols : {1, 33, 2048, 2049, 7168, 8193}) {
      SCOPED_TRACE(testing::Message() << name << " " << cols);
      TestMatrix x = TestMatrix::random(5, cols, 61, 3);
      TestMatrix y = TestMatrix::random(5, cols, 62, 2);
      TestMatrix weight = TestMatrix::random(1, cols, 63);
      TestMatrix want_x = x;
      TestMatrix want(5, cols);
      kernels->add(want_x.view(), y.view());
      kernels->rms_norm(want_x.view(), &weight.at(0, 0), 1e-6f, want.view());
      TestMatrix got(5, cols);
      kernels->add_rms_norm(x.view(), y.view(), &weight.at(0, 0), 1e-6f, got.view());
      EXPECT_TRUE(same_bits(x.values(), want_x.values()));
      EXPECT_TRUE(same_bits(got.values(), want.values()));
      EXPECT_TRUE(x.padding_intact());
      EXPECT_TRUE(got.padding_intact());
    }
  }
}

// Sums may be taken in another order: the bound is linear's own.
TEST(Fused, LinearTwoIsTwoProducts) {
  struct Case {
    int64_t first, second, cols;
  };
  for (const auto& [name, kernels] : all_backends()) {
    for (const LinearFormat format :
         {LinearFormat::kF32, LinearFormat::kBf16, LinearFormat::kFp8Block, LinearFormat::kNvfp4}) {
      for (const Case& c : {Case{16, 1, 32}, {33, 100, 256}, {1536, 576, 1024}, {48, 17, 7168}}) {
        const PackedWeight first =
            pack_weight(*kernels, TestWeight::random(format, c.first, c.cols, 71));
        const PackedWeight second =
            pack_weight(*kernels, TestWeight::random(format, c.second, c.cols, 72));
        for (const int64_t tokens : {1, 4, 5, 19}) {
          if (c.cols > 2000 && tokens > 4) continue;  // for the reference's sake
          SCOPED_TRACE(testing::Message()
                       << name << " format " << static_cast<int>(format) << " [" << c.first
                       << " and " << c.second << ", " << c.cols << "] x " << tokens);
          TestMatrix x = TestMatrix::random(tokens, c.cols, 73);
          TestMatrix want_first(tokens, c.first);
          TestMatrix want_second(tokens, c.second);
          kernels->linear(x.view(), first.weight, want_first.view());
          kernels->linear(x.view(), second.weight, want_second.view());
          TestMatrix got_first(tokens, c.first);
          TestMatrix got_second(tokens, c.second);
          kernels->linear_two(x.view(), first.weight, got_first.view(), second.weight,
                              got_second.view());
          EXPECT_LE(nmse(got_first.values(), want_first.values()), 4e-12);
          EXPECT_LE(nmse(got_second.values(), want_second.values()), 4e-12);
          EXPECT_TRUE(got_first.padding_intact());
          EXPECT_TRUE(got_second.padding_intact());
        }
      }
    }
  }
}

TEST(Fused, MlaPrepareIsRotaryQueryAndCacheWrite) {
  const MlaShape shape = real_mla_shape(5);
  const TestRope rope(100, 32);
  const TestMatrix q = TestMatrix::random(50, 5 * 192, 81);
  TestMatrix kv_a = TestMatrix::random(50, 576, 82, 2);
  TestMatrix layernorm = TestMatrix::random(1, 512, 83);
  for (const auto& [name, kernels] : all_backends()) {
    for (const DType dtype : {DType::kF32, DType::kBf16, DType::kF8E4m3}) {
      SCOPED_TRACE(testing::Message() << name << " " << dtype_name(dtype));
      TestMatrix want_q = q;
      TestMatrix got_q = q;
      TestCache want(dtype, 576, 16, {80, 20});
      TestCache got(dtype, 576, 16, {80, 20});
      const auto batch_of = [](TestCache& cache) {
        return std::vector<AttentionSegment>{{0, 40, 33, cache.block_table(0), MlaForm::kExpanded},
                                             {40, 10, 5, cache.block_table(1), MlaForm::kAbsorbed}};
      };
      const auto segments = batch_of(want);
      kernels->rotary_query(want_q.view(), shape, rope.table(), {50, segments});
      kernels->mla_cache_write(kv_a.view(), &layernorm.at(0, 0), 1e-6f, shape, rope.table(),
                               {50, segments}, want.view());
      const auto others = batch_of(got);
      kernels->mla_prepare(got_q.view(), kv_a.view(), &layernorm.at(0, 0), 1e-6f, shape,
                           rope.table(), {50, others}, got.view());
      EXPECT_TRUE(same_bits(got_q.values(), want_q.values()));
      for (int64_t p = 33; p < 73; ++p) EXPECT_TRUE(same_bits(got.entry(0, p), want.entry(0, p)));
      for (int64_t p = 5; p < 15; ++p) EXPECT_TRUE(same_bits(got.entry(1, p), want.entry(1, p)));
    }
  }
}

}  // namespace
}  // namespace nibble
