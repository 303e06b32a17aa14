// NVFP4 beyond the golden vectors: refusals, properties that hold for any input, and the facts that
// kernels rely on, enumerated.
#include "nibble/numeric/nvfp4.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>
#include <random>

#include "nibble/numeric/bf16.h"
#include "nibble/numeric/fp4.h"
#include "nibble/numeric/fp8.h"
#include "nibble/numeric/nvfp4_exact_dot.h"
#include "nibble/numeric/nvfp4_swizzle.h"

namespace nibble {
namespace {

constexpr Nvfp4Mode kModes[] = {Nvfp4Mode::kMax, Nvfp4Mode::kFourOverSix, Nvfp4Mode::kMse};

std::vector<float> gaussian(size_t count, uint32_t seed, float deviation) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal(0.0f, deviation);
  std::vector<float> values(count);
  for (float& v : values) v = round_to_bf16(normal(rng));
  return values;
}

std::vector<float> dequantized(const Nvfp4Tensor& tensor) {
  std::vector<float> out(static_cast<size_t>(tensor.rows * tensor.cols));
  EXPECT_TRUE(dequantize_nvfp4_rows(tensor.packed.data(), tensor.block_scales.data(),
                                    tensor.global_scale, tensor.rows, tensor.cols, out.data())
                  .has_value());
  return out;
}

double squared_distance(const std::vector<float>& a, const std::vector<float>& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += (double{a[i]} - b[i]) * (double{a[i]} - b[i]);
  return sum;
}

double signal_to_noise_db(const std::vector<float>& exact, const std::vector<float>& approximate) {
  return 10 * std::log10(squared_distance(exact, std::vector<float>(exact.size())) /
                         squared_distance(exact, approximate));
}

TEST(Nvfp4, ARampIsQuantizedAsWorkedByHand) {
  // amax 6 * 448 makes the global scale 1 and the first block's scale 448; the second block's is 1.
  std::vector<float> values(32, 0.0f);
  values[0] = 6 * 448;
  values[1] = -448;
  const float second[] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6, -0.5f, -1, -1.5f, -2, -3, -4, -6, -0.1f};
  std::copy(std::begin(second), std::end(second), values.begin() + 16);
  const auto tensor = quantize_nvfp4(values, 1, 32).value();
  EXPECT_EQ(tensor.global_scale, 1.0f);
  EXPECT_THAT(tensor.block_scales, testing::ElementsAre(0x7e, 0x38));
  EXPECT_THAT(tensor.packed, testing::ElementsAre(0xa7, 0, 0, 0, 0, 0, 0, 0,  //
                                                  0x10, 0x32, 0x54, 0x76, 0xa9, 0xcb, 0xed, 0x8f));
}

TEST(Nvfp4, TheGlobalScaleIsAmaxOver2688) {
  EXPECT_EQ(nvfp4_global_scale(2688).value(), 1.0f);
  EXPECT_EQ(nvfp4_global_scale(1536, Nvfp4Mode::kFourOverSix).value(), 1.0f);
  EXPECT_EQ(nvfp4_global_scale(0).value(), 6.0f / 2688.0f);
}

TEST(Nvfp4, AnAmaxThatMakesNoScaleIsRefused) {
  const float infinity = std::numeric_limits<float>::infinity();
  for (const float amax : {-1.0f, infinity, -infinity, std::nanf(""), 0x1p-149f}) {
    const auto scale = nvfp4_global_scale(amax);
    ASSERT_FALSE(scale.has_value()) << amax;
    EXPECT_EQ(scale.error().code, ErrorCode::kInvalidArgument);
    EXPECT_THAT(scale.error().message, testing::HasSubstr("amax"));
  }
}

TEST(Nvfp4, NanAndInfinityAreRefusedWhereverTheyStand) {
  for (const float bad : {std::nanf(""), std::numeric_limits<float>::infinity(),
                          -std::numeric_limits<float>::infinity()}) {
    for (const size_t place : {0u, 15u, 16u, 47u}) {
      std::vector<float> values(3 * 16, 1.0f);
      values[place] = bad;
      EXPECT_FALSE(nvfp4_amax(values).has_value());
      for (const Nvfp4Mode mode : kModes) {
        EXPECT_FALSE(quantize_nvfp4(values, 3, 16, mode).has_value());
        EXPECT_FALSE(quantize_nvfp4(values, 3, 16, mode, 1.0f).has_value());
      }
    }
  }
  std::vector<float> values(48, 1.0f);
  values[33] = std::nanf("");
  const auto tensor = quantize_nvfp4(values, 3, 16, Nvfp4Mode::kMax, 1.0f);
  EXPECT_THAT(tensor.error().message, testing::HasSubstr("row 2, columns 0 to 15"));
}

TEST(Nvfp4, ColumnsThatAreNotAMultipleOf16AreRefused) {
  const std::vector<float> values(24, 1.0f);
  const auto tensor = quantize_nvfp4(values, 1, 24);
  ASSERT_FALSE(tensor.has_value());
  EXPECT_THAT(tensor.error().message, testing::HasSubstr("24 columns"));
  std::vector<float> out(24);
  const std::vector<uint8_t> bytes(12);
  EXPECT_FALSE(dequantize_nvfp4_rows(bytes.data(), bytes.data(), 1, 1, 24, out.data()).has_value());
}

TEST(Nvfp4, AGlobalScaleThatIsNotPositiveAndFiniteIsRefused) {
  const std::vector<float> values(16, 1.0f);
  uint8_t packed[8];
  uint8_t scale = 0;
  for (const float bad : {0.0f, -1.0f, std::nanf(""), std::numeric_limits<float>::infinity()}) {
    EXPECT_FALSE(quantize_nvfp4_rows(values.data(), 1, 16, bad, Nvfp4Mode::kMax, packed, &scale)
                     .has_value());
    EXPECT_FALSE(quantize_nvfp4_activation_block(std::span<const float, 16>(values.data(), 16), bad)
                     .has_value());
  }
}

TEST(Nvfp4, AScaleProductThatUnderflowsIsRefused) {
  std::vector<float> values(32, 0.0f);
  values[0] = 0x1p-137f;  // global scale is 2^-148.4, stored as 2^-148 or 2^-149
  values[16] = 0x1p-149f;
  EXPECT_FALSE(quantize_nvfp4(values, 1, 32).has_value());
}

TEST(Nvfp4, BadBlockScalesAreRefusedWithTheirPlace) {
  const std::vector<uint8_t> packed(32);
  std::vector<float> out(64);
  for (const uint8_t bad : std::vector<uint8_t>{0x7f, 0x80, 0x81, 0xff}) {
    const std::vector<uint8_t> scales = {0x38, 0x00, 0x7e, bad};
    EXPECT_EQ(find_bad_block_scale(scales), 3u);
    const auto status = dequantize_nvfp4_rows(packed.data(), scales.data(), 1, 2, 32, out.data());
    ASSERT_FALSE(status.has_value());
    EXPECT_EQ(status.error().code, ErrorCode::kCorrupt);
    EXPECT_THAT(status.error().message, testing::HasSubstr("[1, 1]"));
  }
}

TEST(Nvfp4, QuantizingTheDequantizedValuesChangesNothing) {
  for (const uint32_t seed : {1u, 2u, 3u, 4u}) {
    const auto values = gaussian(64 * 128, seed, 0.02f * static_cast<float>(seed));
    const auto once = quantize_nvfp4(values, 64, 128).value();
    const auto restored = dequantized(once);
    const auto twice = quantize_nvfp4(restored, 64, 128).value();
    EXPECT_EQ(dequantized(twice), restored);
  }
}

TEST(Nvfp4, PowersOfTwoScaleThroughInEveryMode) {
  const auto values = gaussian(16 * 64, 5, 0.03f);
  for (const Nvfp4Mode mode : kModes) {
    const auto plain = quantize_nvfp4(values, 16, 64, mode).value();
    for (const int exponent : {-20, -1, 3, 30}) {
      std::vector<float> scaled = values;
      for (float& v : scaled) v = std::ldexp(v, exponent);
      const auto tensor = quantize_nvfp4(scaled, 16, 64, mode).value();
      EXPECT_EQ(tensor.packed, plain.packed);
      EXPECT_EQ(tensor.block_scales, plain.block_scales);
      EXPECT_EQ(tensor.global_scale, std::ldexp(plain.global_scale, exponent));
    }
  }
}

TEST(Nvfp4, NegatingTheInputNegatesTheOutput) {
  const auto values = gaussian(8 * 64, 6, 1.0f);
  auto negated = values;
  for (float& v : negated) v = -v;
  for (const Nvfp4Mode mode : kModes) {
    auto plain = dequantized(quantize_nvfp4(values, 8, 64, mode).value());
    const auto mirrored = dequantized(quantize_nvfp4(negated, 8, 64, mode).value());
    for (float& v : plain) v = -v;
    EXPECT_EQ(mirrored, plain);
  }
}

TEST(Nvfp4, ErrorsStayWithinHalfAStepOfTheBlockScale) {
  // Steps of E2M1 are at most 2 (between 4 and 6), so no error exceeds one block scale; E4M3 rounds
  // the scale itself by at most 1/16, so the largest value may saturate at 6 * 17/16.
  const auto values = gaussian(256 * 256, 7, 0.05f);
  const auto tensor = quantize_nvfp4(values, 256, 256).value();
  const auto restored = dequantized(tensor);
  for (size_t i = 0; i < values.size(); ++i) {
    const float step = kE4m3Values[tensor.block_scales[i / 16]] * tensor.global_scale;
    ASSERT_LE(std::fabs(values[i] - restored[i]), step * 1.0001f) << i;
    ASSERT_LE(std::fabs(restored[i]), 6 * step);
  }
}

TEST(Nvfp4, ModesThatSearchNeverDoWorseOnABlockThanTheirCandidates) {
  const auto values = gaussian(16 * 512, 8, 0.02f);
  const auto mse = quantize_nvfp4(values, 512, 16, Nvfp4Mode::kMse).value();
  const auto max = quantize_nvfp4(values, 512, 16, Nvfp4Mode::kMax).value();
  const auto from_mse = dequantized(mse);
  const auto from_max = dequantized(max);
  for (size_t b = 0; b < 512; ++b) {
    const auto block = [b](const std::vector<float>& v) {
      return std::vector<float>(v.begin() + static_cast<std::ptrdiff_t>(16 * b),
                                v.begin() + static_cast<std::ptrdiff_t>(16 * b + 16));
    };
    ASSERT_LE(squared_distance(block(values), block(from_mse)),
              squared_distance(block(values), block(from_max)));
  }
}

TEST(Nvfp4, SignalToNoiseOfGaussianWeightsIsTheKnownOne) {
  // Bands around the independent program's numbers for 128 x 2048 Gaussian weights.
  const auto values = gaussian(128 * 2048, 9, 0.02f);
  const double max =
      signal_to_noise_db(values, dequantized(quantize_nvfp4(values, 128, 2048).value()));
  const double four_over_six = signal_to_noise_db(
      values, dequantized(quantize_nvfp4(values, 128, 2048, Nvfp4Mode::kFourOverSix).value()));
  const double mse = signal_to_noise_db(
      values, dequantized(quantize_nvfp4(values, 128, 2048, Nvfp4Mode::kMse).value()));
  EXPECT_NEAR(max, 20.5, 0.3);
  EXPECT_NEAR(four_over_six, 21.2, 0.3);
  EXPECT_NEAR(mse, 21.8, 0.3);
}

TEST(Nvfp4Activation, ABlockTooSmallForAScaleBecomesZero) {
  // Below half of 2^-9 the scale rounds to 0; weights would be clamped up instead.
  std::vector<float> x(16, 0.0f);
  x[3] = 6 * 0x1p-11f;
  const auto block =
      quantize_nvfp4_activation_block(std::span<const float, 16>(x.data(), 16), 1.0f).value();
  EXPECT_EQ(block.scale, 0x00);
  EXPECT_THAT(block.packed, testing::Each(0));
  const auto weights = quantize_nvfp4_block(std::span<const float, 16>(x.data(), 16), 1.0f).value();
  EXPECT_EQ(weights.scale, 0x01);
}

TEST(Nvfp4Activation, ValuesAboveTheCalibratedRangeSaturate) {
  std::vector<float> x(16, 1e6f);
  const auto block =
      quantize_nvfp4_activation_block(std::span<const float, 16>(x.data(), 16), 1.0f).value();
  EXPECT_EQ(block.scale, 0x7e);
  EXPECT_THAT(block.packed, testing::Each(0x77));
}

TEST(Nvfp4Facts, E2m1TimesE4m3IsExactInBf16) {
  for (int code = 0; code < 16; ++code) {
    for (int scale = 0; scale < 0x7f; ++scale) {
      const double product = double{kE2m1Values[code]} * kE4m3Values[scale];
      ASSERT_EQ(double{round_to_bf16(static_cast<float>(product))}, product);
    }
  }
}

TEST(Nvfp4Facts, E4m3TimesE4m3IsExactInBf16) {
  for (int a = 0; a < 0x7f; ++a) {
    for (int b = 0; b < 0x7f; ++b) {
      const double product = double{kE4m3Values[a]} * kE4m3Values[b];
      ASSERT_EQ(double{round_to_bf16(static_cast<float>(product))}, product);
    }
  }
}

TEST(Nvfp4Facts, DoubledCodesAreSmallIntegersAndABlockDotIsAtMost2304) {
  const int expected[] = {0, 1, 2, 3, 4, 6, 8, 12};
  for (int code = 0; code < 8; ++code) EXPECT_EQ(2 * kE2m1Values[code], expected[code]);
  const std::vector<uint8_t> largest(8, 0x77);
  const std::vector<uint8_t> smallest(8, 0xff);
  EXPECT_EQ(nvfp4_block_int_dot(largest.data(), largest.data()), 2304);
  EXPECT_EQ(nvfp4_block_int_dot(largest.data(), smallest.data()), -2304);
}

TEST(Nvfp4Facts, ABlockDotTimesBothScalesIsExactInBinary32) {
  // Significands of two E4M3 values: 8..15 each (subnormals have fewer bits).
  for (int dot = 0; dot <= 2304; ++dot) {
    for (int a = 8; a < 16; ++a) {
      for (int b = 8; b < 16; ++b) {
        const double exact = double(dot) * a * b;
        ASSERT_EQ(double{static_cast<float>(dot) * static_cast<float>(a * b)}, exact);
      }
    }
  }
}

TEST(Nvfp4ExactDot, AgreesWithBinary64OnRowsWhereThatIsExact) {
  std::mt19937 rng(10);
  for (int round = 0; round < 50; ++round) {
    const int64_t cols = 16 * (1 + static_cast<int64_t>(rng() % 8));
    std::vector<uint8_t> a(static_cast<size_t>(cols / 2));
    std::vector<uint8_t> w(a.size());
    std::vector<uint8_t> a_scales(static_cast<size_t>(cols / 16));
    std::vector<uint8_t> w_scales(a_scales.size());
    for (auto* bytes : {&a, &w}) {
      for (uint8_t& b : *bytes) b = static_cast<uint8_t>(rng());
    }
    for (auto* bytes : {&a_scales, &w_scales}) {
      for (uint8_t& b : *bytes) b = static_cast<uint8_t>(rng() % 0x7f);
    }
    std::vector<float> x(static_cast<size_t>(cols));
    std::vector<float> y(x.size());
    ASSERT_TRUE(dequantize_nvfp4_rows(a.data(), a_scales.data(), 1, 1, cols, x.data()).has_value());
    ASSERT_TRUE(dequantize_nvfp4_rows(w.data(), w_scales.data(), 1, 1, cols, y.data()).has_value());
    // Multiples of 2^-20 below 2^33: 53 bits hold every partial sum.
    double sum = 0;
    for (size_t i = 0; i < x.size(); ++i) sum += double{x[i]} * y[i];
    EXPECT_EQ(std::ldexp(static_cast<double>(nvfp4_exact_dot(a.data(), a_scales.data(), w.data(),
                                                             w_scales.data(), cols)),
                         -20),
              sum);
  }
}

TEST(Nvfp4ExactDot, TheLargestRowOfTheModelFits) {
  const int64_t cols = 18432;
  const std::vector<uint8_t> codes(static_cast<size_t>(cols / 2), 0x77);
  const std::vector<uint8_t> scales(static_cast<size_t>(cols / 16), 0x7e);
  // 18432 * (6 * 448)^2 * 2^20, less than 2^57.
  EXPECT_EQ(nvfp4_exact_dot(codes.data(), scales.data(), codes.data(), scales.data(), cols),
            int64_t{18432} * 2688 * 2688 << 20);
}

TEST(Nvfp4Swizzle, EveryScaleHasAPlaceOfItsOwnAndThePaddingIsZero) {
  for (const auto& [rows, cols] :
       {std::pair<int64_t, int64_t>{1, 1}, {128, 4}, {130, 5}, {257, 9}}) {
    const std::vector<uint8_t> ones(static_cast<size_t>(rows * cols), 1);
    const auto swizzled = swizzle_nvfp4_scales(ones, rows, cols);
    EXPECT_EQ(swizzled.size() % 512, 0u);
    EXPECT_EQ(std::count(swizzled.begin(), swizzled.end(), 1), rows * cols);
    EXPECT_EQ(std::count(swizzled.begin(), swizzled.end(), 0),
              static_cast<int64_t>(swizzled.size()) - rows * cols);
  }
}

}  // namespace
}  // namespace nibble
