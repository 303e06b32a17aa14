// Rounding to BF16 and to sums of BF16 values, bit by bit what nibble/numeric/bf16.h does.
#pragma once

#include <cstdint>

namespace nibble::cuda {

__device__ inline float bf16_value(uint16_t bits) {
  return __uint_as_float(static_cast<uint32_t>(bits) << 16);
}

// Nearest, ties to even; NaN stays NaN.
__device__ inline uint16_t bf16_bits(float value) {
  const uint32_t bits = __float_as_uint(value);
  if ((bits & 0x7fffffff) > 0x7f800000) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// The same in one instruction (the bits of a NaN may differ): code that runs once is waited for by
// the byte.
__device__ inline uint16_t bf16_rounded(float value) {
  uint16_t bits;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
}

// What is left of a value under its part `bits`: nothing where that is not finite.
__device__ inline float bf16_rest(float value, uint16_t bits) {
  return (bits & 0x7f80) == 0x7f80 ? 0 : value - bf16_value(bits);
}

// value = part 0 + part 1 + part 2, each a BF16 value: exact for all but values below 2^-110 or
// so. What is not finite stays in part 0.
__device__ inline uint16_t bf16_part(float value, int part) {
  const uint16_t first = bf16_bits(value);
  if (part == 0) return first;
  if ((first & 0x7f80) == 0x7f80) return 0;
  const float rest = value - bf16_value(first);
  const uint16_t second = bf16_bits(rest);
  if (part == 1) return second;
  return bf16_bits(rest - bf16_value(second));
}

}  // namespace nibble::cuda
