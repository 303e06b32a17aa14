// V16, sixteen floats, on AVX-512: one register.
#include <immintrin.h>

namespace nibble {
namespace {

using V16 = __m512;

constexpr int kRowTile = 4;     // query rows of a tile of score_entries and add_entries
constexpr int kEntryTile = 4;   // entries, or columns / 16
constexpr int kTilePanels = 4;  // times 6 tokens: 24 accumulators of 32 registers
// As few streams as keep the units busy: memory gives its full rate to two sequential streams, two
// thirds of it to four or eight.
constexpr int fused_panels(int tokens, PanelFormat format) {
  return tokens <= 4 && (format == PanelFormat::kFp8 || format == PanelFormat::kNvfp4) ? 4 : 2;
}

inline V16 v_load(const float* p) { return _mm512_loadu_ps(p); }
inline void v_store(float* p, V16 v) { _mm512_storeu_ps(p, v); }
inline V16 v_set(float x) { return _mm512_set1_ps(x); }
inline V16 v_zero() { return _mm512_setzero_ps(); }
inline V16 v_fma(V16 a, V16 b, V16 c) { return _mm512_fmadd_ps(a, b, c); }
inline V16 v_mul(V16 a, V16 b) { return _mm512_mul_ps(a, b); }
inline V16 v_add(V16 a, V16 b) { return _mm512_add_ps(a, b); }
inline V16 v_sub(V16 a, V16 b) { return _mm512_sub_ps(a, b); }
inline V16 v_div(V16 a, V16 b) { return _mm512_div_ps(a, b); }
// b where either is NaN.
inline V16 v_max(V16 a, V16 b) { return _mm512_max_ps(a, b); }
inline V16 v_min(V16 a, V16 b) { return _mm512_min_ps(a, b); }
inline V16 v_round(V16 a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | 8); }
// 2^n for whole n in -126 .. 127.
inline V16 v_exp2i(V16 n) {
  const __m512i i = _mm512_cvtps_epi32(n);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(i, _mm512_set1_epi32(127)), 23));
}

// v * 2^n for whole n in -252 .. 254.
inline V16 v_times_exp2(V16 v, V16 n) { return _mm512_scalef_ps(v, n); }

inline float v_largest(V16 v) { return _mm512_reduce_max_ps(v); }

// The lanes' sum: i with i + 8, then + 4, + 2, + 1.
inline float v_sum(V16 v) {
  const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

// rows[i][j] and rows[j][i] change places: pairs, fours, then the four 128-bit lanes.
inline void v_transpose(V16* rows) {
  V16 t[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_ps(rows[i], rows[i + 1]);
    t[i + 1] = _mm512_unpackhi_ps(rows[i], rows[i + 1]);
  }
  const auto low = [](V16 a, V16 b) {
    return _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
  };
  const auto high = [](V16 a, V16 b) {
    return _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
  };
  // Lane l of column[4 * i + j] becomes rows 4 * i .. 4 * i + 3 of column 4 * l + j.
  V16 column[16];
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    column[i] = low(t[i], t[i + 2]);
    column[i + 1] = high(t[i], t[i + 2]);
    column[i + 2] = low(t[i + 1], t[i + 3]);
    column[i + 3] = high(t[i + 1], t[i + 3]);
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const V16 a = _mm512_shuffle_f32x4(column[j], column[4 + j], 0x44);
    const V16 b = _mm512_shuffle_f32x4(column[j], column[4 + j], 0xee);
    const V16 c = _mm512_shuffle_f32x4(column[8 + j], column[12 + j], 0x44);
    const V16 d = _mm512_shuffle_f32x4(column[8 + j], column[12 + j], 0xee);
    rows[j] = _mm512_shuffle_f32x4(a, c, 0x88);
    rows[4 + j] = _mm512_shuffle_f32x4(a, c, 0xdd);
    rows[8 + j] = _mm512_shuffle_f32x4(b, d, 0x88);
    rows[12 + j] = _mm512_shuffle_f32x4(b, d, 0xdd);
  }
}

inline V16 v_load_bf16(const uint16_t* p) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}

// Finite E4M3 codes. Exponent and fraction moved into a binary32's place, subnormals included, are
// the value times 2^-120.
inline V16 v_load_e4m3_finite(const uint8_t* p) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  const __m512i wide = _mm512_slli_epi32(_mm512_cvtepi8_epi32(bytes), 20);
  const __m512i bits = _mm512_and_si512(wide, _mm512_set1_epi32(static_cast<int>(0x87f00000u)));
  return _mm512_mul_ps(_mm512_castsi512_ps(bits), _mm512_set1_ps(0x1p120f));
}

// All E4M3 codes: 0x7f and 0xff are NaN.
inline V16 v_load_e4m3(const uint8_t* p) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  const __m128i magnitude = _mm_and_si128(bytes, _mm_set1_epi8(0x7f));
  const __mmask16 nan = _mm_cmpeq_epi8_mask(magnitude, _mm_set1_epi8(0x7f));
  return _mm512_mask_blend_ps(nan, v_load_e4m3_finite(p), _mm512_set1_ps(__builtin_nanf("")));
}

// NVFP4's block scales as a panel keeps them, times 2^power.
inline V16 v_load_scale(const uint8_t* p, int power = 0) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  const __m512i bits = _mm512_slli_epi32(_mm512_cvtepu8_epi32(bytes), 20);
  return _mm512_castsi512_ps(_mm512_add_epi32(bits, _mm512_set1_epi32((112 + power) << 23)));
}

// Eight columns of 16 rows of NVFP4 codes: a lane is a row, its nibbles from the lowest up the
// columns.
using Codes = __m512i;
inline Codes v_load_codes(const uint8_t* p) { return _mm512_loadu_si512(p); }

// The next column's values times the rows' scales. The permutation reads 4 bits of each index, so
// the nibbles above need no masking.
inline V16 v_next_column(Codes* codes, V16 scale) {
  const __m512 table = _mm512_setr_ps(0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f, -0.0f, -0.5f,
                                      -1.0f, -1.5f, -2.0f, -3.0f, -4.0f, -6.0f);
  const __m512 values = _mm512_permutexvar_ps(*codes, table);
  *codes = _mm512_srli_epi32(*codes, 4);
  return _mm512_mul_ps(values, scale);
}

}  // namespace
}  // namespace nibble
