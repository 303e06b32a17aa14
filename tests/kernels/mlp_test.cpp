#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "nibble/kernels/reference/reference_kernels.h"
#include "tests/kernels/backends.h"
#include "tests/kernels/kernel_test_helpers.h"

namespace nibble {
namespace {

TestMatrix mlp_of(Kernels& kernels, TestMatrix& x, const PackedMlp& packed) {
  TestMatrix out(x.rows(), packed.down.weight.rows);
  kernels.mlp(x.view(), packed.weight(), out.view());
  return out;
}

// Two roundings in a row.
double mlp_bound(const std::string& backend, LinearFormat format) {
  return std::max(1.5 * rounding_bound(backend, format), 1e-11);
}

// By hand: gate (ln 3, 0) x = ln 3, silu(ln 3) = ln 3 / (1 + 1/3) = 3/4 ln 3; up x = 2; down 4.
TEST(Mlp, IsDownOfSiluOfGateTimesUp) {
  const float ln3 = std::log(3.0f);
  TestMlp mlp{TestWeight::of(LinearFormat::kF32, {{ln3, 0}}),
              TestWeight::of(LinearFormat::kF32, {{0, 2}}),
              TestWeight::of(LinearFormat::kF32, {{4}, {-1}})};
  for (const auto& [name, kernels] : all_backends()) {
    SCOPED_TRACE(name);
    const PackedMlp packed = pack_mlp(*kernels, mlp);
    TestMatrix x = TestMatrix::of({{1, 1}});
    TestMatrix out = mlp_of(*kernels, x, packed);
    EXPECT_FLOAT_EQ(out.at(0, 0), 6 * ln3);
    EXPECT_FLOAT_EQ(out.at(0, 1), -1.5f * ln3);
    EXPECT_TRUE(out.padding_intact());
  }
}

TEST(Mlp, EveryBackendAgreesWithTheReference) {
  ReferenceKernels reference;
  const auto backends = available_backends();
  for (const LinearFormat format :
       {LinearFormat::kF32, LinearFormat::kBf16, LinearFormat::kFp8Block, LinearFormat::kNvfp4}) {
    for (const auto& [hidden, intermediate] :
         {std::pair<int64_t, int64_t>{48, 16}, {144, 272}, {320, 400}}) {
      const TestMlp mlp = TestMlp::random(format, hidden, intermediate, 91);
      const PackedMlp plain = pack_mlp(reference, mlp);
      for (const int64_t tokens : {1, 3, 17, 70}) {
        TestMatrix x = TestMatrix::random(tokens, hidden, 92, 2);
        const TestMatrix want = mlp_of(reference, x, plain);
        for (const auto& [name, kernels] : backends) {
          SCOPED_TRACE(testing::Message() << name << " " << format_name(format) << " " << hidden
                                          << " x " << intermediate << " x " << tokens);
          const PackedMlp packed = pack_mlp(*kernels, mlp);
          TestMatrix nan(tokens, hidden);
          mlp_of(*kernels, nan, packed);  // leaves NaN in scratch
          const TestMatrix got = mlp_of(*kernels, x, packed);
          EXPECT_LE(nmse(got.values(), want.values()), mlp_bound(name, format));
          EXPECT_TRUE(got.padding_intact());
        }
      }
    }
  }
}

// Quantizing the product can turn a last-place difference into a step of a code, so the bound holds
// for the product that the backend itself made: nearly all rows agree closely, and none is far off.
TEST(Mlp, QuantizesTheProductWhereDownAsksForIt) {
  ReferenceKernels reference;
  const TestMlp mlp = TestMlp::random(LinearFormat::kNvfp4, 144, 272, 93);
  const PackedMlp plain = pack_mlp(reference, mlp, kW4A4);
  const PackedMlp unquantized = pack_mlp(reference, mlp);
  TestMatrix x = TestMatrix::random(40, 144, 94);
  const TestMatrix want = mlp_of(reference, x, plain);
  ASSERT_GE(nmse(mlp_of(reference, x, unquantized).values(), want.values()), 1e-4);
  for (const auto& [name, kernels] : available_backends()) {
    SCOPED_TRACE(name);
    const PackedMlp packed = pack_mlp(*kernels, mlp, kW4A4);
    const TestMatrix got = mlp_of(*kernels, x, packed);
    int close = 0;
    for (int64_t t = 0; t < 40; ++t) close += nmse(got.row(t), want.row(t)) <= 1e-10;
    EXPECT_GE(close, 38);
    EXPECT_LE(nmse(got.values(), want.values()), 1e-5);
  }
}

// gate and up may come with different input scales.
TEST(Mlp, GateAndUpMayQuantizeTheirInputDifferently) {
  ReferenceKernels reference;
  TestMlp mlp = TestMlp::random(LinearFormat::kNvfp4, 64, 32, 95);
  mlp.up.host.input_scale *= 3;
  TestMatrix x = TestMatrix::random(9, 64, 96);
  const auto pack = [&](Kernels& kernels) {
    return PackedMlp{pack_weight(kernels, mlp.gate, kW4A4), pack_weight(kernels, mlp.up, kW4A4),
                     pack_weight(kernels, mlp.down)};
  };
  const PackedMlp plain = pack(reference);
  const TestMatrix want = mlp_of(reference, x, plain);
  for (const auto& [name, kernels] : available_backends()) {
    SCOPED_TRACE(name);
    const PackedMlp packed = pack(*kernels);
    EXPECT_LE(nmse(mlp_of(*kernels, x, packed).values(), want.values()),
              mlp_bound(name, LinearFormat::kNvfp4));
  }
}

// Each format has its own form of activations.
TEST(Mlp, GateUpAndDownMayDifferInFormat) {
  ReferenceKernels reference;
  TestMatrix x = TestMatrix::random(9, 128, 96);
  const LinearFormat formats[] = {LinearFormat::kNvfp4, LinearFormat::kBf16,
                                  LinearFormat::kFp8Block};
  for (const LinearFormat gate : formats) {
    for (const LinearFormat up : formats) {
      SCOPED_TRACE(testing::Message() << static_cast<int>(gate) << " " << static_cast<int>(up));
      TestMlp mlp = TestMlp::random(gate, 128, 256, 95);
      mlp.up = TestMlp::random(up, 128, 256, 97).up;
      const TestMatrix want = mlp_of(reference, x, pack_mlp(reference, mlp));
      for (const auto& [name, kernels] : available_backends()) {
        SCOPED_TRACE(name);
        EXPECT_LE(nmse(mlp_of(*kernels, x, pack_mlp(*kernels, mlp)).values(), want.values()),
                  mlp_bound(name, LinearFormat::kNvfp4));
      }
    }
  }
}

TEST(Mlp, ARowHasTheSameBitsInAnyBatchAndWithAnyNumberOfThreads) {
  const TestMlp mlp = TestMlp::random(LinearFormat::kNvfp4, 144, 272, 97);
  const auto single = cpu_backends(1);
  for (const int threads : {1, 2, 3}) {
    const auto backends = cpu_backends(threads);
    for (size_t b = 0; b < backends.size(); ++b) {
      for (const ActivationFormat activation : {kAsIs, kW4A4}) {
        SCOPED_TRACE(testing::Message() << backends[b].name << " " << threads);
        const PackedMlp packed = pack_mlp(*single[b].kernels, mlp, activation);
        TestMatrix x = TestMatrix::random(600, 144, 98);  // more than one chunk
        const TestMatrix batch = mlp_of(*backends[b].kernels, x, packed);
        for (const int64_t t : {0, 5, 300, 511, 512, 599}) {
          TestMatrix one = TestMatrix::of({x.row(t)});
          EXPECT_TRUE(same_bits(mlp_of(*single[b].kernels, one, packed).row(0), batch.row(t))) << t;
        }
      }
    }
  }
}

// With tiles, several groups of gate's and up's outputs are one task.
TEST(Mlp, WideOnesHaveTheSameBitsInAnyTasks) {
  const TestMlp mlp = TestMlp::random(LinearFormat::kNvfp4, 288, 1040, 99);
  TestMatrix x = TestMatrix::random(50, 288, 100);
  const auto few = cpu_backends(8);
  const auto single = cpu_backends(1);
  for (size_t b = 0; b < single.size(); ++b) {
    SCOPED_TRACE(single[b].name);
    const PackedMlp packed = pack_mlp(*single[b].kernels, mlp);
    const TestMatrix got = mlp_of(*single[b].kernels, x, packed);
    EXPECT_TRUE(same_bits(got.values(), mlp_of(*few[b].kernels, x, packed).values()));
    for (const int64_t t : {0, 31, 49}) {
      TestMatrix one = TestMatrix::of({x.row(t)});
      EXPECT_TRUE(same_bits(mlp_of(*single[b].kernels, one, packed).row(0), got.row(t))) << t;
    }
  }
}

}  // namespace
}  // namespace nibble
