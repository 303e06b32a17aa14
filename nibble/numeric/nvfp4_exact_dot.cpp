#include "nibble/numeric/nvfp4_exact_dot.h"

#include "nibble/base/check.h"
#include "nibble/numeric/fp4.h"
#include "nibble/numeric/fp8.h"
#include "nibble/numeric/nvfp4.h"

namespace nibble {
namespace {

int32_t doubled_e2m1(int code) { return static_cast<int32_t>(2 * kE2m1Values[code]); }

int64_t scale_times_512(uint8_t code) { return static_cast<int64_t>(kE4m3Values[code] * 512); }

}  // namespace

int32_t nvfp4_block_int_dot(const uint8_t* a_packed, const uint8_t* w_packed) {
  int32_t sum = 0;
  for (int i = 0; i < kNvfp4BlockSize / 2; ++i) {
    sum += doubled_e2m1(a_packed[i] & 0xf) * doubled_e2m1(w_packed[i] & 0xf);
    sum += doubled_e2m1(a_packed[i] >> 4) * doubled_e2m1(w_packed[i] >> 4);
  }
  return sum;
}

int64_t nvfp4_exact_dot(const uint8_t* a_packed, const uint8_t* a_scales, const uint8_t* w_packed,
                        const uint8_t* w_scales, int64_t cols) {
  NIBBLE_CHECK(cols % kNvfp4BlockSize == 0 && cols <= int64_t{1} << 20);
  int64_t sum = 0;
  for (int64_t b = 0; b < cols / kNvfp4BlockSize; ++b) {
    NIBBLE_CHECK(a_scales[b] < 0x7f && w_scales[b] < 0x7f);
    const int64_t block = nvfp4_block_int_dot(a_packed + b * (kNvfp4BlockSize / 2),
                                              w_packed + b * (kNvfp4BlockSize / 2));
    sum += block * scale_times_512(a_scales[b]) * scale_times_512(w_scales[b]);
  }
  return sum;
}

}  // namespace nibble
