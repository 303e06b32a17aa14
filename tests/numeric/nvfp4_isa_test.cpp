// The vector code of the encoders against the plain one, bit for bit.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "nibble/base/error.h"
#include "nibble/numeric/bf16.h"
#include "nibble/numeric/fp8_block.h"
#include "nibble/numeric/nvfp4.h"

namespace nibble {
namespace {

std::vector<Isa> fast_levels() {
  std::vector<Isa> levels;
  for (const Isa isa : {Isa::kAvx2, Isa::kAvx512}) {
    if (isa <= detected_isa()) levels.push_back(isa);
  }
  return levels;
}

// Rows with all that is awkward: zero blocks, ties, signed zeros, outliers, tiny values.
std::vector<float> awkward_values(size_t count, uint32_t seed) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal(0.0f, 0.03f);
  std::vector<float> values(count);
  for (size_t i = 0; i < count; ++i) {
    const size_t block = i / 16;
    float v = round_to_bf16(normal(rng));
    if (block % 7 == 3) v = 0;
    if (block % 7 == 4) v = -0.0f;
    if (block % 11 == 5) v = static_cast<float>(static_cast<int>(rng() % 49) - 24) / 4;  // ties
    if (block % 13 == 6) v *= 1e-6f;
    if (block % 17 == 8 && i % 16 == 2) v *= 200;
    values[i] = v;
  }
  return values;
}

TEST(Nvfp4Isa, EveryLevelGivesThePlainCodesBits) {
  constexpr int64_t kNumRows = 37;
  constexpr int64_t kNumCols = 16 * 13;
  const auto values = awkward_values(kNumRows * kNumCols, 5);
  const float amax = nvfp4_amax(values).value();
  for (const Nvfp4Mode mode : {Nvfp4Mode::kMax, Nvfp4Mode::kFourOverSix, Nvfp4Mode::kMse}) {
    // The second scale clips: a foreign amax may be too small.
    for (const float share : {1.0f, 0.02f, 300.0f}) {
      const float global = nvfp4_global_scale(share * amax, mode).value();
      std::vector<uint8_t> packed(values.size() / 2);
      std::vector<uint8_t> scales(values.size() / 16);
      ASSERT_TRUE(quantize_nvfp4_rows(values.data(), kNumRows, kNumCols, global, mode,
                                      packed.data(), scales.data(), Isa::kPortable)
                      .has_value());
      for (const Isa isa : fast_levels()) {
        std::vector<uint8_t> got_packed(packed.size(), 0xee);
        std::vector<uint8_t> got_scales(scales.size(), 0xee);
        ASSERT_TRUE(quantize_nvfp4_rows(values.data(), kNumRows, kNumCols, global, mode,
                                        got_packed.data(), got_scales.data(), isa)
                        .has_value());
        EXPECT_EQ(got_scales, scales) << static_cast<int>(mode) << ' ' << share;
        EXPECT_EQ(got_packed, packed) << static_cast<int>(mode) << ' ' << share;
      }
    }
  }
}

TEST(Nvfp4Isa, BlockColumnsGiveTheBitsOfRowsAndOfThePlainHessianSearch) {
  constexpr int64_t kNumRows = 35;
  constexpr int64_t kNumCols = 64;
  const auto values = awkward_values(kNumRows * kNumCols, 6);
  const float global = nvfp4_global_scale(nvfp4_amax(values).value()).value();
  std::vector<float> hessian(256);
  std::mt19937 rng(3);
  std::normal_distribution<float> normal;
  for (int sample = 0; sample < 40; ++sample) {
    float x[16];
    for (float& v : x) v = normal(rng) + 0.5f;
    for (int i = 0; i < 256; ++i) hessian[static_cast<size_t>(i)] += x[i / 16] * x[i % 16];
  }
  for (const Nvfp4Mode mode : {Nvfp4Mode::kMax, Nvfp4Mode::kMse, Nvfp4Mode::kLocalHessian}) {
    std::vector<std::vector<uint8_t>> results;
    std::vector<Isa> levels = fast_levels();
    levels.insert(levels.begin(), Isa::kPortable);
    for (const Isa isa : levels) {
      std::vector<uint8_t> out(kNumRows * (kNumCols / 2 + kNumCols / 16));
      for (int64_t column = 0; column < kNumCols / 16; ++column) {
        ASSERT_TRUE(
            quantize_nvfp4_block_column(
                {values.data() + 16 * column, kNumRows, kNumCols, out.data() + 8 * column,
                 kNumCols / 2, out.data() + kNumRows * kNumCols / 2 + column, kNumCols / 16},
                global, mode, hessian.data(), isa)
                .has_value());
      }
      results.push_back(std::move(out));
      EXPECT_EQ(results.back(), results.front());
    }
    if (mode == Nvfp4Mode::kLocalHessian) continue;
    std::vector<uint8_t> rows(results.front().size());
    ASSERT_TRUE(quantize_nvfp4_rows(values.data(), kNumRows, kNumCols, global, mode, rows.data(),
                                    rows.data() + kNumRows * kNumCols / 2, Isa::kPortable)
                    .has_value());
    EXPECT_EQ(results.front(), rows);
  }
}

double hessian_loss(const std::vector<float>& values, const std::vector<uint8_t>& packed,
                    const std::vector<uint8_t>& scales, float global,
                    const std::vector<float>& hessian) {
  const auto rows = static_cast<int64_t>(scales.size());
  std::vector<float> back(values.size());
  EXPECT_TRUE(dequantize_nvfp4_rows(packed.data(), scales.data(), global, rows, 16, back.data())
                  .has_value());
  double loss = 0;
  for (size_t b = 0; b < scales.size(); ++b) {
    for (size_t i = 0; i < 16; ++i) {
      for (size_t j = 0; j < 16; ++j) {
        loss += double{hessian[16 * i + j]} * (values[16 * b + i] - back[16 * b + i]) *
                (values[16 * b + j] - back[16 * b + j]);
      }
    }
  }
  return loss;
}

TEST(Nvfp4Isa, TheHessianSearchLosesLessThanTheOthersByItsOwnMeasure) {
  constexpr int64_t kNumRows = 64;
  const auto values = awkward_values(kNumRows * 16, 9);
  const float global = nvfp4_global_scale(nvfp4_amax(values).value()).value();
  std::vector<float> hessian(256, 1.0f);  // strongly correlated inputs
  for (size_t i = 0; i < 16; ++i) hessian[17 * i] = 1.2f;
  std::vector<double> losses;
  for (const Nvfp4Mode mode : {Nvfp4Mode::kLocalHessian, Nvfp4Mode::kMax, Nvfp4Mode::kMse}) {
    std::vector<uint8_t> packed(kNumRows * 8);
    std::vector<uint8_t> scales(kNumRows);
    ASSERT_TRUE(quantize_nvfp4_block_column(
                    {values.data(), kNumRows, 16, packed.data(), 8, scales.data(), 1}, global, mode,
                    hessian.data())
                    .has_value());
    losses.push_back(hessian_loss(values, packed, scales, global, hessian));
  }
  EXPECT_LT(losses[0], 0.9 * losses[1]);
  EXPECT_LT(losses[0], 0.9 * losses[2]);
}

TEST(Nvfp4Isa, BadValuesAreFoundAtEveryLevel) {
  for (const float bad : {std::nanf(""), HUGE_VALF, -HUGE_VALF}) {
    for (const size_t at : {size_t{0}, size_t{200}, size_t{511}}) {
      std::vector<float> values(512, 0.25f);
      values[at] = bad;
      std::vector<uint8_t> packed(256);
      std::vector<uint8_t> scales(32);
      for (const Isa isa : fast_levels()) {
        const auto status = quantize_nvfp4_rows(values.data(), 2, 256, 1.0f, Nvfp4Mode::kMax,
                                                packed.data(), scales.data(), isa);
        ASSERT_FALSE(status.has_value());
        EXPECT_NE(status.error().message.find("row " + std::to_string(at / 256)),
                  std::string::npos);
      }
    }
  }
}

TEST(Fp8BlockIsa, EveryCodeUnderManyScalesRoundsAsThePlainCode) {
  constexpr int64_t kNumCols = 300;
  std::vector<uint8_t> codes(2 * kNumCols);
  for (size_t i = 0; i < codes.size(); ++i) {
    codes[i] = static_cast<uint8_t>(i);
    if ((codes[i] & 0x7f) == 0x7f) codes[i] = 0x7e;
  }
  for (const float scale : {1.0f, 0.000213f, 3e-38f, 1e-44f, 1.7e35f, 0.1f}) {
    const std::vector<float> scales = {scale, scale * 0.7f, scale * 0.3f};
    const Fp8BlockMatrix matrix{codes.data(), scales.data(), 2, kNumCols};
    std::vector<float> want(codes.size());
    ASSERT_TRUE(
        dequantize_fp8_block_rounded(matrix, 0, 2, want.data(), Isa::kPortable).has_value());
    for (size_t i = 0; i < codes.size(); ++i) {
      EXPECT_EQ(want[i], round_to_bf16(kE4m3Values[codes[i]] *
                                       scales[i % static_cast<size_t>(kNumCols) / 128]));
    }
    for (const Isa isa : fast_levels()) {
      std::vector<float> got(codes.size());
      ASSERT_TRUE(dequantize_fp8_block_rounded(matrix, 0, 2, got.data(), isa).has_value());
      EXPECT_EQ(0, std::memcmp(got.data(), want.data(), 4 * got.size())) << scale;
      EXPECT_EQ(fp8_block_rounded_amax(matrix, 0, 2, isa), nvfp4_amax(want).value()) << scale;
    }
    EXPECT_EQ(fp8_block_rounded_amax(matrix, 0, 2, Isa::kPortable), nvfp4_amax(want).value());
  }
  codes[77] = 0xff;
  const std::vector<float> ones(3, 1.0f);
  for (const Isa isa : fast_levels()) {
    std::vector<float> out(codes.size());
    EXPECT_FALSE(dequantize_fp8_block_rounded({codes.data(), ones.data(), 2, kNumCols}, 0, 2,
                                              out.data(), isa)
                     .has_value());
  }
}

}  // namespace
}  // namespace nibble
