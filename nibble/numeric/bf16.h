// BF16 is the upper half of a binary32.
#pragma once

#include <bit>
#include <cstdint>

namespace nibble {

// Exact. A signalling NaN stays what it is.
inline float bf16_to_float(uint16_t bits) { return std::bit_cast<float>(uint32_t{bits} << 16); }

// Nearest, ties to even; what rounds past the largest finite value becomes infinity, NaN stays NaN
// (quiet, sign and upper payload kept).
inline uint16_t float_to_bf16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x0040u);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// The BF16 value nearest to `value`, as a float.
inline float round_to_bf16(float value) { return bf16_to_float(float_to_bf16(value)); }

}  // namespace nibble
