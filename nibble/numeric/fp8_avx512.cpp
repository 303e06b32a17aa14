// FP8 rows to BF16 values. E4M3's bits, shifted, are a binary16 that is 2^-8 of the value, which
// the processor converts, subnormal ones included. Bound: memory.
#include <immintrin.h>

#include "nibble/numeric/fp8.h"
#include "nibble/numeric/nvfp4_isa.h"

namespace nibble {

bool dequantize_fp8_row_avx512(const uint8_t* codes, const float* scales, int64_t cols,
                               float* out) {
  __m512i largest = _mm512_setzero_si512();
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  for (int64_t begin = 0; begin < cols; begin += kFp8BlockSize) {
    const int64_t end = begin + kFp8BlockSize < cols ? begin + kFp8BlockSize : cols;
    const float scale = scales[begin / kFp8BlockSize];
    if (!(scale < 0x1p118f)) return false;  // 256 times it would overflow
    const __m512 factor = _mm512_set1_ps(scale * 256.0f);
    for (int64_t c = begin; c < end; c += 16) {
      const auto mask = static_cast<__mmask16>(end - c >= 16 ? 0xffff : (1 << (end - c)) - 1);
      const __m256i wide = _mm256_cvtepu8_epi16(_mm_maskz_loadu_epi8(mask, codes + c));
      const __m256i exponent =
          _mm256_slli_epi16(_mm256_and_si256(wide, _mm256_set1_epi16(0x7f)), 7);
      const __m256i sign = _mm256_slli_epi16(_mm256_and_si256(wide, _mm256_set1_epi16(0x80)), 8);
      // 0x7f and 0xff, NaN in E4M3, are 480 here.
      if (_mm256_mask_cmpeq_epi16_mask(mask, exponent, _mm256_set1_epi16(0x7f << 7)) != 0) {
        return false;
      }
      const __m512 value = _mm512_mul_ps(_mm512_cvtph_ps(_mm256_or_si256(exponent, sign)), factor);
      const __m512i bits = _mm512_castps_si512(value);
      const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
      const __m512i rounded =
          _mm512_and_si512(_mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd),
                           _mm512_set1_epi32(static_cast<int>(0xffff0000u)));
      largest = _mm512_max_epi32(largest, _mm512_and_si512(rounded, magnitude));
      _mm512_mask_storeu_ps(out + c, mask, _mm512_castsi512_ps(rounded));
    }
  }
  return _mm512_cmpge_epi32_mask(largest, _mm512_set1_epi32(0x7f800000)) == 0;
}

uint8_t largest_magnitude_code_avx512(const uint8_t* codes, int64_t count) {
  const __m512i mask7 = _mm512_set1_epi8(0x7f);
  __m512i largest = _mm512_setzero_si512();
  for (int64_t i = 0; i < count; i += 64) {
    const __mmask64 mask = count - i >= 64 ? ~__mmask64{0} : (__mmask64{1} << (count - i)) - 1;
    const __m512i bytes = _mm512_maskz_loadu_epi8(mask, codes + i);
    largest = _mm512_max_epu8(largest, _mm512_and_si512(bytes, mask7));
  }
  alignas(64) uint8_t lanes[64];
  _mm512_store_si512(lanes, largest);
  uint8_t result = 0;
  for (const uint8_t lane : lanes) result = lane > result ? lane : result;
  return result;
}

}  // namespace nibble
