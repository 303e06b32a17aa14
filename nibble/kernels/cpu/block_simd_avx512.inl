// Lanes, sixteen 32-bit integers, on AVX-512: one register. After simd_avx512.inl.

namespace nibble {
namespace {

using Lanes = __m512i;

constexpr int kBlockPanels = 2;  // times 6 tokens: 12 sums and 12 dots of 32 registers
constexpr int kPairBits = 0;     // v_pairs multiplies doubled codes by 2^kPairBits

inline Lanes v_load_lanes(const uint8_t* p) { return _mm512_loadu_si512(p); }
inline void v_store_lanes(uint8_t* p, Lanes v) { _mm512_storeu_si512(p, v); }
inline int32_t load_int32(const uint8_t* p) {
  int32_t x = 0;
  __builtin_memcpy(&x, p, sizeof(x));
  return x;
}
inline Lanes v_lanes(const uint8_t* p) { return _mm512_set1_epi32(load_int32(p)); }
inline V16 v_to_float(Lanes v) { return _mm512_cvtepi32_ps(v); }
// scale * 2^e, given e << 23.
inline V16 v_add_step(V16 scale, const uint8_t* step) {
  return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(scale), v_lanes(step)));
}

// Columns j and j + 4 of eight as 16-bit pairs of doubled codes: nibble j of each 16-bit word. The
// permutation reads 5 bits of each index and the table repeats after 16, so nothing needs masking.
inline Lanes v_pairs(Codes codes, int j) {
  const __m512i table =
      _mm512_set_epi16(-12, -8, -6, -4, -3, -2, -1, 0, 12, 8, 6, 4, 3, 2, 1, 0,  //
                       -12, -8, -6, -4, -3, -2, -1, 0, 12, 8, 6, 4, 3, 2, 1, 0);
  return _mm512_permutexvar_epi16(j == 0 ? codes : _mm512_srli_epi16(codes, 4 * j), table);
}
inline Lanes v_pair_start(Lanes w, const uint8_t* x) { return _mm512_madd_epi16(w, v_lanes(x)); }
inline Lanes v_pair_add(Lanes sum, Lanes w, const uint8_t* x) {
#ifdef __AVX512VNNI__
  return _mm512_dpwssd_epi32(sum, w, v_lanes(x));
#else
  return _mm512_add_epi32(sum, _mm512_madd_epi16(w, v_lanes(x)));
#endif
}

// Columns 0 2 4 6 (half 0) or 1 3 5 7 (half 1) of eight as bytes, 12 + doubled code.
inline Lanes v_bytes(Codes codes, int half) {
  const __m512i table = _mm512_broadcast_i32x4(
      _mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0));
  const __m512i nibbles = half == 0 ? codes : _mm512_srli_epi16(codes, 4);
  return _mm512_shuffle_epi8(table, _mm512_and_si512(nibbles, _mm512_set1_epi8(15)));
}
inline Lanes v_byte_add(Lanes sum, Lanes w, const uint8_t* x) {
#ifdef __AVX512VNNI__
  return _mm512_dpbusd_epi32(sum, w, v_lanes(x));
#else
  // A pair is at most 2 * 24 * 127: no 16-bit sum saturates.
  const __m512i pairs = _mm512_maddubs_epi16(w, v_lanes(x));
  return _mm512_add_epi32(sum, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
#endif
}

// What quantize_int16, quantize_int8 and round_e2m1 do with a block of 16 activations, in a few
// instructions; block_isa.inl has the plain loops that say what they mean.
#define NIBBLE_BLOCK_OWN_ROUNDING

inline uint32_t block_amax(const float* x) {
  return _mm512_reduce_max_epu32(
      _mm512_and_si512(_mm512_loadu_si512(x), _mm512_set1_epi32(0x7fffffff)));
}

inline void round_int16(const float* x, float inverse, int16_t* out) {
  // minps gives its second operand for a NaN.
  const __m512 v = _mm512_min_ps(_mm512_mul_ps(_mm512_loadu_ps(x), _mm512_set1_ps(inverse)),
                                 _mm512_set1_ps(32767.0f));
  const __m512i bits = _mm512_castps_si512(_mm512_add_ps(v, _mm512_set1_ps(12582912.0f)));
  const __m256i order = _mm256_broadcastsi128_si256(
      _mm_setr_epi8(0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out),
                      _mm256_shuffle_epi8(_mm512_cvtepi32_epi16(bits), order));
}

inline int32_t round_int8(const float* x, float inverse, int8_t* out) {
  const __m512 v = _mm512_mul_ps(_mm512_loadu_ps(x), _mm512_set1_ps(inverse));
  const __m512i rounded =
      _mm512_sub_epi32(_mm512_castps_si512(_mm512_add_ps(v, _mm512_set1_ps(12582912.0f))),
                       _mm512_set1_epi32(0x4b400000));
  const __m128i order = _mm_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out),
                   _mm_shuffle_epi8(_mm512_cvtepi32_epi8(rounded), order));
  return _mm512_reduce_add_epi32(rounded);
}

inline int32_t round_doubled_e2m1(const float* x, float divisor, int8_t* out) {
  const __m512 v = _mm512_div_ps(_mm512_loadu_ps(x), _mm512_set1_ps(divisor));
  const __m512 a = _mm512_abs_ps(v);
  __m512i step = _mm512_setzero_si512();
  const auto add = [&](__mmask16 where, int more) {
    step = _mm512_mask_add_epi32(step, where, step, _mm512_set1_epi32(more));
  };
  add(_mm512_cmp_ps_mask(a, _mm512_set1_ps(0.25f), _CMP_GT_OQ), 1);
  add(_mm512_cmp_ps_mask(a, _mm512_set1_ps(0.75f), _CMP_GE_OQ), 1);
  add(_mm512_cmp_ps_mask(a, _mm512_set1_ps(1.25f), _CMP_GT_OQ), 1);
  add(_mm512_cmp_ps_mask(a, _mm512_set1_ps(1.75f), _CMP_GE_OQ), 1);
  add(_mm512_cmp_ps_mask(a, _mm512_set1_ps(2.5f), _CMP_GT_OQ), 2);
  add(_mm512_cmp_ps_mask(a, _mm512_set1_ps(3.5f), _CMP_GE_OQ), 2);
  add(_mm512_cmp_ps_mask(a, _mm512_set1_ps(5.0f), _CMP_GT_OQ), 4);
  const __mmask16 negative = _mm512_movepi32_mask(_mm512_castps_si512(v));
  const __m512i rounded = _mm512_mask_sub_epi32(step, negative, _mm512_setzero_si512(), step);
  const __m128i order = _mm_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out),
                   _mm_shuffle_epi8(_mm512_cvtepi32_epi8(rounded), order));
  return _mm512_reduce_add_epi32(rounded);
}

}  // namespace
}  // namespace nibble
