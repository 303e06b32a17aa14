// V16, sixteen floats, on AVX2: two registers.
#include <immintrin.h>

namespace nibble {
namespace {

struct V16 {
  __m256 lo;
  __m256 hi;
};

constexpr int kRowTile = 2;     // query rows of a tile of score_entries and add_entries
constexpr int kEntryTile = 2;   // entries, or columns / 16
constexpr int kTilePanels = 1;  // times 6 tokens: 12 accumulators of 16 registers
constexpr int fused_panels(int tokens, PanelFormat) { return tokens <= 2 ? 2 : 1; }

inline V16 v_load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline void v_store(float* p, V16 v) {
  _mm256_storeu_ps(p, v.lo);
  _mm256_storeu_ps(p + 8, v.hi);
}
inline V16 v_set(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline V16 v_zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
inline V16 v_fma(V16 a, V16 b, V16 c) {
  return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
inline V16 v_mul(V16 a, V16 b) { return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)}; }
inline V16 v_add(V16 a, V16 b) { return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)}; }
inline V16 v_sub(V16 a, V16 b) { return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)}; }
inline V16 v_div(V16 a, V16 b) { return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)}; }
// b where either is NaN.
inline V16 v_max(V16 a, V16 b) { return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)}; }
inline V16 v_min(V16 a, V16 b) { return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)}; }
inline V16 v_round(V16 a) {
  return {_mm256_round_ps(a.lo, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC),
          _mm256_round_ps(a.hi, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
inline __m256 half_exp2i(__m256 n) {
  const __m256i i = _mm256_cvtps_epi32(n);
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(i, _mm256_set1_epi32(127)), 23));
}
// 2^n for whole n in -126 .. 127.
inline V16 v_exp2i(V16 n) { return {half_exp2i(n.lo), half_exp2i(n.hi)}; }

// v * 2^n for whole n in -252 .. 254.
inline V16 v_times_exp2(V16 v, V16 n) {
  const V16 half = v_round(v_mul(n, v_set(0.5f)));
  return v_mul(v_mul(v, v_exp2i(half)), v_exp2i(v_sub(n, half)));
}

inline float v_largest(V16 v) {
  const __m256 eight = _mm256_max_ps(v.lo, v.hi);
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

// The lanes' sum: i with i + 8, then + 4, + 2, + 1.
inline float v_sum(V16 v) {
  const __m256 eight = _mm256_add_ps(v.lo, v.hi);
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

inline __m256 half_bf16(const uint16_t* p) {
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
// rows[i][j] and rows[j][i] change places.
inline void v_transpose(V16* rows) {
  float in[16][16];
  float out[16][16];
  for (int i = 0; i < 16; ++i) v_store(in[i], rows[i]);
  for (int i = 0; i < 16; ++i) {
    for (int j = 0; j < 16; ++j) out[j][i] = in[i][j];
  }
  for (int i = 0; i < 16; ++i) rows[i] = v_load(out[i]);
}

inline V16 v_load_bf16(const uint16_t* p) { return {half_bf16(p), half_bf16(p + 8)}; }

// Finite E4M3 codes. Exponent and fraction moved into a binary32's place, subnormals included, are
// the value times 2^-120.
inline __m256 half_e4m3(const uint8_t* p) {
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  const __m256i wide = _mm256_slli_epi32(_mm256_cvtepi8_epi32(bytes), 20);
  const __m256i bits = _mm256_and_si256(wide, _mm256_set1_epi32(static_cast<int>(0x87f00000u)));
  return _mm256_mul_ps(_mm256_castsi256_ps(bits), _mm256_set1_ps(0x1p120f));
}
inline V16 v_load_e4m3_finite(const uint8_t* p) { return {half_e4m3(p), half_e4m3(p + 8)}; }

// All E4M3 codes: 0x7f and 0xff are NaN, whose place in a binary32 is all ones.
inline __m256 half_e4m3_nan(const uint8_t* p) {
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  const __m128i magnitude = _mm_and_si128(bytes, _mm_set1_epi8(0x7f));
  const __m128i nan = _mm_cmpeq_epi8(magnitude, _mm_set1_epi8(0x7f));
  return _mm256_or_ps(half_e4m3(p), _mm256_castsi256_ps(_mm256_cvtepi8_epi32(nan)));
}
inline V16 v_load_e4m3(const uint8_t* p) { return {half_e4m3_nan(p), half_e4m3_nan(p + 8)}; }

// NVFP4's block scales as a panel keeps them, times 2^power.
inline __m256 half_scale(const uint8_t* p, int power) {
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  const __m256i bits = _mm256_slli_epi32(_mm256_cvtepu8_epi32(bytes), 20);
  return _mm256_castsi256_ps(_mm256_add_epi32(bits, _mm256_set1_epi32((112 + power) << 23)));
}
inline V16 v_load_scale(const uint8_t* p, int power = 0) {
  return {half_scale(p, power), half_scale(p + 8, power)};
}

// Eight columns of 16 rows of NVFP4 codes: a lane is a row, its nibbles from the lowest up the
// columns.
struct Codes {
  __m256i lo;
  __m256i hi;
};
inline Codes v_load_codes(const uint8_t* p) {
  return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)),
          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 32))};
}

// The permutation reads 3 bits of each index, the magnitude; the sign is bit 3.
inline __m256 half_column(__m256i codes) {
  const __m256 magnitudes = _mm256_setr_ps(0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f);
  const __m256i sign = _mm256_and_si256(_mm256_slli_epi32(codes, 28), _mm256_set1_epi32(INT32_MIN));
  return _mm256_xor_ps(_mm256_permutevar8x32_ps(magnitudes, codes), _mm256_castsi256_ps(sign));
}

// The next column's values times the rows' scales.
inline V16 v_next_column(Codes* codes, V16 scale) {
  const V16 values = {half_column(codes->lo), half_column(codes->hi)};
  *codes = {_mm256_srli_epi32(codes->lo, 4), _mm256_srli_epi32(codes->hi, 4)};
  return v_mul(values, scale);
}

}  // namespace
}  // namespace nibble
