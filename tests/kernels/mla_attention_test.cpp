#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>

#include "nibble/kernels/cpu/cpu_kernels.h"
#include "nibble/kernels/reference/reference_kernels.h"
#include "nibble/numeric/bf16.h"
#include "tests/kernels/backends.h"
#include "tests/kernels/mla_helpers.h"

namespace nibble {
namespace {

constexpr MlaForm kBothForms[] = {MlaForm::kExpanded, MlaForm::kAbsorbed};

TestMatrix attend(Kernels& kernels, TestMatrix& q, const MlaUpWeight& weight, const MlaShape& shape,
                  std::vector<AttentionSegment> segments, TestCache& cache) {
  TestMatrix out(q.rows(), shape.num_heads * shape.v_head_dim);
  kernels.mla_attention(q.view(), weight, shape, {q.rows(), segments}, cache.view(), out.view());
  return out;
}

// Tiles take queries, softmax weights, keys and values as BF16 numbers: the specification allows a
// relative error of 5e-3, 2.5e-5 of the square. Exact ones keep 16 significant bits, a relative
// error of some 3e-6; the other backends keep binary32.
double attention_bound(const std::string& backend) {
  const int planes = tile_planes(backend, LinearFormat::kNvfp4);
  return planes == 0 ? 1e-11 : planes == 1 ? 2.5e-5 : 1e-10;
}

// A prompt whose queries, keys and values are exact in BF16, in both forms. Tiles sum softmax
// weights before they round them to BF16: a relative error of 2^-9 at most.
void expect_like_reference(TestMatrix& q, const TestWeight& kv_b_proj, const MlaShape& shape,
                           TestCache& cache) {
  ReferenceKernels reference;
  const PackedMlaUp plain = pack_mla_up_weight(reference, kv_b_proj, shape);
  for (const MlaForm form : kBothForms) {
    const std::vector<AttentionSegment> segments = {{0, q.rows(), 0, cache.block_table(0), form}};
    const TestMatrix want = attend(reference, q, plain.weight, shape, segments, cache);
    for (const auto& [name, kernels] : available_backends()) {
      SCOPED_TRACE(testing::Message() << name << " " << static_cast<int>(form));
      const PackedMlaUp packed = pack_mla_up_weight(*kernels, kv_b_proj, shape);
      const TestMatrix got = attend(*kernels, q, packed.weight, shape, segments, cache);
      const bool rounds = tile_planes(name, LinearFormat::kNvfp4) == 1;
      EXPECT_LE(nmse(got.values(), want.values()), rounds ? 4e-6 : 1e-11);
    }
  }
}

// One head, latent width 2, W_UK = (1, 0), W_UV = (0, 10): the first latent element is the key, ten
// times the second the value. By hand:
//   token 0 sees position 0 alone: its value, 10
//   token 1, q = 0: the mean of 10 and 30
//   token 2, q_nope = ln 3, keys 0, 1, 1: weights 1, 3, 3; (10 + 3 * 30 + 3 * 50) / 7
//   token 3, q_rope = (0, ln 2), rope keys 0, 0, 0, 1: (10 + 30 + 50 + 2 * 70) / 5
TEST(MlaAttention, WeighsValuesBySoftmaxOfKeysAndRopeKeys) {
  const MlaShape shape{1, 2, 1, 2, 1, 1.0f};
  const float ln2 = std::log(2.0f);
  const float ln3 = std::log(3.0f);
  const std::vector<std::vector<float>> entries = {
      {0, 1, 0, 0}, {1, 3, 0, 0}, {1, 5, 0, 0}, {0, 7, 5, 1}};
  for (const auto& [name, kernels] : all_backends()) {
    for (const MlaForm form : kBothForms) {
      SCOPED_TRACE(testing::Message() << name << " " << static_cast<int>(form));
      const PackedMlaUp weight = pack_mla_up_weight(
          *kernels, TestWeight::of(LinearFormat::kBf16, {{1, 0}, {0, 10}}), shape);
      TestCache cache(DType::kF32, 4, 3, {4});
      for (int64_t p = 0; p < 4; ++p) {
        std::memcpy(static_cast<float*>(cache.view().data) +
                        cache.view().entry_offset(cache.block_table(0), p),
                    entries[static_cast<size_t>(p)].data(), 16);
      }
      TestMatrix q = TestMatrix::of({{5, 5, 5}, {0, 0, 0}, {ln3, 0, 0}, {0, 0, ln2}});
      TestMatrix out =
          attend(*kernels, q, weight.weight, shape, {{0, 4, 0, cache.block_table(0), form}}, cache);
      const bool tiles = tile_planes(name, LinearFormat::kNvfp4) > 0;
      const double relative = tiles ? 2 * std::sqrt(attention_bound(name)) : 0x1p-22;
      EXPECT_NEAR(out.at(0, 0), 10, 10 * relative);
      EXPECT_NEAR(out.at(1, 0), 20, 20 * relative);
      EXPECT_NEAR(out.at(2, 0), 250.0 / 7, 36 * relative);
      EXPECT_NEAR(out.at(3, 0), 46, 46 * relative);
    }
  }
}

TEST(MlaAttention, TheTwoFormsAgreeInTheReference) {
  ReferenceKernels reference;
  const MlaShape shape = odd_mla_shape(3);
  const PackedMlaUp weight =
      pack_mla_up_weight(reference, random_kv_b_proj(LinearFormat::kBf16, shape, 61), shape);
  TestCache cache(DType::kF32, shape.entry_size(), 16, {150});
  cache.fill(62);
  TestMatrix q = TestMatrix::random(20, shape.num_heads * shape.qk_head_dim(), 63);
  const TestMatrix expanded = attend(reference, q, weight.weight, shape,
                                     {{0, 20, 130, cache.block_table(0), kBothForms[0]}}, cache);
  const TestMatrix absorbed = attend(reference, q, weight.weight, shape,
                                     {{0, 20, 130, cache.block_table(0), kBothForms[1]}}, cache);
  EXPECT_LE(nmse(absorbed.values(), expanded.values()), 1e-12);
}

struct MlaCase {
  MlaShape shape;
  LinearFormat format;
  DType cache;
};

// GoogleTest's name.
void PrintTo(const MlaCase& c, std::ostream* out) {  // NOLINT(readability-identifier-naming)
  *out << c.shape.kv_lora_rank << " " << format_name(c.format) << " " << dtype_name(c.cache);
}

std::vector<MlaCase> mla_cases() {
  std::vector<MlaCase> cases = {
      {real_mla_shape(2), LinearFormat::kBf16, DType::kBf16},
      {odd_mla_shape(3), LinearFormat::kF32, DType::kF32},
      {odd_mla_shape(3), LinearFormat::kBf16, DType::kF8E4m3},
      {odd_mla_shape(5), LinearFormat::kFp8Block, DType::kBf16},
      {{2, 48, 32, 8, 16, 0.2f}, LinearFormat::kFp8Block, DType::kBf16},
      {{3, 48, 20, 8, 12, 0.2f}, LinearFormat::kNvfp4, DType::kF32},
      {real_mla_shape(4), LinearFormat::kFp8Block, DType::kF8E4m3},
      {{20, 32, 48, 16, 32, 0.2f}, LinearFormat::kBf16, DType::kBf16},  // heads share panels
      {{9, 144, 128, 2, 144, 0.1f}, LinearFormat::kNvfp4, DType::kF8E4m3},
  };
  return cases;
}

// Prompts, continued prompts and generated tokens of several sequences in one batch, around the
// cpu backend's blocks of 128 positions.
struct MlaBatch {
  explicit MlaBatch(const MlaCase& c)
      : cache(c.cache, c.shape.entry_size(), 16, {70, 200, 129, 300, 1}) {
    cache.fill(71);
    segments = {{0, 70, 0, cache.block_table(0), MlaForm::kExpanded},
                {70, 1, 128, cache.block_table(2), MlaForm::kAbsorbed},
                {71, 75, 125, cache.block_table(1), MlaForm::kExpanded},
                {146, 3, 297, cache.block_table(3), MlaForm::kAbsorbed},
                {149, 1, 127, cache.block_table(2), MlaForm::kExpanded},
                {150, 1, 0, cache.block_table(4), MlaForm::kAbsorbed},
                {151, 66, 100, cache.block_table(1), MlaForm::kAbsorbed}};
  }
  static constexpr int64_t kTokens = 217;
  TestCache cache;
  std::vector<AttentionSegment> segments;
};

TEST(MlaAttention, EveryBackendAgreesWithTheReference) {
  ReferenceKernels reference;
  const auto backends = available_backends();
  for (const MlaCase& c : mla_cases()) {
    const TestWeight kv_b_proj = random_kv_b_proj(c.format, c.shape, 72);
    MlaBatch batch(c);
    TestMatrix q =
        TestMatrix::random(MlaBatch::kTokens, c.shape.num_heads * c.shape.qk_head_dim(), 73);
    const PackedMlaUp plain = pack_mla_up_weight(reference, kv_b_proj, c.shape);
    const TestMatrix want =
        attend(reference, q, plain.weight, c.shape, batch.segments, batch.cache);
    for (const auto& [name, kernels] : backends) {
      SCOPED_TRACE(testing::Message() << name << " " << testing::PrintToString(c));
      const PackedMlaUp packed = pack_mla_up_weight(*kernels, kv_b_proj, c.shape);
      {  // leave NaN in scratch
        TestMatrix nan(MlaBatch::kTokens, q.cols());
        attend(*kernels, nan, packed.weight, c.shape, batch.segments, batch.cache);
      }
      const TestMatrix got =
          attend(*kernels, q, packed.weight, c.shape, batch.segments, batch.cache);
      EXPECT_LE(nmse(got.values(), want.values()), attention_bound(name));
      EXPECT_TRUE(got.padding_intact());
    }
  }
}

// A token's result may depend on its own context only: neither on how its prompt is cut, nor on
// what else is in the batch, nor on the threads.
TEST(MlaAttention, ATokensBitsDependOnItsContextAlone) {
  for (const MlaCase& c : mla_cases()) {
    const TestWeight kv_b_proj = random_kv_b_proj(c.format, c.shape, 74);
    TestCache cache(c.cache, c.shape.entry_size(), 16, {200, 40});
    cache.fill(75);
    TestMatrix q = TestMatrix::random(240, c.shape.num_heads * c.shape.qk_head_dim(), 76);
    const auto single = cpu_backends(1);
    const auto pair = cpu_backends(2);
    const auto many = cpu_backends(5);
    for (size_t b = 0; b < single.size(); ++b) {
      for (const MlaForm form : kBothForms) {
        SCOPED_TRACE(testing::Message() << single[b].name << " " << testing::PrintToString(c) << " "
                                        << static_cast<int>(form));
        const PackedMlaUp packed = pack_mla_up_weight(*single[b].kernels, kv_b_proj, c.shape);
        TestMatrix prompt = TestMatrix(200, q.cols());
        for (int64_t t = 0; t < 200; ++t) {
          for (int64_t i = 0; i < q.cols(); ++i) prompt.at(t, i) = q.at(t, i);
        }
        const TestMatrix whole = attend(*single[b].kernels, prompt, packed.weight, c.shape,
                                        {{0, 200, 0, cache.block_table(0), form}}, cache);

        // The same prompt in pieces that straddle blocks, beside another sequence.
        for (const auto* backends : {&pair, &many}) {
          std::vector<AttentionSegment> segments;
          int64_t first = 0;
          for (const int64_t count : {1, 126, 2, 60, 11}) {
            segments.push_back({first, count, first, cache.block_table(0), form});
            first += count;
          }
          segments.push_back({200, 40, 0, cache.block_table(1), MlaForm::kAbsorbed});
          const TestMatrix cut =
              attend(*(*backends)[b].kernels, q, packed.weight, c.shape, segments, cache);
          for (int64_t t = 0; t < 200; ++t) {
            ASSERT_TRUE(same_bits(cut.row(t), whole.row(t))) << "token " << t;
          }
        }
        // One call for each piece, later positions not yet in the cache.
        for (const int64_t t : {0, 63, 127, 128, 199}) {
          TestCache young(c.cache, c.shape.entry_size(), 16, {200, 40});
          for (int64_t p = 0; p <= t; ++p) {
            const int64_t bytes = c.shape.entry_size() * dtype_size(c.cache);
            const int64_t offset =
                young.view().entry_offset(young.block_table(0), p) * dtype_size(c.cache);
            std::memcpy(static_cast<char*>(young.view().data) + offset,
                        cache.bytes().data() + offset, static_cast<size_t>(bytes));
          }
          TestMatrix one = TestMatrix::of({q.row(t)});
          const TestMatrix lone = attend(*pair[b].kernels, one, packed.weight, c.shape,
                                         {{0, 1, t, young.block_table(0), form}}, young);
          EXPECT_TRUE(same_bits(lone.row(0), whole.row(t))) << "token " << t;
        }
      }
    }
  }
}

// The MTP layer's entries lie one slot behind their positions: the same entries, moved by one, give
// the same bits; slot 0 is never read.
TEST(MlaAttention, EntriesMayLieBehindTheirPositions) {
  const MlaShape shape = odd_mla_shape(3);
  const TestWeight kv_b_proj = random_kv_b_proj(LinearFormat::kBf16, shape, 83);
  TestCache plain(DType::kF32, shape.entry_size(), 16, {150});
  TestCache moved(DType::kF32, shape.entry_size(), 16, {151});
  plain.fill(84);
  for (int64_t p = 0; p < 150; ++p) {
    const std::vector<float> entry = plain.entry(0, p);
    std::copy(entry.begin(), entry.end(),
              static_cast<float*>(moved.view().data) +
                  moved.view().entry_offset(moved.block_table(0), p + 1));
  }
  TestMatrix q = TestMatrix::random(20, shape.num_heads * shape.qk_head_dim(), 85);
  for (const auto& [name, kernels] : all_backends()) {
    const PackedMlaUp packed = pack_mla_up_weight(*kernels, kv_b_proj, shape);
    for (const MlaForm form : kBothForms) {
      SCOPED_TRACE(testing::Message() << name << " " << static_cast<int>(form));
      AttentionSegment segment{0, 20, 130, plain.block_table(0), form};
      const TestMatrix want = attend(*kernels, q, packed.weight, shape, {segment}, plain);
      segment.block_table = moved.block_table(0);
      segment.slot_offset = 1;
      const TestMatrix got = attend(*kernels, q, packed.weight, shape, {segment}, moved);
      EXPECT_TRUE(same_bits(got.values(), want.values()));
    }
  }
}

// Longer than the runs of query tokens that share an expansion.
TEST(MlaAttention, LongPromptsAreCutWithoutATrace) {
  const MlaShape shape{1, 16, 16, 2, 16, 0.25f};
  TestCache cache(DType::kF32, shape.entry_size(), 64, {1300});
  cache.fill(77);
  TestMatrix q = TestMatrix::random(1300, shape.qk_head_dim(), 78);
  ReferenceKernels reference;
  const TestWeight kv_b_proj = random_kv_b_proj(LinearFormat::kF32, shape, 79);
  for (const MlaForm form : kBothForms) {
    const PackedMlaUp plain = pack_mla_up_weight(reference, kv_b_proj, shape);
    const TestMatrix want = attend(reference, q, plain.weight, shape,
                                   {{0, 1300, 0, cache.block_table(0), form}}, cache);
    for (const auto& [name, kernels] : available_backends()) {
      SCOPED_TRACE(name);
      const PackedMlaUp packed = pack_mla_up_weight(*kernels, kv_b_proj, shape);
      const TestMatrix got = attend(*kernels, q, packed.weight, shape,
                                    {{0, 1300, 0, cache.block_table(0), form}}, cache);
      EXPECT_LE(nmse(got.values(), want.values()), attention_bound(name));
    }
  }
}

// More tokens than share an expansion (4096), whose context also is longer than what is expanded at
// once; the cut between them lies inside a block and a tile of positions, and latents have two
// slices.
TEST(MlaAttention, PromptsBeyondAnExpansionAreCutWithoutATrace) {
  const MlaShape shape{1, 144, 16, 2, 16, 0.25f};
  constexpr int64_t kBefore = 61;
  constexpr int64_t kTokens = 4096 + 300;
  TestCache cache(DType::kBf16, shape.entry_size(), 64, {kBefore + kTokens});
  cache.fill(89);
  TestMatrix q = TestMatrix::random(kTokens, shape.qk_head_dim(), 90);
  // What the reference has to say of: both sides of the cut, and the end.
  const std::vector<std::pair<int64_t, int64_t>> windows = {
      {4032, 32}, {4080, 32}, {kTokens - 16, 16}};
  ReferenceKernels reference;
  for (const LinearFormat format : {LinearFormat::kNvfp4, LinearFormat::kFp8Block}) {
    const TestWeight kv_b_proj = random_kv_b_proj(format, shape, 91);
    const PackedMlaUp plain = pack_mla_up_weight(reference, kv_b_proj, shape);
    for (const auto& [name, kernels] : available_backends()) {
      SCOPED_TRACE(testing::Message() << name << " " << format_name(format));
      const PackedMlaUp packed = pack_mla_up_weight(*kernels, kv_b_proj, shape);
      const auto attend_pieces = [&, &backend = *kernels](const std::vector<int64_t>& counts) {
        std::vector<AttentionSegment> segments;
        int64_t first = 0;
        for (const int64_t count : counts) {
          segments.push_back(
              {first, count, kBefore + first, cache.block_table(0), MlaForm::kExpanded});
          first += count;
        }
        return attend(backend, q, packed.weight, shape, segments, cache);
      };
      const TestMatrix whole = attend_pieces({kTokens});
      for (const auto& [first, count] : windows) {
        std::vector<std::vector<float>> queries;
        std::vector<float> got;
        for (int64_t t = first; t < first + count; ++t) {
          queries.push_back(q.row(t));
          const std::vector<float> row = whole.row(t);
          got.insert(got.end(), row.begin(), row.end());
        }
        TestMatrix some = TestMatrix::of(queries);
        const TestMatrix want =
            attend(reference, some, plain.weight, shape,
                   {{0, count, kBefore + first, cache.block_table(0), MlaForm::kExpanded}}, cache);
        EXPECT_LE(nmse(got, want.values()), attention_bound(name)) << "from token " << first;
      }
      if (tile_planes(name, format) == 0) continue;  // only tiles share expansions
      const TestMatrix cut = attend_pieces({1500, 2000, 700, kTokens - 4200});
      EXPECT_TRUE(same_bits(cut.values(), whole.values()));
    }
  }
}

// Scores of +-1e4 and more overflow exp without the running maximum. Queries, keys and values are
// small integers times powers of 2, and so are products and sums exact; scores differ by 256 or
// not at all: a result is the mean of the values with the largest score.
TEST(MlaAttention, LargeScoresDoNotOverflow) {
  const MlaShape shape{2, 40, 20, 6, 12, 0.25f};
  constexpr int64_t kContext = 260;
  std::mt19937 rng(80);
  const auto integer = [&rng] { return static_cast<float>(static_cast<int>(rng() % 17) - 8); };
  TestCache cache(DType::kF32, shape.entry_size(), 16, {kContext});
  for (int64_t p = 0; p < kContext; ++p) {
    float* const entry =
        static_cast<float*>(cache.view().data) + cache.view().entry_offset(cache.block_table(0), p);
    std::generate_n(entry, shape.entry_size(), integer);
  }
  TestMatrix q(kContext, shape.num_heads * shape.qk_head_dim());
  for (int64_t t = 0; t < kContext; ++t) {
    for (int64_t i = 0; i < q.cols(); ++i) q.at(t, i) = 1024 * integer();
  }
  std::vector<std::vector<float>> picks(
      static_cast<size_t>(shape.num_heads * (shape.qk_nope_head_dim + shape.v_head_dim)),
      std::vector<float>(static_cast<size_t>(shape.kv_lora_rank)));
  for (size_t r = 0; r < picks.size(); ++r) picks[r][7 * r % picks[r].size()] = 1;
  const TestWeight kv_b_proj = TestWeight::of(LinearFormat::kBf16, picks);
  expect_like_reference(q, kv_b_proj, shape, cache);
}

// Scores rise by some 2^20 from block to block, so that what was summed before must give way. All
// of queries, keys and values are BF16 numbers, which leaves the rounding of softmax weights.
TEST(MlaAttention, WhatWasSummedGivesWayToLargerScores) {
  const MlaShape shape{1, 2, 1, 2, 1, 1.0f};
  constexpr int64_t kContext = 1000;
  TestCache cache(DType::kBf16, shape.entry_size(), 16, {kContext});
  cache.fill(86);
  auto* const entries = static_cast<uint16_t*>(cache.view().data);
  for (int64_t p = 0; p < kContext; ++p) {
    uint16_t* const entry = entries + cache.view().entry_offset(cache.block_table(0), p);
    const int64_t eighth = p / 8;
    entry[0] = float_to_bf16(static_cast<float>(eighth) / 2);
    entry[1] = float_to_bf16(static_cast<float>(p % 13));
    entry[2] = entry[3] = 0;
  }
  TestMatrix q(kContext, 3);
  for (int64_t t = 0; t < kContext; ++t) {
    // Some fall instead.
    q.at(t, 0) = t % 3 == 0 ? -1.0f : 1.0f;
    q.at(t, 1) = q.at(t, 2) = 0;
  }
  const TestWeight kv_b_proj = TestWeight::of(LinearFormat::kBf16, {{1, 0}, {0, 1}});
  expect_like_reference(q, kv_b_proj, shape, cache);
}

TEST(MlaAttention, AmxHasTheBitsOfThePlainLoops) {
  if (detected_isa() < Isa::kAmx) GTEST_SKIP() << "no AMX here";
  CpuKernels amx(Isa::kAmx, 2);
  CpuKernels plain(Isa::kAvx512Vnni, 2, CpuKernels::kMoeScratchFloats, CpuActivations::kStandard,
                   &kTileIsaPortable);
  for (const MlaCase& c : mla_cases()) {
    SCOPED_TRACE(testing::PrintToString(c));
    const TestWeight kv_b_proj = random_kv_b_proj(c.format, c.shape, 87);
    MlaBatch batch(c);
    TestMatrix q =
        TestMatrix::random(MlaBatch::kTokens, c.shape.num_heads * c.shape.qk_head_dim(), 88);
    std::vector<std::vector<float>> results;
    for (CpuKernels* const kernels : {&amx, &plain}) {
      const PackedMlaUp packed = pack_mla_up_weight(*kernels, kv_b_proj, c.shape);
      results.push_back(
          attend(*kernels, q, packed.weight, c.shape, batch.segments, batch.cache).values());
    }
    EXPECT_TRUE(same_bits(results[0], results[1])) << nmse(results[0], results[1]);
  }
}

}  // namespace
}  // namespace nibble
