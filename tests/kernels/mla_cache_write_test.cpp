#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "nibble/kernels/reference/reference_kernels.h"
#include "tests/kernels/backends.h"
#include "tests/kernels/mla_helpers.h"

namespace nibble {
namespace {

// By hand: the latent (1, 7) has root mean square 5; the weights 5 and 500 make it (1, 700), which
// E4M3 holds as (1, 448). The rope key (2, 3) turned by a quarter is (-3, 2).
TEST(MlaCacheWrite, WritesTheNormedLatentAndTheRotatedKey) {
  const float cos[] = {1, 1, 0};
  const float sin[] = {0, 0, 1};
  const RopeTable rope{cos, sin, 3, 1};
  const MlaShape shape{1, 2, 1, 2, 1, 1};
  const float layernorm[] = {5, 500};
  for (const auto& [name, kernels] : all_backends()) {
    for (const DType dtype : {DType::kF32, DType::kBf16, DType::kF8E4m3}) {
      SCOPED_TRACE(testing::Message() << name << " " << dtype_name(dtype));
      TestCache cache(dtype, 4, 2, {3, 1});
      const AttentionSegment segments[] = {{0, 1, 2, cache.block_table(0), MlaForm::kExpanded},
                                           {1, 1, 0, cache.block_table(1), MlaForm::kAbsorbed}};
      TestMatrix kv_a = TestMatrix::of({{1, 7, 2, 3}, {1, 7, 2, 3}});
      kernels->mla_cache_write(kv_a.view(), layernorm, 0, shape, rope, {2, segments}, cache.view());
      const float large = dtype == DType::kF8E4m3 ? 448.0f : 700.0f;
      EXPECT_THAT(cache.entry(0, 2), testing::ElementsAre(1, large, -3, 2));
      EXPECT_THAT(cache.entry(1, 0), testing::ElementsAre(1, large, 2, 3));
      for (const float v : cache.entry(0, 1)) EXPECT_TRUE(std::isnan(v));  // not written
    }
  }
}

// The MTP layer: position 1, with its angle, in slot 2.
TEST(MlaCacheWrite, TheSlotMayLieBehindThePosition) {
  const float cos[] = {1, 0};
  const float sin[] = {0, 1};
  const RopeTable rope{cos, sin, 2, 1};
  const MlaShape shape{1, 1, 1, 2, 1, 1};
  const float layernorm[] = {3};
  for (const auto& [name, kernels] : all_backends()) {
    SCOPED_TRACE(name);
    TestCache cache(DType::kF32, 3, 2, {4});
    AttentionSegment segment{0, 1, 1, cache.block_table(0), MlaForm::kExpanded};
    segment.slot_offset = 1;
    TestMatrix kv_a = TestMatrix::of({{5, 2, 3}});
    kernels->mla_cache_write(kv_a.view(), layernorm, 0, shape, rope, {1, {&segment, 1}},
                             cache.view());
    EXPECT_THAT(cache.entry(0, 2), testing::ElementsAre(3, -3, 2));
    EXPECT_TRUE(std::isnan(cache.entry(0, 1)[0]));
  }
}

TEST(MlaCacheWrite, EveryBackendAgreesWithTheReference) {
  ReferenceKernels reference;
  const MlaShape shape = real_mla_shape(1);
  const TestRope rope(100, 32);
  TestMatrix kv_a = TestMatrix::random(50, 576, 51, 2);
  TestMatrix layernorm = TestMatrix::random(1, 512, 52);
  for (const DType dtype : {DType::kF32, DType::kBf16, DType::kF8E4m3}) {
    for (const auto& [name, kernels] : available_backends()) {
      SCOPED_TRACE(testing::Message() << name << " " << dtype_name(dtype));
      TestCache want(dtype, 576, 16, {80, 20});
      TestCache got(dtype, 576, 16, {80, 20});
      for (TestCache* cache : {&want, &got}) {
        const AttentionSegment segments[] = {
            {0, 40, 33, cache->block_table(0), MlaForm::kExpanded},
            {40, 10, 5, cache->block_table(1), MlaForm::kAbsorbed}};
        Kernels& k = cache == &want ? reference : *kernels;
        k.mla_cache_write(kv_a.view(), &layernorm.at(0, 0), 1e-6f, shape, rope.table(),
                          {50, segments}, cache->view());
      }
      // At most a few values in a hundred thousand may round the other way.
      std::vector<float> a;
      std::vector<float> b;
      for (int64_t p = 33; p < 73; ++p) {
        const std::vector<float> w = want.entry(0, p);
        const std::vector<float> g = got.entry(0, p);
        a.insert(a.end(), g.begin(), g.end());
        b.insert(b.end(), w.begin(), w.end());
      }
      EXPECT_LE(nmse(a, b), dtype == DType::kF32 ? 1e-14 : 1e-6);
      EXPECT_TRUE(std::isnan(got.entry(0, 73)[0]));
      EXPECT_TRUE(std::isnan(got.entry(0, 32)[0]));
    }
  }
}

}  // namespace
}  // namespace nibble
