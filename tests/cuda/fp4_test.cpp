// What Blackwell's NVFP4 products need: their operands (on any GPU), and W4A4 on tensor cores as
// that level takes it. The latter run with NIBBLE_CUDA_LEVEL=100, which CTest and tools/gpu_run.sh
// give; cuBLASLt's own product runs on Blackwell alone, elsewhere its refusal is what is tested.
#include "nibble/numeric/fp4.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "nibble/kernels/cuda/cuda_level.h"
#include "nibble/kernels/cuda/fp4_operands.h"
#include "nibble/kernels/reference/reference_kernels.h"
#include "nibble/numeric/bf16.h"
#include "nibble/numeric/fp8.h"
#include "nibble/numeric/nvfp4.h"
#include "tests/cuda/host_side_cuda.h"
#include "tests/cuda/random_choices.h"
#include "tests/kernels/kernel_test_helpers.h"

namespace nibble {
namespace {

// Bytes that host and GPU both see, 0xee to begin with.
Buffer shared_bytes(Kernels& kernels, int64_t bytes) {
  Buffer buffer = kernels.device().allocate(static_cast<size_t>(bytes)).value();
  std::fill_n(buffer.as<uint8_t>(), bytes, uint8_t{0xee});
  return buffer;
}

// Block scales of every kind, the smallest and 0 among them; a width that is no multiple of a unit.
TEST(Fp4Operands, WeightsAreTheCheckpointsCodesWithSwizzledScales) {
  const auto cuda = make_host_side_cuda(1);
  for (const auto& [rows, cols] : {std::pair<int64_t, int64_t>{200, 336}, {128, 128}, {1, 16}}) {
    SCOPED_TRACE(testing::Message() << rows << " x " << cols);
    TestWeight weight = TestWeight::random(LinearFormat::kNvfp4, rows, cols, 61);
    for (size_t i = 0; i < weight.scales.size(); ++i) {
      weight.scales[i] = static_cast<uint8_t>(i % 127);
    }
    weight.bind();
    const PackedWeight packed = pack_weight(*cuda, weight);
    const int64_t padded = (cols + 127) / 128 * 128;
    std::vector<uint8_t> codes(static_cast<size_t>(rows * padded / 2));
    std::vector<uint8_t> scales(static_cast<size_t>(rows * padded / 16));
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t block = 0; block < cols / 16; ++block) {
        const uint8_t scale = weight.scales[static_cast<size_t>(r * (cols / 16) + block)];
        scales[static_cast<size_t>(r * (padded / 16) + block)] = scale;
        if (scale == 0) continue;
        std::copy_n(weight.data.begin() + (r * cols + 16 * block) / 2, 8,
                    codes.begin() + (r * padded + 16 * block) / 2);
      }
    }
    const Buffer memory = shared_bytes(*cuda, cuda::Fp4Matrix::bytes(rows, padded));
    const auto matrix = cuda::Fp4Matrix::at(memory.as<uint8_t>(), rows, padded);
    ASSERT_EQ(cudaSuccess, cuda::launch_fp4_weight(packed.weight.data, matrix, nullptr));
    ASSERT_EQ(cudaSuccess, cudaDeviceSynchronize());
    EXPECT_EQ(codes, std::vector<uint8_t>(matrix.codes, matrix.codes + codes.size()));
    const std::vector<uint8_t> swizzled = swizzle_nvfp4_scales(scales, rows, padded / 16);
    EXPECT_EQ(swizzled, std::vector<uint8_t>(matrix.scales, matrix.scales + swizzled.size()));
  }
}

// Rows of magnitudes from far too small to beyond what input_scale can hold.
TestMatrix wide_activations(int64_t rows, int64_t cols) {
  TestMatrix x = TestMatrix::random(rows, cols, 62);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < cols; ++c) {
      x.at(r, c) *= std::ldexp(1.0f, static_cast<int>((7 * r + c / 16) % 34) - 20);
    }
  }
  return x;
}

TEST(Fp4Operands, ActivationsHaveTheCodesAndScalesOfTheDefinition) {
  constexpr int64_t kRows = 131;
  constexpr int64_t kCols = 200;  // the last block of a row is half empty
  constexpr int64_t kPadded = 256;
  constexpr float kInputScale = 0.0371f;
  const auto cuda = make_host_side_cuda(1);
  TestMatrix x = wide_activations(kRows, kCols);
  x.at(5, 100) = std::numeric_limits<float>::quiet_NaN();
  x.at(130, 199) = -std::numeric_limits<float>::infinity();
  const MatrixView view = x.view();
  std::vector<uint8_t> codes(kRows * kPadded / 2);
  std::vector<uint8_t> scales(kRows * kPadded / 16);
  std::vector<float> rounded(kRows * kPadded);
  for (int64_t r = 0; r < kRows; ++r) {
    for (int64_t block = 0; block < kPadded / 16; ++block) {
      std::array<float, 16> values{};
      for (int64_t i = 0; i < 16 && 16 * block + i < kCols; ++i) {
        values[static_cast<size_t>(i)] = x.at(r, 16 * block + i);
      }
      const auto made = quantize_nvfp4_activation_block(values, kInputScale);
      for (int64_t i = 0; i < 16; ++i) {
        float& value = rounded[static_cast<size_t>(r * kPadded + 16 * block + i)];
        value = std::numeric_limits<float>::quiet_NaN();
        if (!made) continue;
        const int byte = made->packed[static_cast<size_t>(i / 2)];
        value = kE2m1Values[i % 2 == 0 ? byte & 15 : byte >> 4] * kE4m3Values[made->scale];
      }
      if (!made) continue;  // codes and scale 0
      scales[static_cast<size_t>(r * (kPadded / 16) + block)] = made->scale;
      std::copy(made->packed.begin(), made->packed.end(),
                codes.begin() + (r * kPadded + 16 * block) / 2);
    }
  }

  const Buffer on_gpu = shared_bytes(*cuda, kRows * view.stride * 4);
  std::copy_n(view.row<float>(0), kRows * view.stride - 5, on_gpu.as<float>());
  const Buffer memory = shared_bytes(*cuda, cuda::Fp4Matrix::bytes(kRows, kPadded));
  const Buffer flags = shared_bytes(*cuda, kRows * 4);
  const auto matrix = cuda::Fp4Matrix::at(memory.as<uint8_t>(), kRows, kPadded);
  ASSERT_EQ(cudaSuccess,
            cuda::launch_fp4_quantize(on_gpu.as<float>(), kCols, view.stride, kInputScale, matrix,
                                      flags.as<int32_t>(), nullptr));
  ASSERT_EQ(cudaSuccess, cudaDeviceSynchronize());
  EXPECT_EQ(codes, std::vector<uint8_t>(matrix.codes, matrix.codes + codes.size()));
  const std::vector<uint8_t> swizzled = swizzle_nvfp4_scales(scales, kRows, kPadded / 16);
  EXPECT_EQ(swizzled, std::vector<uint8_t>(matrix.scales, matrix.scales + swizzled.size()));
  for (int64_t r = 0; r < kRows; ++r) {
    EXPECT_EQ(flags.as<int32_t>()[r] == 0, r == 5 || r == 130) << r;
  }

  const Buffer out = shared_bytes(*cuda, kRows * kPadded * 2);
  ASSERT_EQ(cudaSuccess,
            cuda::launch_nvfp4_round(on_gpu.as<float>(), kRows, kCols, view.stride, kInputScale,
                                     kPadded, out.as<uint16_t>(), nullptr));
  ASSERT_EQ(cudaSuccess, cudaDeviceSynchronize());
  for (int64_t i = 0; i < kRows * kPadded; ++i) {
    const float want = rounded[static_cast<size_t>(i)];
    const float got = bf16_to_float(out.as<uint16_t>()[i]);
    ASSERT_TRUE(std::isnan(want) ? std::isnan(got) : got == want)
        << i / kPadded << ", " << i % kPadded << ": " << got << " for " << want;
  }

  ASSERT_EQ(cudaSuccess, cuda::launch_spoil_rows(flags.as<int32_t>(), kRows, kCols,
                                                 on_gpu.as<float>(), view.stride, nullptr));
  ASSERT_EQ(cudaSuccess, cudaDeviceSynchronize());
  for (int64_t r = 0; r < kRows; ++r) {
    const bool spoiled = flags.as<int32_t>()[r] == 0;
    EXPECT_EQ(spoiled, std::isnan(on_gpu.as<float>()[r * view.stride])) << r;
  }
}

class W4a4OnTensorCores : public testing::Test {
 protected:
  void SetUp() override {
    if (!cuda::has_fp4_tensor_cores()) {
      GTEST_SKIP() << "runs with NIBBLE_CUDA_LEVEL=100, which has any GPU do as Blackwell would";
    }
  }
};

// One to many tokens, of which 130 and more are for cuBLASLt.
TEST_F(W4a4OnTensorCores, LinearsAgreeWithTheExactSum) {
  ReferenceKernels reference;
  const auto cuda = make_host_side_cuda(1);
  for (const auto& [rows, cols, tokens] : {std::array<int64_t, 3>{256, 512, 1},
                                           {100, 1040, 9},
                                           {64, 7168, 17},
                                           {300, 512, 130},
                                           {128, 1024, 256}}) {
    SCOPED_TRACE(testing::Message() << rows << " x " << cols << ", " << tokens << " tokens");
    TestWeight weight = TestWeight::random(LinearFormat::kNvfp4, rows, cols, 63);
    weight.host.input_scale = 0.0017f;
    const PackedWeight plain = pack_weight(reference, weight, kW4A4);
    const PackedWeight packed = pack_weight(*cuda, weight, kW4A4);
    TestMatrix x = TestMatrix::random(tokens, cols, 64);
    x.at(tokens - 1, 3) = std::numeric_limits<float>::infinity();
    TestMatrix want(tokens, rows);
    TestMatrix got(tokens, rows);
    reference.linear(x.view(), plain.weight, want.view());
    cuda->linear(x.view(), packed.weight, got.view());
    for (int64_t r = 0; r < rows; ++r) {
      EXPECT_TRUE(std::isnan(got.at(tokens - 1, r)) && std::isnan(want.at(tokens - 1, r)));
      got.at(tokens - 1, r) = want.at(tokens - 1, r) = 1;
    }
    EXPECT_LE(nmse(got.values(), want.values()), 1e-11);
    EXPECT_TRUE(got.padding_intact());
  }
}

TEST_F(W4a4OnTensorCores, ARowHasTheSameBitsInAnyBatch) {
  const auto cuda = make_host_side_cuda(1, true);
  const TestWeight weight = TestWeight::random(LinearFormat::kNvfp4, 200, 1040, 65);
  const PackedWeight packed = pack_weight(*cuda, weight, kW4A4);
  TestMatrix x = TestMatrix::random(140, 1040, 66);
  TestMatrix all(140, 200);
  cuda->linear(x.view(), packed.weight, all.view());
  for (const int64_t tokens : {1, 8, 17}) {
    TestMatrix some(tokens, 200);
    cuda->linear(x.view().slice_rows(140 - tokens, tokens), packed.weight, some.view());
    for (int64_t i = 0; i < tokens; ++i) {
      EXPECT_TRUE(same_bits(some.row(i), all.row(140 - tokens + i))) << tokens << " " << i;
    }
  }
}

// A code of the product of gate and up may fall on the other side of a midpoint where their sums
// differ in the last bit: 1e-6 allows a few.
TEST_F(W4a4OnTensorCores, ExpertsAgreeWithTheReference) {
  ReferenceKernels reference;
  const auto cuda = make_host_side_cuda(1);
  constexpr int kExperts = 7;
  constexpr int kEach = 3;
  struct Case {
    int64_t hidden, intermediate, tokens;
  };
  for (const Case& c : {Case{256, 384, 1}, {1040, 144, 5}, {256, 1024, 40}, {512, 256, 300}}) {
    const int64_t hidden = c.hidden;
    const int64_t tokens = c.tokens;
    SCOPED_TRACE(testing::Message() << hidden << " x " << c.intermediate << ", " << tokens);
    std::vector<TestMlp> mlps;
    for (int e = 0; e <= kExperts; ++e) {
      mlps.push_back(TestMlp::random(LinearFormat::kNvfp4, hidden, c.intermediate,
                                     static_cast<uint32_t>(70 + 3 * e)));
      mlps.back().gate.host.input_scale = 0.002f;
      mlps.back().up.host.input_scale = c.intermediate == 144 ? 0.003f : 0.002f;
      mlps.back().down.host.input_scale = 0.0011f;
    }
    RouterShape shape;
    shape.n_routed_experts = kExperts;
    shape.num_experts_per_tok = kEach;
    const RandomChoices choices = random_choices(tokens, kEach, 1, kExperts, 1, 67);
    TestMatrix x = TestMatrix::random(tokens, hidden, 68);
    const auto run = [&](Kernels& kernels) {
      std::vector<PackedMlp> packed;
      std::vector<MlpWeight> experts;
      packed.reserve(mlps.size());
      experts.reserve(mlps.size());
      for (const TestMlp& mlp : mlps) packed.push_back(pack_mlp(kernels, mlp, kW4A4));
      for (const PackedMlp& mlp : packed) experts.push_back(mlp.weight());
      const MlpWeight shared = experts.back();
      experts.pop_back();
      TestMatrix out(tokens, hidden);
      kernels.moe(x.view(), experts, &shared, shape, choices.ids.data(), choices.weights.data(),
                  out.view());
      return out;
    };
    TestMatrix want = run(reference);
    TestMatrix got = run(*cuda);
    EXPECT_LE(nmse(got.values(), want.values()), 1e-6);
    EXPECT_TRUE(got.padding_intact());
  }
}

}  // namespace
}  // namespace nibble
