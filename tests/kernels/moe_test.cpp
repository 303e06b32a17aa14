#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <random>

#include "nibble/kernels/cpu/cpu_kernels.h"
#include "nibble/kernels/reference/reference_kernels.h"
#include "tests/kernels/backends.h"
#include "tests/kernels/kernel_test_helpers.h"

namespace nibble {
namespace {

// A mixture with its weights in one backend's memory.
struct PackedMoe {
  std::vector<PackedMlp> experts;
  PackedMlp shared;
  std::vector<MlpWeight> weights;
  MlpWeight shared_weight;
};

struct TestMoe {
  TestMoe(LinearFormat format, int num_experts, int per_token, int64_t hidden, int64_t intermediate,
          int64_t shared_intermediate) {
    shape.n_routed_experts = num_experts;
    shape.num_experts_per_tok = per_token;
    for (int e = 0; e < num_experts; ++e) {
      experts.push_back(
          TestMlp::random(format, hidden, intermediate, static_cast<uint32_t>(100 + 3 * e)));
    }
    shared = TestMlp::random(format, hidden, shared_intermediate, 7);
  }

  PackedMoe pack(Kernels& kernels, ActivationFormat activation = kAsIs) const {
    PackedMoe packed;
    for (const TestMlp& expert : experts) {
      packed.experts.push_back(pack_mlp(kernels, expert, activation));
      packed.weights.push_back(packed.experts.back().weight());
    }
    packed.shared = pack_mlp(kernels, shared, activation);
    packed.shared_weight = packed.shared.weight();
    return packed;
  }

  // Distinct experts for each token, and weights.
  void choose(int64_t tokens, uint32_t seed) {
    std::mt19937 rng(seed);
    ids.clear();
    weights.clear();
    for (int64_t t = 0; t < tokens; ++t) {
      std::vector<int32_t> order(static_cast<size_t>(shape.n_routed_experts));
      std::iota(order.begin(), order.end(), 0);
      std::shuffle(order.begin(), order.end(), rng);
      for (int j = 0; j < shape.num_experts_per_tok; ++j) {
        ids.push_back(order[static_cast<size_t>(j)]);
        weights.push_back(0.1f + static_cast<float>(rng() % 1000) / 1000);
      }
    }
  }

  TestMatrix run(Kernels& kernels, TestMatrix& x, const PackedMoe& packed, bool with_shared) const {
    TestMatrix out(x.rows(), x.cols());
    kernels.moe(x.view(), packed.weights, with_shared ? &packed.shared_weight : nullptr, shape,
                ids.data(), weights.data(), out.view());
    return out;
  }

  RouterShape shape;
  std::vector<TestMlp> experts;
  TestMlp shared;
  std::vector<int32_t> ids;
  std::vector<float> weights;
};

// By hand, one element wide: expert e is down_e * silu(100) * up, and silu(100) = 100 in binary32.
TEST(Moe, AddsWeightedExpertsAndTheSharedOne) {
  TestMoe moe(LinearFormat::kF32, 3, 2, 1, 1, 1);
  const auto expert = [](float down) {
    return TestMlp{TestWeight::of(LinearFormat::kF32, {{100}}),
                   TestWeight::of(LinearFormat::kF32, {{1}}),
                   TestWeight::of(LinearFormat::kF32, {{down}})};
  };
  moe.experts = {expert(1), expert(10), expert(100)};
  moe.shared = expert(1000);
  moe.ids = {2, 0, 1, 2};
  moe.weights = {0.5f, 2, 1, 0.25f};
  for (const auto& [name, kernels] : all_backends()) {
    SCOPED_TRACE(name);
    const PackedMoe packed = moe.pack(*kernels);
    TestMatrix x = TestMatrix::of({{1}, {1}});
    TestMatrix with = moe.run(*kernels, x, packed, true);
    EXPECT_EQ(with.at(0, 0), 0.5f * 10000 + 2 * 100 + 100000);
    EXPECT_EQ(with.at(1, 0), 1000 + 0.25f * 10000 + 100000);
    TestMatrix without = moe.run(*kernels, x, packed, false);
    EXPECT_EQ(without.at(0, 0), 5200);
    EXPECT_EQ(without.at(1, 0), 3500);
  }
}

TEST(Moe, EveryBackendAgreesWithTheReference) {
  ReferenceKernels reference;
  const auto backends = available_backends();
  for (const LinearFormat format : {LinearFormat::kBf16, LinearFormat::kNvfp4}) {
    TestMoe moe(format, 9, 3, 80, 48, 144);
    const PackedMoe plain = moe.pack(reference);
    for (const int64_t tokens : {1, 2, 7, 70}) {
      moe.choose(tokens, 111);
      TestMatrix x = TestMatrix::random(tokens, 80, 112);
      for (const bool with_shared : {false, true}) {
        const TestMatrix want = moe.run(reference, x, plain, with_shared);
        for (const auto& [name, kernels] : backends) {
          SCOPED_TRACE(testing::Message() << name << " " << format_name(format) << " " << tokens);
          const PackedMoe packed = moe.pack(*kernels);
          TestMatrix nan(tokens, 80);
          moe.run(*kernels, nan, packed, with_shared);  // leaves NaN in scratch
          const TestMatrix got = moe.run(*kernels, x, packed, with_shared);
          EXPECT_LE(nmse(got.values(), want.values()),
                    std::max(1.5 * rounding_bound(name, format), 1e-11));
          EXPECT_TRUE(got.padding_intact());
        }
      }
    }
  }
}

TEST(Moe, AllTokensMayChooseTheSameExperts) {
  ReferenceKernels reference;
  TestMoe moe(LinearFormat::kNvfp4, 4, 2, 48, 32, 32);
  moe.choose(1, 113);
  const PackedMoe plain = moe.pack(reference);
  for (int t = 1; t < 600; ++t) {  // more than one run of an expert
    moe.ids.push_back(moe.ids[0]);
    moe.ids.push_back(moe.ids[1]);
    moe.weights.push_back(0.5f);
    moe.weights.push_back(static_cast<float>(t));
  }
  TestMatrix x = TestMatrix::random(600, 48, 114);
  const TestMatrix want = moe.run(reference, x, plain, true);
  for (const auto& [name, kernels] : available_backends()) {
    SCOPED_TRACE(name);
    const PackedMoe packed = moe.pack(*kernels);
    EXPECT_LE(nmse(moe.run(*kernels, x, packed, true).values(), want.values()),
              std::max(1.5 * rounding_bound(name, LinearFormat::kNvfp4), 1e-11));
  }
}

TEST(Moe, ATokensBitsDoNotDependOnTheBatchOrTheThreads) {
  TestMoe moe(LinearFormat::kNvfp4, 8, 3, 80, 144, 48);
  const auto single = cpu_backends(1);
  for (const int threads : {1, 2, 4}) {
    const auto backends = cpu_backends(threads);
    for (size_t b = 0; b < backends.size(); ++b) {
      for (const ActivationFormat activation : {kAsIs, kW4A4}) {
        SCOPED_TRACE(testing::Message() << backends[b].name << " " << threads);
        const PackedMoe packed = moe.pack(*single[b].kernels, activation);
        moe.choose(60, 115);
        TestMatrix x = TestMatrix::random(60, 80, 116);
        const TestMatrix batch = moe.run(*backends[b].kernels, x, packed, true);
        for (int64_t t = 0; t < 60; t += 7) {
          TestMoe one = moe;
          one.ids.assign(moe.ids.begin() + 3 * t, moe.ids.begin() + 3 * t + 3);
          one.weights.assign(moe.weights.begin() + 3 * t, moe.weights.begin() + 3 * t + 3);
          TestMatrix row = TestMatrix::of({x.row(t)});
          EXPECT_TRUE(
              same_bits(one.run(*single[b].kernels, row, packed, true).row(0), batch.row(t)))
              << t;
        }
      }
    }
  }
}

// With little scratch memory the tokens go in many passes, at worst one by one.
TEST(Moe, PassesLeaveNoTrace) {
  TestMoe moe(LinearFormat::kNvfp4, 8, 3, 80, 144, 48);
  moe.choose(50, 118);
  TestMatrix x = TestMatrix::random(50, 80, 119);
  CpuKernels whole(detected_isa(), 2);
  const PackedMoe packed = moe.pack(whole);
  const TestMatrix want = moe.run(whole, x, packed, true);
  for (const int64_t scratch_floats : {1, 5000, 30000}) {
    SCOPED_TRACE(scratch_floats);
    CpuKernels passes(detected_isa(), 2, scratch_floats);
    EXPECT_TRUE(same_bits(moe.run(passes, x, packed, true).values(), want.values()));
  }
}

// Experts multiply their output, so an expert that produces NaN spoils only the tokens it serves.
TEST(Moe, ABrokenExpertSpoilsOnlyItsOwnTokens) {
  TestMoe moe(LinearFormat::kF32, 4, 2, 16, 16, 16);
  const float nan = NAN;
  std::memcpy(moe.experts[3].down.data.data(), &nan, sizeof(nan));
  moe.ids = {0, 1, 2, 3, 1, 2};
  moe.weights = {1, 1, 1, 1, 1, 1};
  for (const auto& [name, kernels] : all_backends()) {
    SCOPED_TRACE(name);
    const PackedMoe packed = moe.pack(*kernels);
    TestMatrix x = TestMatrix::random(3, 16, 117);
    TestMatrix out = moe.run(*kernels, x, packed, true);
    EXPECT_FALSE(std::isnan(out.at(0, 0)));
    EXPECT_TRUE(std::isnan(out.at(1, 0)));
    EXPECT_FALSE(std::isnan(out.at(2, 0)));
  }
}

}  // namespace
}  // namespace nibble
