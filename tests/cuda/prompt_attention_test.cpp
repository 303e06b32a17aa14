// Prompts in expanded form on the GPU: against the definition, and at sizes that take the host too
// long against the absorbed form, which is another set of kernels.
#include <gtest/gtest.h>

#include <numeric>

#include "tests/cuda/host_side_cuda.h"
#include "tests/cuda/mla_pair.h"
#include "tests/kernels/kernel_test_helpers.h"
#include "tests/kernels/mla_helpers.h"

namespace nibble {
namespace {

constexpr double kBound = 2.5e-5;  // keys, values, queries and weights are rounded to BF16

// Generated tokens in front and between, a short prompt, one that ends within a tile of positions
// and of tokens, one behind a prefix; entries behind their positions; blocks of any size.
TEST(PromptAttention, AgreesWithTheReferenceBesideOtherTokens) {
  MlaPair mla(3, 81);
  for (const DType dtype : {DType::kBf16, DType::kF8E4m3}) {
    for (const int64_t block_size : {24, 64}) {
      SCOPED_TRACE(testing::Message() << dtype_name(dtype) << ", blocks of " << block_size);
      TestCache cache(dtype, mla.shape.entry_size(), block_size, {90, 131, 60, 270, 41});
      cache.fill(82);
      const std::vector<AttentionSegment> segments = {
          {0, 1, 88, cache.block_table(0), MlaForm::kAbsorbed, 1},
          {1, 130, 0, cache.block_table(1), MlaForm::kExpanded, 1},
          {131, 20, 39, cache.block_table(2), MlaForm::kExpanded, 1},
          {151, 1, 40, cache.block_table(4), MlaForm::kAbsorbed, 0},
          {152, 193, 76, cache.block_table(3), MlaForm::kExpanded, 0}};
      constexpr int64_t kTokens = 345;
      TestMatrix q = mla.queries(kTokens, 83);
      const TestMatrix want = mla.want(q, segments, cache);
      const TestMatrix got = mla.got(q, segments, cache);
      EXPECT_LE(nmse(got.values(), want.values()), kBound);
      EXPECT_TRUE(got.padding_intact());
      for (int64_t t = 0; t < kTokens; ++t) {
        EXPECT_LE(nmse(got.row(t), want.row(t)), 8 * kBound) << t;
      }
    }
  }
}

// Scores that a softmax without the maximum would overflow, and rows whose maximum comes last.
TEST(PromptAttention, LargeScoresDoNotOverflow) {
  MlaPair mla(2, 84);
  TestCache cache(DType::kBf16, mla.shape.entry_size(), 32, {200});
  cache.fill(85);
  const std::vector<AttentionSegment> segments = {
      {0, 200, 0, cache.block_table(0), MlaForm::kExpanded}};
  TestMatrix q = mla.queries(200, 86, 300);
  const TestMatrix want = mla.want(q, segments, cache);
  TestMatrix got = mla.got(q, segments, cache);
  // Nearly one position decides, and which it is may hang on the rounding of queries.
  EXPECT_LE(nmse(got.values(), want.values()), 0.05);
  for (int64_t t = 0; t < 200; ++t) EXPECT_LE(std::abs(got.at(t, 0)), 100.0F) << t;
}

TEST(PromptAttention, AgreesWithTheAbsorbedFormAtR1sSizes) {
  struct Case {
    int64_t heads, prefix, tokens;
  };
  const auto cuda = make_host_side_cuda(1);
  const auto absorbed = make_host_side_cuda(1, true);
  // With 20,000 positions and 128 heads, keys and values are made for some heads at a time; the
  // absorbed form takes some tokens at a time.
  for (const Case c : {Case{128, 20000, 260}, {128, 0, 700}, {16, 3001, 1300}}) {
    SCOPED_TRACE(testing::Message() << c.heads << ", " << c.prefix << ", " << c.tokens);
    const MlaShape shape = real_mla_shape(c.heads);
    const TestWeight kv_b_proj = random_kv_b_proj(LinearFormat::kBf16, shape, 87);
    const PackedMlaUp one = pack_mla_up_weight(*cuda, kv_b_proj, shape);
    const PackedMlaUp other = pack_mla_up_weight(*absorbed, kv_b_proj, shape);
    TestCache cache(DType::kBf16, shape.entry_size(), 64, {c.prefix + c.tokens});
    cache.fill(88);
    const std::vector<AttentionSegment> segments = {
        {0, c.tokens, c.prefix, cache.block_table(0), MlaForm::kExpanded}};
    const AttentionBatch batch{c.tokens, segments};
    TestMatrix q = TestMatrix::random(c.tokens, c.heads * shape.qk_head_dim(), 89, 2);
    TestMatrix want(c.tokens, c.heads * shape.v_head_dim);
    TestMatrix got(c.tokens, c.heads * shape.v_head_dim);
    absorbed->mla_attention(q.view(), other.weight, shape, batch, cache.view(), want.view());
    cuda->mla_attention(q.view(), one.weight, shape, batch, cache.view(), got.view());
    EXPECT_LE(nmse(got.values(), want.values()), 2 * kBound);
    EXPECT_TRUE(got.padding_intact());
  }
}

}  // namespace
}  // namespace nibble
