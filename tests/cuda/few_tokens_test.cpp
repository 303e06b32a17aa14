// The kernels for few tokens that are not the reference's one by one: matrices cut over the whole
// GPU (linear_ring.cuh), and the router that chooses as soon as its sums are there (route.cu).
#include <gtest/gtest.h>

#include <random>
#include <set>
#include <vector>

#include "nibble/kernels/reference/reference_kernels.h"
#include "nibble/numeric/bf16.h"
#include "tests/cuda/host_side_cuda.h"
#include "tests/kernels/kernel_test_helpers.h"

namespace nibble {
namespace {

TestMatrix rounded_random(int64_t rows, int64_t cols, uint32_t seed) {
  TestMatrix x = TestMatrix::random(rows, cols, seed);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < cols; ++c) x.at(r, c) = bf16_to_float(float_to_bf16(x.at(r, c)));
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
    constexpr int64_t kMost = 20;
    TestMatrix x = rounded_random(kMost, cols, 62);
    TestMatrix want(3, rows);
    reference.linear(x.view().slice_rows(0, 3), plain.weight, want.view());
    TestMatrix all(kMost, rows);
    cuda->linear(x.view(), packed.weight, all.view());
    for (const int64_t tokens : {1, 3, 8, 9, 16}) {
      SCOPED_TRACE(testing::Message() << "[" << rows << ", " << cols << "] x " << tokens);
      TestMatrix got(tokens, rows);
      TestMatrix again(tokens, rows);
      cuda->linear(x.view().slice_rows(0, tokens), packed.weight, got.view());
      cuda->linear(x.view().slice_rows(0, tokens), packed.weight, again.view());
      EXPECT_TRUE(got.padding_intact());
      for (int64_t t = 0; t < tokens; ++t) {
        EXPECT_TRUE(same_bits(got.row(t), again.row(t))) << t;
        EXPECT_TRUE(same_bits(got.row(t), all.row(t))) << t;
      }
      if (tokens == 3) {
        EXPECT_LE(nmse(got.values(), want.values()), 1e-11);
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
    std::mt19937 rng(71);
    std::vector<int32_t> ids;
    std::vector<float> weights;
    for (int64_t t = 0; t < s.tokens; ++t) {
      std::set<int32_t> chosen = {2};  // all tokens
      while (static_cast<int>(chosen.size()) < s.per_token) {
        chosen.insert(static_cast<int32_t>(rng() % static_cast<unsigned>(s.count)));
      }
      ids.insert(ids.end(), chosen.begin(), chosen.end());
      for (int j = 0; j < s.per_token; ++j) {
        weights.push_back(0.1f + static_cast<float>(rng() % 1000) / 1000);
      }
    }
    TestMatrix x = rounded_random(s.tokens, s.hidden, 72);
    const auto run = [&](Kernels& kernels, int times) {
      std::vector<PackedMlp> packed;
      std::vector<MlpWeight> experts;
      for (const TestMlp& mlp : mlps) packed.push_back(pack_mlp(kernels, mlp));
      for (const PackedMlp& mlp : packed) experts.push_back(mlp.weight());
      const MlpWeight shared = experts.back();
      experts.pop_back();
      std::vector<TestMatrix> outs;
      for (int i = 0; i < times; ++i) {
        outs.emplace_back(s.tokens, s.hidden);
        kernels.moe(x.view(), experts, &shared, shape, ids.data(), weights.data(),
                    outs.back().view());
      }
      return outs;
    };
    const std::vector<TestMatrix> want = run(reference, 1);
    for (const bool batch_invariant : {false, true}) {
      const auto cuda = make_host_side_cuda(1, batch_invariant);
      std::vector<TestMatrix> got = run(*cuda, 3);
      EXPECT_LE(nmse(got[0].values(), want[0].values()), 2.5e-5);
      EXPECT_TRUE(got[0].padding_intact());
      for (int64_t t = 0; t < s.tokens; ++t) {
        EXPECT_TRUE(same_bits(got[0].row(t), got[1].row(t))) << t;
        EXPECT_TRUE(same_bits(got[0].row(t), got[2].row(t))) << t;
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
      TestMatrix x = TestMatrix::random(tokens, r.hidden, 83 + static_cast<uint32_t>(tokens));
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
    }
  }
}

}  // namespace
}  // namespace nibble
