// Lanes, sixteen 32-bit integers, on AVX2: two registers. After simd_avx2.inl.

namespace nibble {
namespace {

struct Lanes {
  __m256i lo;
  __m256i hi;
};

constexpr int kBlockPanels = 1;  // times 2 tokens: 4 registers of sums and 4 of dots
// v_pairs multiplies doubled codes by 2^kPairBits: it leaves a code in the upper byte of its 16
// bits: a block's sum is a multiple of 256 below 2^31, and its conversion to binary32 is still
// exact.
constexpr int kPairBits = 8;

inline Lanes v_load_lanes(const uint8_t* p) {
  return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)),
          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 32))};
}
inline void v_store_lanes(uint8_t* p, Lanes v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v.lo);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 32), v.hi);
}
inline __m256i half_lanes(const uint8_t* p) {
  int32_t x = 0;
  __builtin_memcpy(&x, p, sizeof(x));
  return _mm256_set1_epi32(x);
}
inline Lanes v_lanes(const uint8_t* p) { return {half_lanes(p), half_lanes(p)}; }
inline V16 v_to_float(Lanes v) { return {_mm256_cvtepi32_ps(v.lo), _mm256_cvtepi32_ps(v.hi)}; }
// scale * 2^e, given e << 23.
inline V16 v_add_step(V16 scale, const uint8_t* step) {
  const __m256i e = half_lanes(step);
  return {_mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(scale.lo), e)),
          _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(scale.hi), e))};
}

inline __m256i half_values(__m256i codes, int half, __m128i table) {
  const __m256i nibbles = half == 0 ? codes : _mm256_srli_epi16(codes, 4);
  return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(table),
                             _mm256_and_si256(nibbles, _mm256_set1_epi8(15)));
}
inline __m256i half_pairs(__m256i codes, int j) {
  const __m128i table = _mm_setr_epi8(0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12);
  const __m256i values = half_values(codes, j % 2, table);
  return j < 2 ? _mm256_slli_epi16(values, 8)
               : _mm256_and_si256(values, _mm256_set1_epi16(static_cast<int16_t>(0xff00)));
}
// Columns j and j + 4 of eight as 16-bit pairs: nibble j of each 16-bit word.
inline Lanes v_pairs(Codes codes, int j) {
  return {half_pairs(codes.lo, j), half_pairs(codes.hi, j)};
}
inline Lanes v_pair_start(Lanes w, const uint8_t* x) {
  const __m256i pair = half_lanes(x);
  return {_mm256_madd_epi16(w.lo, pair), _mm256_madd_epi16(w.hi, pair)};
}
inline Lanes v_pair_add(Lanes sum, Lanes w, const uint8_t* x) {
  const Lanes product = v_pair_start(w, x);
  return {_mm256_add_epi32(sum.lo, product.lo), _mm256_add_epi32(sum.hi, product.hi)};
}

// Columns 0 2 4 6 (half 0) or 1 3 5 7 (half 1) of eight as bytes, 12 + doubled code.
inline Lanes v_bytes(Codes codes, int half) {
  const __m128i table = _mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0);
  return {half_values(codes.lo, half, table), half_values(codes.hi, half, table)};
}
inline Lanes v_byte_add(Lanes sum, Lanes w, const uint8_t* x) {
  // A pair is at most 2 * 24 * 127: no 16-bit sum saturates.
  const __m256i ones = _mm256_set1_epi16(1);
  const __m256i four = half_lanes(x);
  return {_mm256_add_epi32(sum.lo, _mm256_madd_epi16(_mm256_maddubs_epi16(w.lo, four), ones)),
          _mm256_add_epi32(sum.hi, _mm256_madd_epi16(_mm256_maddubs_epi16(w.hi, four), ones))};
}

}  // namespace
}  // namespace nibble
