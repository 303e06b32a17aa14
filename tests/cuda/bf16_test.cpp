// The default mode, in which tensor cores get activations rounded to BF16: against the reference on
// rounded activations, at R1's shapes.
#include "nibble/numeric/bf16.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "nibble/kernels/reference/reference_kernels.h"
#include "nibble/kernels/reference/rows.h"
#include "tests/cuda/host_side_cuda.h"
#include "tests/cuda/mla_pair.h"
#include "tests/cuda/random_choices.h"
#include "tests/kernels/kernel_test_helpers.h"
#include "tests/kernels/mla_helpers.h"

namespace nibble {
namespace {

TestMatrix random_bf16(int64_t rows, int64_t cols, uint32_t seed) {
  TestMatrix x = TestMatrix::random(rows, cols, seed);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < cols; ++c) x.at(r, c) = bf16_to_float(float_to_bf16(x.at(r, c)));
  }
  return x;
}

struct LinearShape {
  int64_t rows, cols, tokens;
};

TEST(Bf16Linear, AgreesAtR1sShapes) {
  ReferenceKernels reference;
  const auto cuda = make_host_side_cuda(1);
  for (const LinearFormat format :
       {LinearFormat::kNvfp4, LinearFormat::kFp8Block, LinearFormat::kBf16}) {
    for (const auto& [rows, cols, tokens] : {LinearShape{2048, 7168, 1},
                                             {2048, 7168, 9},
                                             {7168, 2048, 33},
                                             {1536, 7168, 4},
                                             {576, 7168, 17},
                                             {3072, 1536, 8},
                                             {100, 16384, 3},
                                             {48, 18432, 66}}) {
      SCOPED_TRACE(testing::Message()
                   << format_name(format) << " [" << rows << ", " << cols << "] x " << tokens);
      const TestWeight weight = TestWeight::random(format, rows, cols, 31);
      const PackedWeight plain = pack_weight(reference, weight);
      const PackedWeight packed = pack_weight(*cuda, weight);
      TestMatrix x = random_bf16(tokens, cols, 32);
      TestMatrix want(tokens, rows);
      TestMatrix got(tokens, rows);
      reference.linear(x.view(), plain.weight, want.view());
      cuda->linear(x.view(), packed.weight, got.view());
      EXPECT_LE(nmse(got.values(), want.values()), 1e-11);
      EXPECT_TRUE(got.padding_intact());
    }
  }
}

// A row's bits in batches of other sizes, whatever kernel those take.
TEST(Bf16Linear, ARowHasTheSameBitsInAnyBatch) {
  const auto cuda = make_host_side_cuda(1, true);
  for (const LinearFormat format :
       {LinearFormat::kNvfp4, LinearFormat::kFp8Block, LinearFormat::kBf16}) {
    const TestWeight weight = TestWeight::random(format, 200, 1040, 33);
    const PackedWeight packed = pack_weight(*cuda, weight);
    TestMatrix x = TestMatrix::random(150, 1040, 34);
    TestMatrix all(150, 200);
    cuda->linear(x.view(), packed.weight, all.view());
    for (const int64_t tokens : {1, 2, 7, 8, 9, 16, 17, 127}) {
      TestMatrix some(tokens, 200);
      cuda->linear(x.view().slice_rows(150 - tokens, tokens), packed.weight, some.view());
      for (int64_t i = 0; i < tokens; ++i) {
        EXPECT_TRUE(same_bits(some.row(i), all.row(150 - tokens + i)))
            << format_name(format) << " " << tokens << " " << i;
      }
    }
  }
}

TEST(Bf16Mlp, AgreesWithTheReferenceAtAnR1ExpertsShape) {
  ReferenceKernels reference;
  const auto cuda = make_host_side_cuda(1);
  const TestMlp mlp = TestMlp::random(LinearFormat::kNvfp4, 7168, 2048, 35);
  const PackedMlp plain = pack_mlp(reference, mlp);
  const PackedMlp packed = pack_mlp(*cuda, mlp);
  for (const int64_t tokens : {1, 12, 129}) {
    TestMatrix x = random_bf16(tokens, 7168, 36);
    TestMatrix want(tokens, 7168);
    TestMatrix got(tokens, 7168);
    reference.mlp(x.view(), plain.weight(), want.view());
    cuda->mlp(x.view(), packed.weight(), got.view());
    EXPECT_LE(nmse(got.values(), want.values()), 2.5e-5);  // the product is rounded to BF16
    EXPECT_TRUE(got.padding_intact());
  }
}

struct MoeShape {
  int experts, per_token;
  int64_t hidden, intermediate, shared_intermediate, tokens;
};

// Few tokens and many, experts without tokens and one that every token takes, widths that are no
// multiple of a tile, a shared expert that joins the routed ones and one that does not.
TEST(Bf16Moe, AgreesWithTheReferenceForFewAndManyTokens) {
  ReferenceKernels reference;
  const auto cuda = make_host_side_cuda(1);
  for (const MoeShape& s : {MoeShape{9, 3, 1152, 1024, 1024, 3},
                            {9, 3, 1152, 1024, 1024, 40},
                            {9, 3, 256, 128, 128, 260},
                            {40, 2, 384, 256, 256, 300},
                            {5, 2, 208, 144, 288, 700},
                            {12, 4, 1088, 192, 192, 256}}) {
    SCOPED_TRACE(testing::Message() << s.experts << " experts of " << s.hidden << " x "
                                    << s.intermediate << ", " << s.tokens << " tokens");
    std::vector<TestMlp> mlps;
    for (int e = 0; e <= s.experts; ++e) {
      mlps.push_back(TestMlp::random(LinearFormat::kNvfp4, s.hidden,
                                     e < s.experts ? s.intermediate : s.shared_intermediate,
                                     static_cast<uint32_t>(50 + 3 * e)));
    }
    RouterShape shape;
    shape.n_routed_experts = s.experts;
    shape.num_experts_per_tok = s.per_token;
    const auto [ids, weights] =
        random_choices(s.tokens, s.per_token, 1, s.experts, 1, 51);  // nobody takes expert 0
    TestMatrix x = random_bf16(s.tokens, s.hidden, 52);
    const auto run = [&](Kernels& kernels) {
      std::vector<PackedMlp> packed;
      std::vector<MlpWeight> experts;
      for (const TestMlp& mlp : mlps) packed.push_back(pack_mlp(kernels, mlp));
      for (const PackedMlp& mlp : packed) experts.push_back(mlp.weight());
      const MlpWeight shared = experts.back();
      experts.pop_back();
      TestMatrix out(s.tokens, s.hidden);
      kernels.moe(x.view(), experts, &shared, shape, ids.data(), weights.data(), out.view());
      return out;
    };
    TestMatrix want = run(reference);
    TestMatrix got = run(*cuda);
    EXPECT_LE(nmse(got.values(), want.values()), 2.5e-5);
    EXPECT_TRUE(got.padding_intact());
  }
}

// R1's router and widths of attention: 256 experts in 8 groups, 128 heads.
TEST(Bf16Mla, AgreesWithTheReferenceForAll128Heads) {
  MlaPair mla(128, 37);
  for (const DType dtype : {DType::kBf16, DType::kF8E4m3}) {
    TestCache cache(dtype, mla.shape.entry_size(), 32, {130, 65});
    cache.fill(38);
    TestMatrix q = mla.queries(4, 39);
    const std::vector<AttentionSegment> segments = {
        {0, 2, 128, cache.block_table(0), MlaForm::kAbsorbed},
        {2, 1, 64, cache.block_table(1), MlaForm::kAbsorbed},
        {3, 1, 63, cache.block_table(1), MlaForm::kExpanded}};
    const TestMatrix want = mla.want(q, segments, cache);
    const TestMatrix got = mla.got(q, segments, cache);
    EXPECT_LE(nmse(got.values(), want.values()), 2.5e-5);
    EXPECT_TRUE(got.padding_intact());
  }
}

// Tiles of 32 or 64 positions that lie in one of the cache's blocks, in several, or behind an
// offset; runs that end within a tile; 13 to 64 heads of a block's rows or columns; 7 tokens
// and 14.
TEST(Bf16Mla, AgreesOverBlocksOfAnySizeAndRunsOfAnyLength) {
  for (const int heads : {13, 32, 40}) {
    MlaPair mla(heads, 41);
    for (const DType dtype : {DType::kBf16, DType::kF8E4m3}) {
      for (const int64_t block_size : {8, 24, 64}) {
        std::vector<int64_t> lengths = {2, 32, 34, 66, 98, 160, 322};
        if (heads == 32) lengths.insert(lengths.end(), {3, 65, 67, 130, 131, 194, 259});
        TestCache cache(dtype, mla.shape.entry_size(), block_size, lengths);
        cache.fill(42);
        const auto tokens = static_cast<int64_t>(lengths.size());
        TestMatrix q = mla.queries(tokens, 43);
        std::vector<AttentionSegment> segments;
        for (int64_t i = 0; i < tokens; ++i) {
          const auto at = static_cast<size_t>(i);
          segments.push_back({i, 1, lengths[at] - 2, cache.block_table(at), MlaForm::kAbsorbed, 1});
        }
        // Both forms are equal in value; the reference is sooner done with this one.
        const TestMatrix want = mla.want(q, segments, cache);
        // The expanded form has one run: up to 11 tiles behind each other.
        for (const MlaForm form : {MlaForm::kAbsorbed, MlaForm::kExpanded}) {
          for (AttentionSegment& segment : segments) segment.form = form;
          const TestMatrix got = mla.got(q, segments, cache);
          EXPECT_LE(nmse(got.values(), want.values()), 2.5e-5)
              << heads << " heads, blocks of " << block_size << ", " << dtype_name(dtype);
          EXPECT_TRUE(got.padding_intact());
        }
      }
    }
  }
}

// Absorption and values of 5 tokens and more have a kernel of their own, for up to 16, 32 or 64
// tokens at a time.
TEST(Bf16Mla, AgreesForAnyNumberOfTokens) {
  for (const int heads : {3, 128}) {
    MlaPair mla(heads, 44);
    TestCache cache(DType::kBf16, mla.shape.entry_size(), 64, {80});
    cache.fill(45);
    for (const int64_t tokens : {5, 16, 17, 33, 64, 70}) {
      TestMatrix q = mla.queries(tokens, 46);
      std::vector<AttentionSegment> segments;
      for (int64_t i = 0; i < tokens; ++i) {
        segments.push_back({i, 1, i, cache.block_table(0), MlaForm::kAbsorbed});
      }
      const TestMatrix want = mla.want(q, segments, cache);
      const TestMatrix got = mla.got(q, segments, cache);
      EXPECT_LE(nmse(got.values(), want.values()), 2.5e-5) << heads << " heads, " << tokens;
      EXPECT_TRUE(got.padding_intact());
    }
  }
}

// Entries whose scores differ by hundreds of binary digits, so that maxima rise from tile to tile.
// Queries have rope parts alone, which are exact in BF16: scores have no rounding.
TEST(Bf16Mla, FollowsMaximaThatRiseFromTileToTile) {
  for (const int heads : {16, 32, 64}) {
    MlaPair mla(heads, 51);
    const int64_t tokens = 14;
    const int64_t context = 500;
    for (const DType dtype : {DType::kF8E4m3, DType::kBf16}) {
      TestCache cache(dtype, mla.shape.entry_size(), 64, {context});
      cache.fill(52);
      TestMatrix q = mla.queries(tokens, 53);
      for (int64_t t = 0; t < tokens; ++t) {
        for (int64_t i = 0; i < q.cols(); ++i) {
          float& v = q.at(t, i);
          const bool is_rope = i % mla.shape.qk_head_dim() >= mla.shape.qk_nope_head_dim;
          v = is_rope ? std::round(32 * v) : 0;
        }
      }
      std::vector<AttentionSegment> segments;
      for (int64_t t = 0; t < tokens; ++t) {
        segments.push_back({t, 1, context - 1 - t, cache.block_table(0), MlaForm::kAbsorbed});
      }
      const TestMatrix want = mla.want(q, segments, cache);
      // Of one run.
      for (AttentionSegment& segment : segments) segment.form = MlaForm::kExpanded;
      const TestMatrix got = mla.got(q, segments, cache);
      EXPECT_LE(nmse(got.values(), want.values()), 2.5e-5) << heads << " heads";
    }
  }
}

// A NaN in the cache, be it latents or rope keys, reaches whoever sees it, and nobody else.
TEST(Bf16Mla, NanInTheCacheReachesThoseWhoSeeIt) {
  for (const int heads : {16, 32, 64}) {
    MlaPair mla(heads, 54);
    const int64_t tokens = 14;
    const int64_t context = 200;
    const int64_t rank = mla.shape.kv_lora_rank;
    for (const DType dtype : {DType::kF8E4m3, DType::kBf16}) {
      for (const int64_t first : {int64_t{0}, rank + 40}) {
        TestCache cache(dtype, mla.shape.entry_size(), 64, {context});
        cache.fill(55);
        std::vector<float> entry = cache.entry(0, context - 5);
        // Latents come out of a norm: all or none.
        const int64_t end = first == 0 ? rank : first + 1;
        std::fill(entry.begin() + first, entry.begin() + end, NAN);
        write_cache_entry(cache.view(),
                          cache.view().entry_offset(cache.block_table(0), context - 5),
                          entry.data());
        TestMatrix q = mla.queries(tokens, 56);
        std::vector<AttentionSegment> segments;
        for (int64_t t = 0; t < tokens; ++t) {  // the first five see it
          segments.push_back(
              {t, 1, context - 14 + (13 - t), cache.block_table(0), MlaForm::kAbsorbed});
        }
        TestMatrix got = mla.got(q, segments, cache);
        for (int64_t t = 0; t < tokens; ++t) {
          for (int64_t i = 0; i < got.cols(); ++i) {
            ASSERT_EQ(std::isnan(got.at(t, i)), 13 - t >= 9)
                << heads << " heads, token " << t << ", column " << i;
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace nibble
