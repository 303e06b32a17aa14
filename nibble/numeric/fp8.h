// OCP E4M3 ("fn"): sign, 4 exponent bits (bias 7), 3 fraction bits; no infinity, 0x7f and 0xff are
// NaN, the largest value is 448 (0x7e), the smallest positive one 2^-9 (0x01).
#pragma once

#include <cstdint>

namespace nibble {

inline constexpr float kE4m3Max = 448.0f;
inline constexpr int kFp8BlockSize = 128;  // rows and columns of DeepSeek's FP8 blocks

// The value of each code. Data, not a function, so that ISA files may use it.
extern const float kE4m3Values[256];

// Nearest, ties to even, saturating at 448 (infinity too); keeps the sign of zero; NaN -> 0x7f with
// the sign. Source: OCP 8-bit floating point, saturating mode.
uint8_t float_to_e4m3(float value);

}  // namespace nibble
