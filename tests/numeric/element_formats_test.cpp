// BF16, E4M3 and E2M1 against definitions written another way: values from the bit fields, rounding
// by search over all codes in binary64, where every distance is exact.
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <vector>

#include "nibble/numeric/bf16.h"
#include "nibble/numeric/fp4.h"
#include "nibble/numeric/fp8.h"

namespace nibble {
namespace {

uint32_t bits_of(float value) { return std::bit_cast<uint32_t>(value); }
float from_bits(uint32_t bits) { return std::bit_cast<float>(bits); }

double e4m3_by_definition(int code) {
  const int exponent = code >> 3 & 15;
  const int fraction = code & 7;
  if (exponent == 15 && fraction == 7) return std::numeric_limits<double>::quiet_NaN();
  const double magnitude =
      exponent == 0 ? std::ldexp(fraction, -9) : std::ldexp(8 + fraction, exponent - 10);
  return code & 0x80 ? -magnitude : magnitude;
}

// The code in [0, num_codes) nearest to |x|; of two equally near ones the even code.
template <typename Decode>
int nearest_code(double x, int num_codes, const Decode& decode) {
  // Far above every code (448) the distances would round to the same number.
  const double magnitude = std::min(std::fabs(x), 1e4);
  int best = 0;
  for (int code = 1; code < num_codes; ++code) {
    const double distance = std::fabs(decode(code) - magnitude);
    const double best_distance = std::fabs(decode(best) - magnitude);
    if (distance < best_distance || (distance == best_distance && code % 2 == 0)) best = code;
  }
  return best;
}

int nearest_e4m3(double x) {
  return nearest_code(x, 0x7f, e4m3_by_definition) | (std::signbit(x) ? 0x80 : 0);
}

int nearest_e2m1(double x) {
  static const double magnitudes[] = {0, 0.5, 1, 1.5, 2, 3, 4, 6};
  return nearest_code(x, 8, [](int code) { return magnitudes[code]; }) | (x < 0 ? 8 : 0);
}

// Finite values over the whole range of binary32 (a stride that is no multiple of a power of two),
// and each midpoint of the format with its two neighbours.
std::vector<float> probes(const std::vector<double>& midpoints) {
  std::vector<float> values;
  for (uint64_t bits = 0; bits < 0x7f800000u; bits += 20011) {
    values.push_back(from_bits(static_cast<uint32_t>(bits)));
  }
  // Densely where the format lives: 2^-11 to 2^10.
  for (uint32_t bits = bits_of(0x1p-11f); bits < bits_of(0x1p10f); bits += 1237) {
    values.push_back(from_bits(bits));
  }
  for (const double midpoint : midpoints) {
    const auto value = static_cast<float>(midpoint);
    EXPECT_EQ(double{value}, midpoint);
    values.insert(values.end(), {value, std::nextafter(value, 0.0f), std::nextafter(value, 1e9f)});
  }
  const size_t positive = values.size();
  for (size_t i = 0; i < positive; ++i) values.push_back(-values[i]);
  return values;
}

TEST(E4m3, EveryCodeHasTheValueOfItsBitFields) {
  for (int code = 0; code < 256; ++code) {
    const double expected = e4m3_by_definition(code);
    if (std::isnan(expected)) {
      EXPECT_TRUE(std::isnan(kE4m3Values[code])) << code;
    } else {
      EXPECT_EQ(double{kE4m3Values[code]}, expected) << code;
      EXPECT_EQ(std::signbit(kE4m3Values[code]), code >= 0x80) << code;
    }
  }
}

TEST(E4m3, EveryCodeSurvivesARoundTrip) {
  for (int code = 0; code < 256; ++code) {
    EXPECT_EQ(float_to_e4m3(kE4m3Values[code]) & 0x7f, code & 0x7f);
    if ((code & 0x7f) != 0x7f) {
      EXPECT_EQ(float_to_e4m3(kE4m3Values[code]), code);
    }
  }
}

TEST(E4m3, EncodingFindsTheNearestCodeWithTiesToEven) {
  std::vector<double> midpoints;
  for (int code = 0; code < 0x7e; ++code) {
    midpoints.push_back((e4m3_by_definition(code) + e4m3_by_definition(code + 1)) / 2);
  }
  midpoints.push_back(464);  // between 448 and the 480 that would follow
  size_t wrong = 0;
  for (const float x : probes(midpoints)) {
    if (float_to_e4m3(x) != nearest_e4m3(x)) {
      if (++wrong <= 10) ADD_FAILURE() << x << ": got " << int{float_to_e4m3(x)};
    }
  }
  EXPECT_EQ(wrong, 0u);
}

TEST(E4m3, LargeValuesSaturateAndNanStaysNan) {
  const float infinity = std::numeric_limits<float>::infinity();
  EXPECT_EQ(float_to_e4m3(infinity), 0x7e);
  EXPECT_EQ(float_to_e4m3(-infinity), 0xfe);
  EXPECT_EQ(float_to_e4m3(std::numeric_limits<float>::max()), 0x7e);
  EXPECT_EQ(float_to_e4m3(464.0f), 0x7e);
  EXPECT_EQ(float_to_e4m3(from_bits(0x7fc00000)), 0x7f);
  EXPECT_EQ(float_to_e4m3(from_bits(0xffc00000)), 0xff);
  EXPECT_EQ(float_to_e4m3(from_bits(0x7f800001)), 0x7f);
}

TEST(E4m3, EncodingNeverDecreases) {
  int last = 0;
  for (uint64_t bits = 0; bits <= 0x7f800000u; bits += 997) {
    const int code = float_to_e4m3(from_bits(static_cast<uint32_t>(bits)));
    ASSERT_GE(code, last) << bits;
    last = code;
  }
  EXPECT_EQ(last, 0x7e);
}

TEST(E2m1, EveryCodeHasItsValue) {
  const float expected[] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6, 0, -0.5f, -1, -1.5f, -2, -3, -4, -6};
  for (int code = 0; code < 16; ++code) EXPECT_EQ(kE2m1Values[code], expected[code]);
  EXPECT_TRUE(std::signbit(kE2m1Values[8]));
}

TEST(E2m1, EveryCodeButMinusZeroSurvivesARoundTrip) {
  for (int code = 0; code < 16; ++code) {
    EXPECT_EQ(float_to_e2m1(kE2m1Values[code]), code == 8 ? 0 : code);
  }
}

TEST(E2m1, EncodingFindsTheNearestCodeWithTiesToEven) {
  size_t wrong = 0;
  for (const float x : probes({0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5, 6, 7})) {
    if (float_to_e2m1(x) != nearest_e2m1(x)) {
      if (++wrong <= 10) ADD_FAILURE() << x << ": got " << int{float_to_e2m1(x)};
    }
  }
  EXPECT_EQ(wrong, 0u);
}

TEST(E2m1, EncodingNeverDecreases) {
  int last = 0;
  for (uint64_t bits = 0; bits < 0x7f800000u; bits += 997) {
    const int code = float_to_e2m1(from_bits(static_cast<uint32_t>(bits)));
    ASSERT_GE(code, last) << bits;
    last = code;
  }
  EXPECT_EQ(last, 7);
}

TEST(E2m1, CheckedEncodingRefusesWhatHasNoCode) {
  EXPECT_EQ(checked_float_to_e2m1(-1e30f).value(), 15);
  for (const uint32_t bits : {0x7f800000u, 0xff800000u, 0x7fc00000u}) {
    const auto code = checked_float_to_e2m1(from_bits(bits));
    ASSERT_FALSE(code.has_value());
    EXPECT_EQ(code.error().code, ErrorCode::kInvalidArgument);
  }
}

TEST(Bf16, EveryCodeSurvivesARoundTripAndNanBecomesQuiet) {
  for (uint32_t code = 0; code <= 0xffff; ++code) {
    const auto bits = static_cast<uint16_t>(code);
    const float value = bf16_to_float(bits);
    EXPECT_EQ(bits_of(value), code << 16);
    const uint32_t expected = std::isnan(value) ? code | 0x40u : code;
    EXPECT_EQ(float_to_bf16(value), expected) << code;
  }
}

TEST(Bf16, RoundsToTheNearestWithTiesToEven) {
  // Every finite positive code and its successor: the midpoint goes to the even one, its neighbours
  // to the near one. 0x7f7f's successor is infinity.
  for (uint32_t code = 0; code < 0x7f80; ++code) {
    const uint32_t midpoint = (code << 16) + 0x8000;
    const uint32_t even = code % 2 == 0 ? code : code + 1;
    ASSERT_EQ(float_to_bf16(from_bits(midpoint - 1)), code);
    ASSERT_EQ(float_to_bf16(from_bits(midpoint)), even);
    ASSERT_EQ(float_to_bf16(from_bits(midpoint + 1)), code + 1);
    ASSERT_EQ(float_to_bf16(from_bits(midpoint | 0x80000000u)), even | 0x8000u);
  }
}

TEST(Bf16, NanWithAnEmptyUpperPayloadStaysNan) {
  EXPECT_EQ(float_to_bf16(from_bits(0x7f800001)), 0x7fc0);
  EXPECT_EQ(float_to_bf16(from_bits(0xffffffff)), 0xffff);
}

TEST(Bf16, RoundToBf16KeepsWhatIsRepresentable) {
  EXPECT_EQ(round_to_bf16(1.0f), 1.0f);
  EXPECT_EQ(round_to_bf16(1.00390625f), 1.0f);       // 1 + 2^-8, a tie: 0x3f80 is even
  EXPECT_EQ(round_to_bf16(1.01171875f), 1.015625f);  // 1 + 3 * 2^-8, a tie: 0x3f82 is even
}

}  // namespace
}  // namespace nibble
