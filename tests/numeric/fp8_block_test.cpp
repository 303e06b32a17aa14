#include "nibble/numeric/fp8_block.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

#include "nibble/numeric/bf16.h"
#include "nibble/numeric/fp8.h"

namespace nibble {
namespace {

// 130 x 129: the second block of rows has two, the second block of columns one.
constexpr int64_t kRows = 130;
constexpr int64_t kCols = 129;

TEST(Fp8Block, RaggedEdgesTakeTheScaleOfTheirOwnBlock) {
  const std::vector<uint8_t> codes(kRows * kCols, 0x38);  // 1.0 everywhere
  const std::vector<float> scales = {1, 2, 3, 4};
  std::vector<float> out(codes.size());
  ASSERT_TRUE(
      dequantize_fp8_block({codes.data(), scales.data(), kRows, kCols}, 0, kRows, out.data())
          .has_value());
  const auto at = [&](int64_t r, int64_t c) { return out[static_cast<size_t>(r * kCols + c)]; };
  EXPECT_EQ(at(0, 0), 1);
  EXPECT_EQ(at(127, 127), 1);
  EXPECT_EQ(at(127, 128), 2);
  EXPECT_EQ(at(128, 127), 3);
  EXPECT_EQ(at(129, 128), 4);
}

TEST(Fp8Block, ARangeOfRowsIsTheSamePartOfTheWhole) {
  std::mt19937 rng(1);
  std::vector<uint8_t> codes(kRows * kCols);
  for (uint8_t& code : codes) code = static_cast<uint8_t>(rng() % 0x7f | (rng() % 2 << 7));
  const std::vector<float> scales = {0.1f, 0.2f, 0.3f, 0.4f};
  const Fp8BlockMatrix matrix{codes.data(), scales.data(), kRows, kCols};
  std::vector<uint16_t> whole(codes.size());
  std::vector<uint16_t> part(3 * kCols);
  ASSERT_TRUE(dequantize_fp8_block_to_bf16(matrix, 0, kRows, whole.data()).has_value());
  ASSERT_TRUE(dequantize_fp8_block_to_bf16(matrix, 126, 129, part.data()).has_value());
  EXPECT_TRUE(std::equal(part.begin(), part.end(), whole.begin() + 126 * kCols));
}

TEST(Fp8Block, TheProductIsRoundedToBf16Once) {
  // 1.125 * 0x1.01p0f = 1.12939453125: between BF16's 1.125 and 1.1328125, nearer the second.
  const uint8_t code = 0x39;
  const float scale = 0x1.01p0f;
  uint16_t bf16 = 0;
  float exact = 0;
  ASSERT_TRUE(dequantize_fp8_block({&code, &scale, 1, 1}, 0, 1, &exact).has_value());
  ASSERT_TRUE(dequantize_fp8_block_to_bf16({&code, &scale, 1, 1}, 0, 1, &bf16).has_value());
  EXPECT_EQ(exact, 1.12939453125f);
  EXPECT_EQ(bf16_to_float(bf16), 1.1328125f);
}

TEST(Fp8Block, ValuesThatAreNotFiniteAreRefusedWithTheirPlace) {
  const float infinity = std::numeric_limits<float>::infinity();
  struct Case {
    uint8_t code;
    float scale;
  };
  // A NaN code; scales that are NaN or infinite (also times a zero code); a product past binary32.
  for (const Case& bad : {Case{0x7f, 1}, Case{0xff, 1}, Case{0x38, std::nanf("")},
                          Case{0x38, infinity}, Case{0x00, infinity}, Case{0x7e, 1e38f}}) {
    std::vector<uint8_t> codes(2 * 200, 0x01);
    const float scales[] = {1, bad.scale};
    // In the second block of columns only the place in question may overflow.
    codes[200 + 131] = bad.code;
    std::vector<float> out(codes.size());
    std::vector<uint16_t> bf16(codes.size());
    const Fp8BlockMatrix matrix{codes.data(), scales, 2, 200};
    const auto status = dequantize_fp8_block(matrix, 0, 2, out.data());
    ASSERT_FALSE(status.has_value());
    EXPECT_EQ(status.error().code, ErrorCode::kCorrupt);
    if (std::isfinite(bad.scale)) {
      EXPECT_THAT(status.error().message, testing::HasSubstr("[1, 131]"));
    }
    EXPECT_FALSE(dequantize_fp8_block_to_bf16(matrix, 0, 2, bf16.data()).has_value());
  }
}

TEST(Fp8Block, AValueThatOnlyOverflowsInBf16IsRefusedThere) {
  const uint8_t code = 0x38;
  const float scale = std::numeric_limits<float>::max();
  float exact = 0;
  uint16_t bf16 = 0;
  EXPECT_TRUE(dequantize_fp8_block({&code, &scale, 1, 1}, 0, 1, &exact).has_value());
  EXPECT_FALSE(dequantize_fp8_block_to_bf16({&code, &scale, 1, 1}, 0, 1, &bf16).has_value());
}

TEST(Fp8Block, QuantizingMapsEachBlocksMaximumTo448) {
  std::vector<float> values(kRows * kCols, 0.0f);
  values[0] = -7;                    // block (0, 0)
  values[128 * kCols + 128] = 0.5f;  // block (1, 1)
  const auto tensor = quantize_fp8_block(values, kRows, kCols).value();
  EXPECT_THAT(tensor.scales_inv, testing::ElementsAre(7.0f / 448, 1.0f, 1.0f, 0.5f / 448));
  EXPECT_EQ(tensor.codes[0], 0xfe);
  EXPECT_EQ(tensor.codes[128 * kCols + 128], 0x7e);
}

TEST(Fp8Block, ARoundTripStaysWithinARoundingOfThreeFractionBits) {
  std::mt19937 rng(2);
  std::normal_distribution<float> normal(0.0f, 0.02f);
  std::vector<float> values(256 * 384);
  for (float& v : values) v = normal(rng);
  const auto tensor = quantize_fp8_block(values, 256, 384).value();
  std::vector<float> restored(values.size());
  ASSERT_TRUE(dequantize_fp8_block(tensor.view(), 0, 256, restored.data()).has_value());
  double signal = 0;
  double noise = 0;
  for (size_t i = 0; i < values.size(); ++i) {
    const double error = std::fabs(double{values[i]} - restored[i]);
    // Half of the last place of a normal code is 1/16 of its value; of a subnormal one 2^-10
    // scales.
    ASSERT_LE(error, std::max(std::fabs(values[i]) / 16.0, 0x1p-10 * 0.02 * 6 / 448) * 1.001);
    signal += double{values[i]} * values[i];
    noise += error * error;
  }
  EXPECT_NEAR(10 * std::log10(signal / noise), 31.5, 0.3);
}

TEST(Fp8Block, ValuesThatHaveNoFp8FormAreRefused) {
  std::vector<float> values(4, 1.0f);
  values[3] = std::nanf("");
  EXPECT_FALSE(quantize_fp8_block(values, 2, 2).has_value());
  const std::vector<float> tiny(4, 0x1p-149f);
  EXPECT_FALSE(quantize_fp8_block(tiny, 2, 2).has_value());
}

}  // namespace
}  // namespace nibble
