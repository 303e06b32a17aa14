// The dot product of two NVFP4 rows without any rounding: an oracle for W4A4 kernels that does not
// depend on the order of summation.
#pragma once

#include <cstdint>

namespace nibble {

// sum of (2a)(2w) over one block of 16 codes: |result| <= 2304. Each argument is 8 bytes.
int32_t nvfp4_block_int_dot(const uint8_t* a_packed, const uint8_t* w_packed);

// N with sum_k (a_code * a_scale)(w_code * w_scale) = N * 2^-20, before the two global scales.
//   a_packed, w_packed [cols / 2]; a_scales, w_scales [cols / 16], each 0x00..0x7e
// Doubled E2M1 values are integers (factor 4 a product) and so are E4M3 values times 2^9 (factor
// 2^18 a product), at most 448 * 2^9 = 229,376: a block adds less than 2^47, so that int64 holds
// every row of up to 2^20 columns. Aborts for more, or when cols is not a multiple of 16.
int64_t nvfp4_exact_dot(const uint8_t* a_packed, const uint8_t* a_scales, const uint8_t* w_packed,
                        const uint8_t* w_scales, int64_t cols);

}  // namespace nibble
