#include "nibble/numeric/fp4.h"

#include <fmt/format.h>

#include <cmath>

#include "nibble/base/error.h"

namespace nibble {

alignas(64) extern const float kE2m1Values[16] = {
    0.0f,  0.5f,  1.0f,  1.5f,  2.0f,  3.0f,  4.0f,  6.0f,   //
    -0.0f, -0.5f, -1.0f, -1.5f, -2.0f, -3.0f, -4.0f, -6.0f,  //
};

uint8_t float_to_e2m1(float value) {
  // Midpoints belong to the even neighbour: > where the code below is even, >= where it is odd.
  const float a = std::fabs(value);
  const int code = (a > 0.25f) + (a >= 0.75f) + (a > 1.25f) + (a >= 1.75f) + (a > 2.5f) +
                   (a >= 3.5f) + (a > 5.0f);
  return static_cast<uint8_t>(code | (value < 0 ? 8 : 0));
}

Result<uint8_t> checked_float_to_e2m1(float value) {
  if (!std::isfinite(value)) {
    return invalid_argument(fmt::format("{} has no E2M1 code, expected a finite value", value));
  }
  return float_to_e2m1(value);
}

}  // namespace nibble
