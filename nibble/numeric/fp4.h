// E2M1: sign, 2 exponent bits, 1 fraction bit: 0, 0.5, 1, 1.5, 2, 3, 4, 6; no infinity, no NaN.
#pragma once

#include <cstdint>

#include "nibble/base/result.h"

namespace nibble {

inline constexpr float kE2m1Max = 6.0f;

// The value of each code; code 8, which real checkpoints contain, is -0. Data, not a function, so
// that ISA files may use it.
extern const float kE2m1Values[16];

// Nearest, ties to the even code, saturating at 6, for a finite value. The sign bit is set iff
// value < 0: -0 gives code 0, a small negative value code 8, as checkpoint writers do.
uint8_t float_to_e2m1(float value);

// The same for values that nobody has checked. Errors: kInvalidArgument for NaN and infinity.
Result<uint8_t> checked_float_to_e2m1(float value);

}  // namespace nibble
