// NVFP4 tiles for AVX-512 with BF16: 64 bytes hold 4 lanes, rows g and g + 8 over 64 columns.
#include <immintrin.h>

#include "nibble/kernels/cuda/host/tile_isa.h"

namespace nibble::cuda {
namespace {

constexpr int64_t kUnit = 1152;  // kNvfp4UnitBytes

// 32 codes at bits 15 and 8 to 6 of each half of a word, as BF16 values.
__attribute__((always_inline)) inline __m512i codes_to_bf16(__m512i pairs) {
  // 0, 0.5, 1, 1.5, 2, 3, 4, 6
  const __m512i table = _mm512_set4_epi64(0, 0, 0x40c0408040404000, 0x3fc03f803f000000);
  const __m512i magnitude = _mm512_permutexvar_epi16(_mm512_srli_epi16(pairs, 6), table);
  // magnitude | (pairs & sign)
  return _mm512_ternarylogic_epi32(magnitude, pairs, _mm512_set1_epi32(-0x7fff8000), 0xf8);
}

template <int kTokens>
__attribute__((always_inline)) inline void multiply(const uint8_t* tile, int64_t units,
                                                    const uint32_t* x0, const uint32_t* x1,
                                                    float* out) {
  const __m512i mask = _mm512_set1_epi32(static_cast<int>(0x81c081c0u));
  const __m512i mask_x = _mm512_set1_epi32(0x60306030);
  const __m512i mask_y = _mm512_set1_epi32(static_cast<int>(0x80c180c1u));
  const __m512i turns = _mm512_set4_epi32(30, 8, 30, 8);
  const __m512i scale_bias = _mm512_set1_epi32(118 << 23);
  // Byte 4t + 2 half + u of a group's 16 scales, for word 4t + 2u + o.
  const __m128i scale_order[2] = {
      _mm_setr_epi8(0, 0, 1, 1, 4, 4, 5, 5, 8, 8, 9, 9, 12, 12, 13, 13),
      _mm_setr_epi8(2, 2, 3, 3, 6, 6, 7, 7, 10, 10, 11, 11, 14, 14, 15, 15)};
  __m512 sums[kTokens][8];
  for (int k = 0; k < kTokens; ++k) {
    for (int g = 0; g < 8; ++g) sums[k][g] = _mm512_setzero_ps();
  }
  for (int64_t unit = 0; unit < units; ++unit) {
    const uint8_t* const base = tile + unit * kUnit;
    for (int half = 0; half < 2; ++half) {
      const uint32_t* const x[2] = {x0 + (unit * 2 + half) * 64,
                                    kTokens > 1 ? x1 + (unit * 2 + half) * 64 : nullptr};
      __m512i in[kTokens][4];
      for (int k = 0; k < kTokens; ++k) {
        for (int i = 0; i < 4; ++i) in[k][i] = _mm512_loadu_si512(x[k] + 16 * i);
      }
#pragma GCC unroll 8
      for (int g = 0; g < 8; ++g) {
        const __m512i words = _mm512_loadu_si512(base + 512 * half + 64 * g);
        const __m512i even = _mm512_shuffle_epi32(words, static_cast<_MM_PERM_ENUM>(0xa0));
        const __m512i odd = _mm512_shuffle_epi32(words, static_cast<_MM_PERM_ENUM>(0xf5));
        const __m512i last = _mm512_or_si512(_mm512_and_si512(even, mask_x),
                                             _mm512_and_si512(_mm512_rol_epi32(odd, 2), mask_y));
        const __m512i pairs[4] = {_mm512_and_si512(words, mask),
                                  _mm512_and_si512(_mm512_ror_epi32(words, 4), mask),
                                  _mm512_and_si512(_mm512_ror_epi32(words, 26), mask),
                                  _mm512_and_si512(_mm512_rorv_epi32(last, turns), mask)};
        const __m128i codes = _mm_shuffle_epi8(
            _mm_loadu_si128(reinterpret_cast<const __m128i*>(base + 1024 + 16 * g)),
            scale_order[half]);
        const __m512 scales = _mm512_castsi512_ps(
            _mm512_add_epi32(_mm512_slli_epi32(_mm512_cvtepu8_epi32(codes), 20), scale_bias));
        __m512 products[kTokens];
        for (int k = 0; k < kTokens; ++k) products[k] = _mm512_setzero_ps();
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
          const auto weights = reinterpret_cast<__m512bh>(codes_to_bf16(pairs[i]));
          for (int k = 0; k < kTokens; ++k) {
            products[k] =
                _mm512_dpbf16_ps(products[k], weights, reinterpret_cast<__m512bh>(in[k][i]));
          }
        }
        for (int k = 0; k < kTokens; ++k) {
          sums[k][g] = _mm512_fmadd_ps(products[k], scales, sums[k][g]);
        }
      }
    }
  }
  for (int k = 0; k < kTokens; ++k) {
    for (int g = 0; g < 8; ++g) {
      out[16 * k + g] = _mm512_mask_reduce_add_ps(0x3333, sums[k][g]);
      out[16 * k + g + 8] = _mm512_mask_reduce_add_ps(0xcccc, sums[k][g]);
    }
  }
}

}  // namespace

void multiply_nvfp4_tile_avx512bf16(const uint8_t* tile, int64_t units, const uint32_t* x0,
                                    const uint32_t* x1, float* out) {
  if (x1 == nullptr) {
    multiply<1>(tile, units, x0, x1, out);
  } else {
    multiply<2>(tile, units, x0, x1, out);
  }
}

}  // namespace nibble::cuda
