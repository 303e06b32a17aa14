// The kernels for few tokens that are not the reference's one by one: matrices cut over the whole
// GPU (linear_ring.cuh), and the router that chooses as soon as its sums are there (route.cu).
#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

#include "nibble/kernels/reference/reference_kernels.h"
#include "nibble/numeric/bf16.h"
#include "tests/cuda/host_side_cuda.h"
#include "tests/cuda/random_choices.h"
#include "tests/kernels/kernel_test_helpers.h"
#include "tests/kernels/mla_helpers.h"

namespace nibble {
namespace {

// Rows that begin on 16 bytes, or off them: the kernels read binary32 of few tokens where they may,
// and otherwise BF16 that was made before.
enum class Rows { kAligned, kOff };

TestMatrix random_rows(int64_t rows, int64_t cols, uint32_t seed, Rows alignment, bool rounded) {
  TestMatrix x(rows, cols, alignment == Rows::kAligned ? 8 : 5);
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal;
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < cols; ++c) {
      const float value = normal(rng);
      x.at(r, c) = rounded ? bf16_to_float(float_to_bf16(value)) : value;
    }
  }
  return x;
}

// Both sizes of blocks, a run of one tile and of many, chunks that are not full, several passes.
TEST(RingLinear, AgreesRepeatsAndKeepsARowsBits) {
  ReferenceKernels reference;
  const auto cuda = make_host_side_cuda(1);
  struct Shape {
    int64_t rows, cols;
  };
  for (const auto& [rows, cols] :
       {Shape{16, 4096}, {200, 4112}, {2112, 4480}, {7168, 4096}, {12800, 4096}}) {
    const TestWeight weight = TestWeight::random(LinearFormat::kNvfp4, rows, cols, 61);
    const PackedWeight plain = pack_weight(reference, weight);
    const PackedWeight packed = pack_weight(*cuda, weight);
    constexpr int64_t kMost = 20;  // two passes of 16
    TestMatrix x = random_rows(kMost, cols, 62, Rows::kOff, true);
    TestMatrix aligned = random_rows(kMost, cols, 62, Rows::kAligned, true);
    ASSERT_EQ(x.values(), aligned.values());
    TestMatrix want(kMost, rows);
    reference.linear(x.view(), plain.weight, want.view());
    TestMatrix all(kMost, rows);
    cuda->linear(x.view(), packed.weight, all.view());
    EXPECT_LE(nmse(all.values(), want.values()), 1e-11);
    EXPECT_TRUE(all.padding_intact());
    for (const int64_t tokens : {1, 3, 4, 8, 9, 16}) {
      for (TestMatrix* const source : {&x, &aligned}) {
        SCOPED_TRACE(testing::Message() << "[" << rows << ", " << cols << "] x " << tokens
                                        << (source == &x ? " as BF16" : " as they are"));
        TestMatrix got(tokens, rows);
        TestMatrix again(tokens, rows);
        cuda->linear(source->view().slice_rows(0, tokens), packed.weight, got.view());
        cuda->linear(source->view().slice_rows(0, tokens), packed.weight, again.view());
        EXPECT_TRUE(got.padding_intact());
        for (int64_t t = 0; t < tokens; ++t) {
          EXPECT_TRUE(same_bits(got.row(t), again.row(t))) << t;
          EXPECT_TRUE(same_bits(got.row(t), all.row(t))) << t;
        }
      }
    }
  }
}

struct Experts {
  int count, per_token;
  int64_t hidden, intermediate, tokens;
};

// Few experts and many, short matrices and long ones, experts with more rows than a launch takes at
// a time; in the order that is fastest and in the one that does not depend on the others.
TEST(RingMoe, AgreesAndRepeats) {
  ReferenceKernels reference;
  for (const Experts& s : {Experts{9, 3, 4096, 256, 1},
                           {9, 3, 4096, 272, 4},
                           {9, 3, 4224, 384, 40},
                           {70, 8, 512, 4096, 9},
                           {70, 8, 1040, 144, 30},
                           {40, 4, 4096, 512, 16}}) {
    SCOPED_TRACE(testing::Message() << s.count << " experts of " << s.hidden << " x "
                                    << s.intermediate << ", " << s.tokens << " tokens");
    std::vector<TestMlp> mlps;
    for (int e = 0; e <= s.count; ++e) {
      mlps.push_back(TestMlp::random(LinearFormat::kNvfp4, s.hidden, s.intermediate,
                                     static_cast<uint32_t>(70 + 3 * e)));
    }
    RouterShape shape;
    shape.n_routed_experts = s.count;
    shape.num_experts_per_tok = s.per_token;
    const auto [ids, weights] = random_choices(s.tokens, s.per_token, 0, s.count, 2, 71);
    TestMatrix x = random_rows(s.tokens, s.hidden, 72, Rows::kAligned, true);
    const auto run = [&](Kernels& kernels, int times, int64_t tokens) {
      std::vector<PackedMlp> packed;
      std::vector<MlpWeight> experts;
      for (const TestMlp& mlp : mlps) packed.push_back(pack_mlp(kernels, mlp));
      for (const PackedMlp& mlp : packed) experts.push_back(mlp.weight());
      const MlpWeight shared = experts.back();
      experts.pop_back();
      std::vector<TestMatrix> outs;
      for (int i = 0; i < times; ++i) {
        outs.emplace_back(tokens, s.hidden);
        kernels.moe(x.view().slice_rows(0, tokens), experts, &shared, shape, ids.data(),
                    weights.data(), outs.back().view());
      }
      return outs;
    };
    const std::vector<TestMatrix> want = run(reference, 1, s.tokens);
    for (const bool batch_invariant : {false, true}) {
      const auto cuda = make_host_side_cuda(1, batch_invariant);
      std::vector<TestMatrix> got = run(*cuda, 3, s.tokens);
      EXPECT_LE(nmse(got[0].values(), want[0].values()), 2.5e-5);
      EXPECT_TRUE(got[0].padding_intact());
      for (int64_t t = 0; t < s.tokens; ++t) {
        EXPECT_TRUE(same_bits(got[0].row(t), got[1].row(t))) << t;
        EXPECT_TRUE(same_bits(got[0].row(t), got[2].row(t))) << t;
      }
      if (!batch_invariant) continue;
      for (const int64_t tokens : {int64_t{1}, s.tokens / 2}) {
        if (tokens == 0) continue;
        const TestMatrix some = run(*cuda, 1, tokens)[0];
        for (int64_t t = 0; t < tokens; ++t) {
          EXPECT_TRUE(same_bits(some.row(t), got[0].row(t))) << t << " of " << tokens;
        }
      }
    }
  }
}

// R1's router, a narrow one, and one token more than the short way takes.
TEST(RouteFew, ChoosesWhatTheReferenceChooses) {
  ReferenceKernels reference;
  const auto cuda = make_host_side_cuda(1);
  struct Router {
    int experts, per_token, groups, topk_group;
    int64_t hidden;
  };
  for (const Router& r : {Router{256, 8, 8, 4, 7168}, {16, 4, 4, 2, 128}, {64, 6, 1, 1, 1280}}) {
    const TestWeight gate = TestWeight::random(LinearFormat::kBf16, r.experts, r.hidden, 81);
    const PackedWeight plain = pack_weight(reference, gate);
    const PackedWeight packed = pack_weight(*cuda, gate);
    RouterShape shape;
    shape.n_routed_experts = r.experts;
    shape.num_experts_per_tok = r.per_token;
    shape.n_group = r.groups;
    shape.topk_group = r.topk_group;
    shape.routed_scaling_factor = 2.5f;
    std::vector<float> bias;
    std::mt19937 rng(82);
    for (int e = 0; e < r.experts; ++e) bias.push_back(static_cast<float>(rng() % 100) / 1000);
    for (const int64_t tokens : {1, 2, 8, 9, 3}) {
      SCOPED_TRACE(testing::Message() << r.experts << " experts, " << tokens << " tokens");
      TestMatrix x =
          random_rows(tokens, r.hidden, 83 + static_cast<uint32_t>(tokens), Rows::kAligned, false);
      const auto count = static_cast<size_t>(tokens * r.per_token);
      const auto route = [&](Kernels& kernels, const PackedWeight& weight) {
        std::pair<std::vector<int32_t>, std::vector<float>> routed{std::vector<int32_t>(count, -1),
                                                                   std::vector<float>(count)};
        kernels.route(x.view(), weight.weight, bias.data(), shape, routed.first.data(),
                      routed.second.data());
        return routed;
      };
      const auto want = route(reference, plain);
      const auto got = route(*cuda, packed);
      EXPECT_EQ(got.first, want.first);
      for (size_t i = 0; i < count; ++i) EXPECT_NEAR(got.second[i], want.second[i], 1e-5) << i;
      EXPECT_EQ(route(*cuda, packed), got);

      // Experts without a number come last.
      for (const float bad : {NAN, INFINITY, -INFINITY}) {
        x.at(tokens - 1, 3) = bad;
        EXPECT_EQ(route(*cuda, packed).first, route(reference, plain).first) << bad;
      }
    }
  }
}

// A recorded batch is filled up with copies of its last token, whose bits may differ: what stays in
// the cache is the token's own.
TEST(MlaCacheWriteOnCuda, ACopyOfTheTokenInFrontWritesNothing) {
  const auto cuda = make_host_side_cuda(1);
  const MlaShape shape = real_mla_shape(1);
  const TestRope rope(100, 32);
  const std::vector<float> layernorm(static_cast<size_t>(shape.kv_lora_rank), 1);
  TestMatrix kv_a = TestMatrix::random(3, shape.entry_size(), 91);
  TestCache want(DType::kBf16, shape.entry_size(), 32, {70});
  TestCache got(DType::kBf16, shape.entry_size(), 32, {70});
  const AttentionSegment one[] = {{0, 1, 66, want.block_table(0), MlaForm::kAbsorbed}};
  cuda->mla_cache_write(kv_a.view().slice_rows(0, 1), layernorm.data(), 1e-6f, shape, rope.table(),
                        {1, one}, want.view());
  const AttentionSegment copies[] = {{0, 1, 66, got.block_table(0), MlaForm::kAbsorbed},
                                     {1, 1, 66, got.block_table(0), MlaForm::kAbsorbed},
                                     {2, 1, 66, got.block_table(0), MlaForm::kAbsorbed}};
  cuda->mla_cache_write(kv_a.view(), layernorm.data(), 1e-6f, shape, rope.table(), {3, copies},
                        got.view());
  EXPECT_EQ(got.entry(0, 66), want.entry(0, 66));
}

}  // namespace
}  // namespace nibble
