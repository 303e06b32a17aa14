// The eight tiles of AMX, and what fills them, on AVX-512 with FP16 and BF16.
#include <immintrin.h>

namespace nibble {
namespace {

struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

// Heights of the two tiles of rows and of the results that belong to them; 0: the second is not
// used, and all four results belong to the first.
inline void t_configure(int rows, int second_rows) {
  TileConfig config;
  for (int i = 0; i < 8; ++i) config.row_bytes[i] = 64;
  const int other = second_rows == 0 ? rows : second_rows;
  const int heights[8] = {rows, rows, other, other, rows, other, 16, 16};
  for (int i = 0; i < 8; ++i) config.rows[i] = static_cast<uint8_t>(heights[i]);
  // Not _tile_loadconfig: g++ 12 declares 8 bytes of it as read and drops the other stores.
  asm volatile("ldtilecfg %0" ::"m"(config));
}
inline void t_release() { asm volatile("tilerelease"); }

// The compiler keeps nothing in tiles. "memory": what is loaded must have been stored.
template <int kTile>
inline void t_zero() {
  asm volatile("tilezero %%tmm%c0" ::"i"(kTile));
}
template <int kTile>
inline void t_load(const void* rows, int64_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(rows), "r"(stride), "i"(kTile) : "memory");
}
// What is not to displace other data of L1.
template <int kTile>
inline void t_load_once(const void* rows, int64_t stride) {
  asm volatile("tileloaddt1 (%0,%1,1), %%tmm%c2" ::"r"(rows), "r"(stride), "i"(kTile) : "memory");
}
template <int kTile>
inline void t_store(void* rows, int64_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(rows), "r"(stride), "i"(kTile) : "memory");
}
template <int kSum, int kRows, int kWeights>
inline void t_dot() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSum), "i"(kRows), "i"(kWeights));
}

inline void t_clear(uint8_t* out, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) _mm512_store_si512(out + i, _mm512_setzero_si512());
}

// A block of 16 columns: 8 vectors of pairs, columns j and j + 4 of eight, each weight times
// 2^-112. Code and scale are multiplied in binary16, exactly: a scale's bits are its own, and the
// product, 2^-10 to 2688 with 5 bits after the leading one, becomes BF16 by a shift of its fields.
inline __attribute__((always_inline)) void t_expand_block(const uint8_t* codes,
                                                          const uint8_t* scales, uint8_t* out) {
  const __m512i table = _mm512_set_epi16(
      short(0xc600), short(0xc400), short(0xc200), short(0xc000), short(0xbe00), short(0xbc00),
      short(0xb800), short(0x8000), 0x4600, 0x4400, 0x4200, 0x4000, 0x3e00, 0x3c00, 0x3800, 0,  //
      short(0xc600), short(0xc400), short(0xc200), short(0xc000), short(0xbe00), short(0xbc00),
      short(0xb800), short(0x8000), 0x4600, 0x4400, 0x4200, 0x4000, 0x3e00, 0x3c00, 0x3800, 0);
  // Byte 4 l + i of the 16 to the upper halves of both words of lane i of 128 bits l.
  const __m512i spread =
      _mm512_set_epi32(0x0f800f80, 0x0e800e80, 0x0d800d80, 0x0c800c80, 0x0b800b80, 0x0a800a80,
                       0x09800980, 0x08800880, 0x07800780, 0x06800680, 0x05800580, 0x04800480,
                       0x03800380, 0x02800280, 0x01800180, 0x00800080);
  const __m512i bytes =
      _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(scales)));
  const __m512h scale =
      _mm512_castsi512_ph(_mm512_srli_epi16(_mm512_shuffle_epi8(bytes, spread), 1));
  const __m512i fields = _mm512_set1_epi16(short(0x8fff));
#pragma GCC unroll 2
  for (int half = 0; half < 2; ++half) {
    const __m512i nibbles = _mm512_loadu_si512(codes + 64 * half);
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      // Five bits of an index are read and the table repeats after 16.
      const __m512i index = j == 0 ? nibbles : _mm512_srli_epi16(nibbles, 4 * j);
      const __m512h weight = _mm512_castsi512_ph(_mm512_permutexvar_epi16(index, table));
      const __m512i product = _mm512_castph_si512(_mm512_mul_ph(weight, scale));
      _mm512_store_si512(out + 256 * half + 64 * j,
                         _mm512_and_si512(_mm512_srai_epi16(product, 3), fields));
    }
  }
}

// Eight columns of BF16 [8, 16] to 4 vectors of pairs, columns j and j + 4.
inline void t_pair_columns(const uint16_t* w, uint8_t* out) {
  const __m512i first = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11);
  const __m512i second = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    const __m512i a = _mm512_loadu_si512(w + 32 * i);
    const __m512i b = _mm512_loadu_si512(w + 64 + 32 * i);
    const __m512i low = _mm512_unpacklo_epi16(a, b);
    const __m512i high = _mm512_unpackhi_epi16(a, b);
    _mm512_store_si512(out + 128 * i, _mm512_permutex2var_epi64(low, first, high));
    _mm512_store_si512(out + 128 * i + 64, _mm512_permutex2var_epi64(low, second, high));
  }
}

// Eight columns of finite E4M3 codes [8, 16], likewise, each weight times 2^-112: codes become
// binary16 numbers times 2^-8, exactly, subnormals too, and those BF16 as NVFP4's products do.
inline void t_pair_columns(const uint8_t* w, uint8_t* out) {
  // Byte r of 32 to the upper half of lane r's lower word, byte 16 + r to that of its upper word.
  alignas(64) static constexpr uint8_t kPlaces[64] = {
      0, 0,  0, 16, 0, 1,  0, 17, 0, 2,  0, 18, 0, 3,  0, 19, 0, 4,  0, 20, 0, 5,
      0, 21, 0, 6,  0, 22, 0, 7,  0, 23, 0, 8,  0, 24, 0, 9,  0, 25, 0, 10, 0, 26,
      0, 11, 0, 27, 0, 12, 0, 28, 0, 13, 0, 29, 0, 14, 0, 30, 0, 15, 0, 31};
  const __m512i places = _mm512_load_si512(kPlaces);
  const __m512i code_fields = _mm512_set1_epi16(short(0xbf80));
  const __m512i fields = _mm512_set1_epi16(short(0x8fff));
  const __m512h factor = _mm512_set1_ph(256);
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const auto* const column = reinterpret_cast<const __m128i*>(w + 16 * j);
    const __m256i both = _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128(column)),
                                                 _mm_loadu_si128(column + 4), 1);
    const __m512i words =
        _mm512_maskz_permutexvar_epi8(0xaaaaaaaaaaaaaaaa, places, _mm512_castsi256_si512(both));
    const __m512i code = _mm512_and_si512(_mm512_srai_epi16(words, 1), code_fields);
    const __m512i weight = _mm512_castph_si512(_mm512_mul_ph(_mm512_castsi512_ph(code), factor));
    _mm512_store_si512(out + 64 * j, _mm512_and_si512(_mm512_srai_epi16(weight, 3), fields));
  }
}

// out[r, :] = scale * x[r, :] + base[r, :], rounded once, for `rows` rows of 16; base may be null
// (0) or out; rows of out lie `stride` apart, the others 16.
inline void t_add_scaled(const float* x, float scale, const float* base, int64_t rows, float* out,
                         int64_t stride) {
  const __m512 factor = _mm512_set1_ps(scale);
  for (int64_t r = 0; r < rows; ++r) {
    const __m512 v = _mm512_loadu_ps(x + 16 * r);
    _mm512_storeu_ps(out + r * stride,
                     base == nullptr ? _mm512_mul_ps(v, factor)
                                     : _mm512_fmadd_ps(v, factor, _mm512_loadu_ps(base + 16 * r)));
  }
}

// Sixteen floats rounded to BF16, in the lower halves of words; *rest is what that left.
inline __m512i t_round(__m512 v, __m512* rest) {
  const __m512i bits = _mm512_cvtepu16_epi32(reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(v)));
  *rest = _mm512_sub_ps(v, _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16)));
  return bits;
}

void tile_expand_floats(const float* w, int64_t count, int planes, void* out) {
  auto* tile = static_cast<uint8_t*>(out);
  const auto row = [&](int64_t k) {
    return k < count ? _mm512_loadu_ps(w + k * kPanelRows) : _mm512_setzero_ps();
  };
  for (int64_t first = 0; first < count; first += 32, tile += planes * 1024) {
    for (int64_t i = 0; i < 16; ++i) {
      __m512 low = row(first + 2 * i);
      __m512 high = row(first + 2 * i + 1);
      for (int plane = 0; plane < planes; ++plane) {
        const __m512i low_bits = t_round(low, &low);
        const __m512i pairs =
            _mm512_or_si512(low_bits, _mm512_slli_epi32(t_round(high, &high), 16));
        _mm512_storeu_si512(tile + plane * 1024 + i * 64, pairs);
      }
    }
  }
}

// 16 x 16 words of 32 bits: pairs, fours, then the four 128-bit lanes.
inline void t_transpose(__m512i* rows) {
  __m512i t[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
  }
  __m512i column[16];
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    column[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    column[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    column[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    column[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const __m512i a = _mm512_shuffle_i32x4(column[j], column[4 + j], 0x44);
    const __m512i b = _mm512_shuffle_i32x4(column[j], column[4 + j], 0xee);
    const __m512i c = _mm512_shuffle_i32x4(column[8 + j], column[12 + j], 0x44);
    const __m512i d = _mm512_shuffle_i32x4(column[8 + j], column[12 + j], 0xee);
    rows[j] = _mm512_shuffle_i32x4(a, c, 0x88);
    rows[4 + j] = _mm512_shuffle_i32x4(a, c, 0xdd);
    rows[8 + j] = _mm512_shuffle_i32x4(b, d, 0x88);
    rows[12 + j] = _mm512_shuffle_i32x4(b, d, 0xdd);
  }
}

void tile_expand_rows(const uint16_t* const* rows, int64_t count, int64_t dim, void* out) {
  auto* tile = static_cast<uint8_t*>(out);
  for (int64_t first = 0; first < dim; first += 32, tile += 1024) {
    const int64_t left = dim - first;
    const __mmask32 mask = left >= 32 ? 0xffffffffu : (1u << left) - 1;
    __m512i words[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) {
      words[i] =
          i < count ? _mm512_maskz_loadu_epi16(mask, rows[i] + first) : _mm512_setzero_si512();
    }
    t_transpose(words);
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) _mm512_storeu_si512(tile + 64 * i, words[i]);
  }
}

// Two panels at a time: their 32 outputs are a line of each row, and panels are written in order.
void tile_expand_columns(const uint16_t* const* rows, int64_t count, int64_t panels, void* out,
                         int64_t b_panel) {
  const __m512i first = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11);
  const __m512i second = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
  const int64_t padded = (count + 31) / 32 * 32;
  for (int64_t p = 0; p < panels; p += 2) {
    const bool two = p + 1 < panels;
    const __mmask32 mask = two ? 0xffffffffu : 0xffffu;
    auto* to = static_cast<uint8_t*>(out) + p * b_panel;
    const auto line = [&](int64_t row) __attribute__((always_inline)) {
      if (row >= count) return _mm512_setzero_si512();
      return _mm512_maskz_loadu_epi16(mask, rows[row] + p * kPanelRows);
    };
    for (int64_t k = 0; k < padded; k += 2, to += 64) {
      const __m512i a = line(k);
      const __m512i b = line(k + 1);
      const __m512i low = _mm512_unpacklo_epi16(a, b);
      const __m512i high = _mm512_unpackhi_epi16(a, b);
      _mm512_storeu_si512(to, _mm512_permutex2var_epi64(low, first, high));
      if (two) _mm512_storeu_si512(to + b_panel, _mm512_permutex2var_epi64(low, second, high));
    }
  }
}

void tile_round(const float* x, int64_t count, float factor, uint16_t* out) {
  for (int64_t i = 0; i < count; i += 16) {
    const int64_t left = count - i;
    const auto mask = static_cast<__mmask16>(left >= 16 ? 0xffff : (1 << left) - 1);
    const __m512 v = _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, x + i), _mm512_set1_ps(factor));
    _mm256_mask_storeu_epi16(out + i, mask, reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(v)));
  }
}

// Sixteen floats, one for each row of queries.
using TileLanes = __m512;
inline TileLanes l_load(const float* p) { return _mm512_loadu_ps(p); }
inline void l_store(float* p, TileLanes v) { _mm512_storeu_ps(p, v); }
inline TileLanes l_set(float x) { return _mm512_set1_ps(x); }
inline TileLanes l_add(TileLanes a, TileLanes b) { return _mm512_add_ps(a, b); }
inline TileLanes l_sub(TileLanes a, TileLanes b) { return _mm512_sub_ps(a, b); }
inline TileLanes l_mul(TileLanes a, TileLanes b) { return _mm512_mul_ps(a, b); }
inline TileLanes l_fma(TileLanes a, TileLanes b, TileLanes c) { return _mm512_fmadd_ps(a, b, c); }
// b where either is NaN.
inline TileLanes l_max(TileLanes a, TileLanes b) { return _mm512_max_ps(a, b); }
inline TileLanes l_ceil(TileLanes a) {
  return _mm512_roundscale_ps(a, _MM_FROUND_TO_POS_INF | _MM_FROUND_NO_EXC);
}
// v times 2^n for the whole number n that `places` holds in its lowest bits, added to the exponent.
inline TileLanes l_times_exp2(TileLanes v, TileLanes places) {
  return _mm512_castsi512_ps(
      _mm512_add_epi32(_mm512_castps_si512(v), _mm512_slli_epi32(_mm512_castps_si512(places), 23)));
}
// x where a > b, else y.
inline TileLanes l_where_greater(TileLanes a, TileLanes b, TileLanes x, TileLanes y) {
  return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_GT_OQ), y, x);
}
inline bool l_any_greater(TileLanes a, TileLanes b) {
  return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ) != 0;
}
// v in the lanes whose limit is above i, fill in the others.
using TileLimits = __m512i;
inline TileLimits l_limits(const int32_t* p) { return _mm512_loadu_si512(p); }
inline TileLanes l_keep(TileLimits limits, int32_t i, TileLanes v, TileLanes fill) {
  return _mm512_mask_blend_ps(_mm512_cmpgt_epi32_mask(limits, _mm512_set1_epi32(i)), fill, v);
}
// Positive numbers rounded to BF16, ties up: a in the lower halves of words, b in the upper ones.
using TileWords = __m512i;
inline TileWords l_pair(TileLanes a, TileLanes b) {
  const __m512i half = _mm512_set1_epi32(0x8000);
  const __m512i low = _mm512_srli_epi32(_mm512_add_epi32(_mm512_castps_si512(a), half), 16);
  const __m512i high = _mm512_add_epi32(_mm512_castps_si512(b), half);
  // high where the constant's bits are set, else low.
  return _mm512_ternarylogic_epi32(_mm512_set1_epi32(static_cast<int>(0xffff0000)), high, low,
                                   0xca);
}
// Word j of words[i] to word i of row j.
inline void l_store_transposed(TileWords* words, uint8_t* out) {
  t_transpose(words);
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) _mm512_store_si512(out + 64 * i, words[i]);
}

// kSwap: every 8 columns as 0 4 1 5 2 6 3 7.
template <bool kSwap>
void quantize_row(const float* x, int64_t count, int planes, const TileRow& row) {
  const auto place = [](__m256i v) {
    const __m256i order = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15));
    return kSwap ? _mm256_shuffle_epi8(v, order) : v;
  };
  for (int64_t i = 0; i < kSliceCols; i += 16) {
    uint8_t* const out = row.first + i / 32 * row.step_bytes + i % 32 * 2;
    const int64_t left = count - i;
    const auto mask = static_cast<__mmask16>(left >= 16 ? 0xffff : left > 0 ? (1 << left) - 1 : 0);
    const __m512 v = _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, x + i), _mm512_set1_ps(0x1p64f));
    const auto rounded = reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(v));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), place(rounded));
    if (planes == 1) continue;
    const __m512 upper = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(rounded), 16));
    const auto rest = reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(_mm512_sub_ps(v, upper)));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + row.plane_bytes), place(rest));
  }
}

}  // namespace
}  // namespace nibble
