// The vector functions of the cpu backend's tables, called directly.
#include "nibble/kernels/cpu/panel_isa.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "nibble/base/cpu_features.h"
#include "nibble/numeric/fp8.h"

namespace nibble {
namespace {

std::vector<std::pair<std::string_view, const PanelIsa*>> panel_tables() {
  std::vector<std::pair<std::string_view, const PanelIsa*>> tables = {
      {"portable", &kPanelIsaPortable}};
#if defined(__x86_64__)
  if (detected_isa() >= Isa::kAvx2) tables.emplace_back("avx2", &kPanelIsaAvx2);
  if (detected_isa() >= Isa::kAvx512) tables.emplace_back("avx512", &kPanelIsaAvx512);
#endif
  return tables;
}

TEST(PanelIsa, ExpIsWithinTwoUnitsOfTheLastPlace) {
  std::vector<float> x;
  for (float v = -87; v < 88.7f; v += 0.00137f) x.push_back(v);
  for (float v = -0.01f; v < 0.01f; v += 1.7e-6f) x.push_back(v);
  for (const auto& [name, isa] : panel_tables()) {
    SCOPED_TRACE(name);
    std::vector<float> y(x.size());
    isa->exp(x.data(), static_cast<int64_t>(x.size()), y.data());
    double worst = 0;
    for (size_t i = 0; i < x.size(); ++i) {
      const double want = std::exp(static_cast<double>(x[i]));
      int exponent = 0;
      std::frexp(want, &exponent);
      const double unit = std::ldexp(1.0, exponent - 24);
      worst = std::max(worst, std::fabs(static_cast<double>(y[i]) - want) / unit);
    }
    EXPECT_LE(worst, 2.0);
  }
}

TEST(PanelIsa, ExpKnowsItsEnds) {
  const float inf = std::numeric_limits<float>::infinity();
  const std::vector<float> x = {0, -0.0f, -inf, inf, -105, 89, -1e30f, 1e30f, NAN, -100};
  for (const auto& [name, isa] : panel_tables()) {
    SCOPED_TRACE(name);
    std::vector<float> y(x.size(), 7);
    isa->exp(x.data(), static_cast<int64_t>(x.size()), y.data());
    EXPECT_EQ(y[0], 1);
    EXPECT_EQ(y[1], 1);
    EXPECT_EQ(y[2], 0);
    EXPECT_EQ(y[3], inf);
    EXPECT_EQ(y[4], 0);
    EXPECT_EQ(y[5], inf);
    EXPECT_EQ(y[6], 0);
    EXPECT_EQ(y[7], inf);
    EXPECT_TRUE(std::isnan(y[8]));
    EXPECT_NEAR(y[9], std::exp(-100.0f), 2e-45f);  // subnormal
  }
}

TEST(PanelIsa, SwigluIsWithinFourUnitsAndSurvivesLargeGates) {
  std::vector<float> gate;
  std::vector<float> up;
  for (float v = -80; v < 80; v += 0.0371f) {
    gate.push_back(v);
    up.push_back(1.25f - 0.01f * v);
  }
  for (const auto& [name, isa] : panel_tables()) {
    SCOPED_TRACE(name);
    std::vector<float> y(gate.size());
    isa->swiglu(gate.data(), 0.5f, up.data(), 3.0f, static_cast<int64_t>(gate.size()), y.data());
    for (size_t i = 0; i < gate.size(); ++i) {
      const double g = 0.5 * static_cast<double>(gate[i]);
      const double want = g / (1 + std::exp(-g)) * static_cast<double>(3.0f * up[i]);
      ASSERT_NEAR(y[i], want, std::fabs(want) * std::ldexp(4.0, -23)) << gate[i];
    }
    const std::vector<float> ends = {-200, 200, -1e30f, 1e30f};
    const std::vector<float> ones = {1, 1, 1, 1};
    isa->swiglu(ends.data(), 1, ones.data(), 1, 4, y.data());
    EXPECT_EQ(y[0], 0);
    EXPECT_EQ(y[1], 200);
    EXPECT_EQ(y[2], 0);
    EXPECT_EQ(y[3], 1e30f);
  }
}

// By hand: scores 1, 1, 1 with scale 2 are three equal weights; a second block whose maximum is
// higher by ln 2 halves the first one's sum.
TEST(PanelIsa, SoftmaxBlockKeepsARunningMaximumAndSum) {
  for (const auto& [name, isa] : panel_tables()) {
    SCOPED_TRACE(name);
    float max = -std::numeric_limits<float>::infinity();
    float sum = 0;
    std::vector<float> scores(kSliceCols, NAN);
    scores[0] = scores[1] = scores[2] = 1;
    EXPECT_EQ(isa->softmax_block(scores.data(), 3, 2.0f, &max, &sum), 0);
    EXPECT_EQ(max, 2);
    EXPECT_EQ(sum, 3);
    for (int i = 0; i < kSliceCols; ++i) EXPECT_EQ(scores[static_cast<size_t>(i)], i < 3 ? 1 : 0);

    const float ln2 = std::log(2.0f);
    scores.assign(kSliceCols, 1);
    scores[17] = 1 + ln2 / 2;
    const float correction = isa->softmax_block(scores.data(), kSliceCols, 2.0f, &max, &sum);
    EXPECT_NEAR(correction, 0.5, 1e-6);
    EXPECT_NEAR(max, 2 + ln2, 1e-6);
    EXPECT_NEAR(sum, 1.5 + 127 * 0.5 + 1, 1e-4);
  }
}

// Positions that a token may not see leave no trace, whatever lies there.
TEST(PanelIsa, SoftmaxBlockNeverReadsHiddenScores) {
  for (const auto& [name, isa] : panel_tables()) {
    SCOPED_TRACE(name);
    for (const int64_t visible : {1, 15, 16, 17, 127}) {
      std::vector<float> a(kSliceCols, NAN);
      std::vector<float> b(kSliceCols, 1e30f);
      for (int64_t i = 0; i < visible; ++i) {
        a[static_cast<size_t>(i)] = b[static_cast<size_t>(i)] = std::sin(static_cast<float>(i));
      }
      float max[2] = {0.25f, 0.25f};
      float sum[2] = {3, 3};
      isa->softmax_block(a.data(), visible, 0.7f, &max[0], &sum[0]);
      isa->softmax_block(b.data(), visible, 0.7f, &max[1], &sum[1]);
      EXPECT_EQ(a, b);
      EXPECT_EQ(max[0], max[1]);
      EXPECT_EQ(sum[0], sum[1]);
    }
  }
}

TEST(PanelIsa, BothE4m3NansOfACacheStayNan) {
  std::vector<uint8_t> codes(40, 0x38);
  codes[3] = 0x7f;
  codes[29] = 0xff;
  codes[39] = 0x7f;
  for (const auto& [name, isa] : panel_tables()) {
    SCOPED_TRACE(name);
    std::vector<float> out(40);
    isa->to_float(PanelFormat::kFp8, codes.data(), 40, out.data());
    for (size_t i = 0; i < 40; ++i) {
      EXPECT_EQ(std::isnan(out[i]), i == 3 || i == 29 || i == 39) << i;
    }
  }
}

TEST(PanelIsa, ConversionsAreExactAtEveryLength) {
  std::vector<uint8_t> codes;
  std::vector<uint16_t> halves;
  for (int i = 0; i < 126; ++i) {
    codes.push_back(static_cast<uint8_t>(i));
    halves.push_back(static_cast<uint16_t>(0x3f80 + 37 * i));
  }
  for (const auto& [name, isa] : panel_tables()) {
    SCOPED_TRACE(name);
    for (const int64_t count : {1, 15, 16, 33, 126}) {
      std::vector<float> out(static_cast<size_t>(count) + 1, -7);
      isa->to_float(PanelFormat::kFp8, codes.data(), count, out.data());
      EXPECT_EQ(out.back(), -7);
      for (int64_t i = 0; i < count; ++i) {
        EXPECT_EQ(out[static_cast<size_t>(i)], kE4m3Values[i]) << i;
      }
      isa->to_float(PanelFormat::kBf16, halves.data(), count, out.data());
      EXPECT_EQ(out.back(), -7);
      EXPECT_EQ(out[0], 1);  // 0x3f80
    }
  }
}

}  // namespace
}  // namespace nibble
