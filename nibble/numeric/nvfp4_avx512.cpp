// Sixteen NVFP4 blocks at once, one to a lane: after a 16x16 transposition a block's maximum, its
// scale and the errors of candidates need no step across lanes, and sums run over a block in the
// same order as in the plain code. Bound: arithmetic; division is about a third of mode max.
#include <immintrin.h>

#include "nibble/numeric/fp8.h"
#include "nibble/numeric/nvfp4_isa.h"

namespace nibble {
namespace {

constexpr int kLanes = 16;
constexpr int kBlock = 16;

// rows[i] = 16 floats of block i -> columns: value i of all blocks.
void transpose(const float* values, int64_t stride, __m512* columns) {
  __m512 a[16];
  __m512 b[16];
  for (int i = 0; i < 16; ++i) a[i] = _mm512_loadu_ps(values + i * stride);
  for (int i = 0; i < 16; i += 2) {
    b[i] = _mm512_unpacklo_ps(a[i], a[i + 1]);
    b[i + 1] = _mm512_unpackhi_ps(a[i], a[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    a[i] = _mm512_shuffle_ps(b[i], b[i + 2], 0x44);
    a[i + 1] = _mm512_shuffle_ps(b[i], b[i + 2], 0xee);
    a[i + 2] = _mm512_shuffle_ps(b[i + 1], b[i + 3], 0x44);
    a[i + 3] = _mm512_shuffle_ps(b[i + 1], b[i + 3], 0xee);
  }
  for (int i = 0; i < 4; ++i) {
    b[i] = _mm512_shuffle_f32x4(a[i], a[i + 4], 0x88);
    b[i + 4] = _mm512_shuffle_f32x4(a[i], a[i + 4], 0xdd);
    b[i + 8] = _mm512_shuffle_f32x4(a[i + 8], a[i + 12], 0x88);
    b[i + 12] = _mm512_shuffle_f32x4(a[i + 8], a[i + 12], 0xdd);
  }
  for (int i = 0; i < 4; ++i) {
    columns[i] = _mm512_shuffle_f32x4(b[i], b[i + 8], 0x88);
    columns[i + 8] = _mm512_shuffle_f32x4(b[i], b[i + 8], 0xdd);
    columns[i + 4] = _mm512_shuffle_f32x4(b[i + 4], b[i + 12], 0x88);
    columns[i + 12] = _mm512_shuffle_f32x4(b[i + 4], b[i + 12], 0xdd);
  }
}

// The magnitude of each block's largest value, as bits: they order as the magnitudes do.
__m512i largest_bits(const __m512* columns) {
  const __m512i mask = _mm512_set1_epi32(0x7fffffff);
  __m512i largest = _mm512_setzero_si512();
  for (int i = 0; i < kBlock; ++i) {
    largest = _mm512_max_epi32(largest, _mm512_and_si512(_mm512_castps_si512(columns[i]), mask));
  }
  return largest;
}

bool all_finite(__m512i bits) {
  return _mm512_cmpge_epi32_mask(bits, _mm512_set1_epi32(0x7f800000)) == 0;
}

// Nearest even on `shift` dropped bits.
template <int shift>
__m512i round_bits(__m512i bits) {
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, shift), _mm512_set1_epi32(1));
  const __m512i half = _mm512_set1_epi32((1 << (shift - 1)) - 1);
  return _mm512_srli_epi32(_mm512_add_epi32(_mm512_add_epi32(bits, half), odd), shift);
}

// nvfp4_block_scale_code
__m512i scale_codes(__m512 amax, float global_scale) {
  __m512 ratio = _mm512_div_ps(amax, _mm512_set1_ps(6.0f * global_scale));
  const __mmask16 zero = _mm512_cmp_ps_mask(ratio, _mm512_setzero_ps(), _CMP_EQ_OQ);
  ratio = _mm512_mask_mov_ps(ratio, zero, _mm512_set1_ps(1.0f));
  ratio = _mm512_min_ps(_mm512_max_ps(ratio, _mm512_set1_ps(0x1p-9f)), _mm512_set1_ps(448.0f));
  const __m512i normal =
      _mm512_sub_epi32(round_bits<20>(_mm512_castps_si512(ratio)), _mm512_set1_epi32(120 << 3));
  const __m512 shifted = _mm512_add_ps(ratio, _mm512_set1_ps(0x1p14f));
  const __m512i subnormal = _mm512_and_si512(_mm512_castps_si512(shifted), _mm512_set1_epi32(0xf));
  const __mmask16 is_small = _mm512_cmp_ps_mask(ratio, _mm512_set1_ps(0x1p-6f), _CMP_LT_OQ);
  return _mm512_mask_mov_epi32(normal, is_small, subnormal);
}

__m512 divisors(__m512i codes, float global_scale) {
  return _mm512_mul_ps(_mm512_i32gather_ps(codes, kE4m3Values, 4), _mm512_set1_ps(global_scale));
}

bool any_zero(__m512 divisor) {
  return _mm512_cmp_ps_mask(divisor, _mm512_setzero_ps(), _CMP_EQ_OQ) != 0;
}

// The magnitude's code, 0..7. Below 1 codes are multiples of 0.5, which adding 2^22 makes the last
// place of a binary32; from 1 on E2M1 keeps one fraction bit.
__m512i magnitude_codes(__m512 x) {
  const __m512 a = _mm512_min_ps(_mm512_abs_ps(x), _mm512_set1_ps(6.0f));
  const __m512i small = _mm512_and_si512(
      _mm512_castps_si512(_mm512_add_ps(a, _mm512_set1_ps(0x1p22f))), _mm512_set1_epi32(7));
  const __m512i large =
      _mm512_sub_epi32(round_bits<22>(_mm512_castps_si512(a)), _mm512_set1_epi32(252));
  const __mmask16 is_small = _mm512_cmp_ps_mask(a, _mm512_set1_ps(1.0f), _CMP_LT_OQ);
  return _mm512_mask_mov_epi32(large, is_small, small);
}

__m512i e2m1_codes(__m512 x) {
  const __mmask16 negative = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_LT_OQ);
  const __m512i code = magnitude_codes(x);
  return _mm512_mask_or_epi32(code, negative, code, _mm512_set1_epi32(8));
}

// The decoded E2M1 value of x, sign included.
__m512 e2m1_rounded(__m512 x) {
  const __m512 table = _mm512_setr_ps(0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f, -0.0f, -0.5f,
                                      -1.0f, -1.5f, -2.0f, -3.0f, -4.0f, -6.0f);
  return _mm512_permutexvar_ps(e2m1_codes(x), table);
}

void store_codes(const __m512* columns, __m512 divisor, const Nvfp4Lanes& lanes) {
  __m512i words[2];
  for (int half = 0; half < 2; ++half) {
    __m512i word = _mm512_setzero_si512();
    for (int i = 0; i < 8; ++i) {
      const __m512i code = e2m1_codes(_mm512_div_ps(columns[8 * half + i], divisor));
      word = _mm512_or_si512(word, _mm512_sllv_epi32(code, _mm512_set1_epi32(4 * i)));
    }
    words[half] = word;
  }
  alignas(64) uint32_t low[kLanes];
  alignas(64) uint32_t high[kLanes];
  _mm512_store_si512(low, words[0]);
  _mm512_store_si512(high, words[1]);
  for (int i = 0; i < kLanes; ++i) {
    const uint64_t both = low[i] | static_cast<uint64_t>(high[i]) << 32;
    __builtin_memcpy(lanes.packed + i * lanes.packed_stride, &both, 8);
  }
}

void store_scales(__m512i codes, const Nvfp4Lanes& lanes) {
  alignas(16) uint8_t bytes[kLanes];
  _mm_store_si128(reinterpret_cast<__m128i*>(bytes), _mm512_cvtepi32_epi8(codes));
  for (int i = 0; i < kLanes; ++i) lanes.scales[i * lanes.scale_stride] = bytes[i];
}

// A sum for each lane in binary64.
struct Doubles {
  __m512d low;
  __m512d high;
};

Doubles squared_errors(const __m512* columns, __m512 divisor) {
  Doubles sum = {_mm512_setzero_pd(), _mm512_setzero_pd()};
  for (int i = 0; i < kBlock; ++i) {
    const __m512 back = _mm512_mul_ps(e2m1_rounded(_mm512_div_ps(columns[i], divisor)), divisor);
    const __m512d low = _mm512_sub_pd(_mm512_cvtps_pd(_mm512_castps512_ps256(columns[i])),
                                      _mm512_cvtps_pd(_mm512_castps512_ps256(back)));
    const __m512d high = _mm512_sub_pd(_mm512_cvtps_pd(_mm512_extractf32x8_ps(columns[i], 1)),
                                       _mm512_cvtps_pd(_mm512_extractf32x8_ps(back, 1)));
    sum.low = _mm512_add_pd(sum.low, _mm512_mul_pd(low, low));
    sum.high = _mm512_add_pd(sum.high, _mm512_mul_pd(high, high));
  }
  return sum;
}

// Lanes in which a < b.
__mmask16 less(const Doubles& a, const Doubles& b) {
  const unsigned low = _mm512_cmp_pd_mask(a.low, b.low, _CMP_LT_OQ);
  const unsigned high = _mm512_cmp_pd_mask(a.high, b.high, _CMP_LT_OQ);
  return static_cast<__mmask16>(low | high << 8);
}

void replace(__mmask16 where, const Doubles& by, Doubles& target) {
  target.low = _mm512_mask_mov_pd(target.low, static_cast<__mmask8>(where & 0xff), by.low);
  target.high = _mm512_mask_mov_pd(target.high, static_cast<__mmask8>(where >> 8), by.high);
}

// e' H e for each lane, in binary32: row by row of the lower triangle.
__m512 hessian_errors(const __m512* columns, __m512 divisor, const float* hessian) {
  __m512 errors[kBlock];
  __m512 sum = _mm512_setzero_ps();
  for (int i = 0; i < kBlock; ++i) {
    const __m512 back = _mm512_mul_ps(e2m1_rounded(_mm512_div_ps(columns[i], divisor)), divisor);
    errors[i] = _mm512_sub_ps(columns[i], back);
    __m512 cross = _mm512_setzero_ps();
    for (int j = 0; j < i; ++j) {
      cross =
          _mm512_add_ps(cross, _mm512_mul_ps(_mm512_set1_ps(hessian[kBlock * i + j]), errors[j]));
    }
    const __m512 own = _mm512_mul_ps(_mm512_set1_ps(hessian[(kBlock + 1) * i]), errors[i]);
    const __m512 row = _mm512_add_ps(_mm512_add_ps(cross, cross), own);
    sum = _mm512_add_ps(sum, _mm512_mul_ps(errors[i], row));
  }
  return sum;
}

// The first and last scale code that can be any lane's best. Below `lowest` clipping the largest
// value costs more than a scale that is known; beyond four times the largest value all codes are 0,
// and errors do not change any more.
struct Range {
  int first;
  int last;
};

Range candidate_range(float lowest, float largest, float global_scale) {
  Range range = {1, 0x7e};
  while (range.first < 0x7e && kE4m3Values[range.first] * global_scale < lowest) ++range.first;
  while (range.last > range.first && kE4m3Values[range.last - 1] * global_scale > 4.1f * largest) {
    --range.last;
  }
  return range;
}

// The divisor under which clipping alone is further off than `errors`: (amax - 6 d)^2 > error.
float smallest_useful_divisor(__m512 amax, const Doubles& errors) {
  const __m512 error = _mm512_insertf32x8(_mm512_castps256_ps512(_mm512_cvtpd_ps(errors.low)),
                                          _mm512_cvtpd_ps(errors.high), 1);
  const __m512 root = _mm512_mul_ps(_mm512_sqrt_ps(error), _mm512_set1_ps(1.001f));
  return _mm512_reduce_min_ps(_mm512_sub_ps(amax, root)) * (0.999f / 6.0f);
}

}  // namespace

bool encode_nvfp4_max_avx512(const Nvfp4Lanes& lanes, float global_scale) {
  __m512 columns[kBlock];
  transpose(lanes.values, lanes.value_stride, columns);
  const __m512i largest = largest_bits(columns);
  if (!all_finite(largest)) return false;
  const __m512i codes = scale_codes(_mm512_castsi512_ps(largest), global_scale);
  const __m512 divisor = divisors(codes, global_scale);
  if (any_zero(divisor)) return false;
  store_codes(columns, divisor, lanes);
  store_scales(codes, lanes);
  return true;
}

bool encode_nvfp4_four_over_six_avx512(const Nvfp4Lanes& lanes, float global_scale) {
  __m512 columns[kBlock];
  transpose(lanes.values, lanes.value_stride, columns);
  const __m512i largest = largest_bits(columns);
  if (!all_finite(largest)) return false;
  const __m512 amax = _mm512_castsi512_ps(largest);
  const __m512i to_six = scale_codes(amax, global_scale);
  const __m512i to_four = scale_codes(_mm512_mul_ps(amax, _mm512_set1_ps(1.5f)), global_scale);
  const __m512i smaller = _mm512_min_epi32(to_six, to_four);
  const __m512i larger = _mm512_max_epi32(to_six, to_four);
  if (any_zero(divisors(smaller, global_scale))) return false;
  const Doubles first = squared_errors(columns, divisors(smaller, global_scale));
  const Doubles second = squared_errors(columns, divisors(larger, global_scale));
  const __m512i codes = _mm512_mask_mov_epi32(smaller, less(second, first), larger);
  store_codes(columns, divisors(codes, global_scale), lanes);
  store_scales(codes, lanes);
  return true;
}

namespace {

// The squared errors in binary32, with a reciprocal: within 2^-18 of squared_errors(), relatively.
__m512 rough_errors(const __m512* columns, float divisor) {
  const __m512 reciprocal = _mm512_set1_ps(1.0f / divisor);
  const __m512 factor = _mm512_set1_ps(divisor);
  __m512 sum = _mm512_setzero_ps();
  for (int i = 0; i < kBlock; ++i) {
    const __m512 back = _mm512_mul_ps(e2m1_rounded(_mm512_mul_ps(columns[i], reciprocal)), factor);
    const __m512 error = _mm512_sub_ps(columns[i], back);
    sum = _mm512_add_ps(sum, _mm512_mul_ps(error, error));
  }
  return sum;
}

// The best candidate of each lane where rough errors single out one or two; false otherwise, and
// for values so small or large that binary32 loses their squares.
bool find_mse_codes(const __m512* columns, const Range& range, float global_scale, __m512i* codes) {
  if (kE4m3Values[range.first] * global_scale < 0x1p-100f) return false;  // no reciprocal
  alignas(64) float rough[128][kLanes];
  __m512 least = _mm512_set1_ps(__builtin_inff());
  for (int candidate = range.first; candidate <= range.last; ++candidate) {
    const __m512 errors = rough_errors(columns, kE4m3Values[candidate] * global_scale);
    _mm512_store_ps(rough[candidate], errors);
    least = _mm512_min_ps(least, errors);
  }
  if (_mm512_cmp_ps_mask(least, _mm512_set1_ps(0x1p-90f), _CMP_NGE_UQ) != 0) return false;
  if (_mm512_cmp_ps_mask(least, _mm512_set1_ps(0x1p120f), _CMP_NLE_UQ) != 0) return false;
  const __m512 limit = _mm512_mul_ps(least, _mm512_set1_ps(1.0f + 0x1p-16f));
  __m512i first = _mm512_setzero_si512();  // no candidate is 0
  __m512i second = _mm512_setzero_si512();
  for (int candidate = range.first; candidate <= range.last; ++candidate) {
    const __mmask16 near = _mm512_cmp_ps_mask(_mm512_load_ps(rough[candidate]), limit, _CMP_LE_OQ);
    if (near == 0) continue;
    const __mmask16 empty = _mm512_mask_testn_epi32_mask(near, first, first);
    const auto rest = static_cast<__mmask16>(near & ~empty);
    if (_mm512_mask_test_epi32_mask(rest, second, second) != 0) return false;
    first = _mm512_mask_mov_epi32(first, empty, _mm512_set1_epi32(candidate));
    second = _mm512_mask_mov_epi32(second, rest, _mm512_set1_epi32(candidate));
  }
  *codes = first;
  const __mmask16 close = _mm512_test_epi32_mask(second, second);
  if (close == 0) return true;
  second = _mm512_mask_mov_epi32(first, close, second);
  const __mmask16 better = less(squared_errors(columns, divisors(second, global_scale)),
                                squared_errors(columns, divisors(first, global_scale)));
  *codes = _mm512_mask_mov_epi32(first, better, second);
  return true;
}

__m512i exact_mse_codes(const __m512* columns, const Range& range, float global_scale) {
  Doubles best = {_mm512_set1_pd(__builtin_inf()), _mm512_set1_pd(__builtin_inf())};
  __m512i codes = _mm512_set1_epi32(range.first);
  for (int candidate = range.first; candidate <= range.last; ++candidate) {
    const __m512 divisor = _mm512_set1_ps(kE4m3Values[candidate] * global_scale);
    const Doubles errors = squared_errors(columns, divisor);
    const __mmask16 better = less(errors, best);
    replace(better, errors, best);
    codes = _mm512_mask_mov_epi32(codes, better, _mm512_set1_epi32(candidate));
  }
  return codes;
}

}  // namespace

bool encode_nvfp4_mse_avx512(const Nvfp4Lanes& lanes, float global_scale) {
  if (kE4m3Values[1] * global_scale == 0.0f) return false;
  __m512 columns[kBlock];
  transpose(lanes.values, lanes.value_stride, columns);
  const __m512i largest = largest_bits(columns);
  if (!all_finite(largest)) return false;
  const __m512 amax = _mm512_castsi512_ps(largest);
  const Doubles known =
      squared_errors(columns, divisors(scale_codes(amax, global_scale), global_scale));
  const Range range = candidate_range(smallest_useful_divisor(amax, known),
                                      _mm512_reduce_max_ps(amax), global_scale);
  __m512i codes;
  if (!find_mse_codes(columns, range, global_scale, &codes)) {
    codes = exact_mse_codes(columns, range, global_scale);
  }
  store_codes(columns, divisors(codes, global_scale), lanes);
  store_scales(codes, lanes);
  return true;
}

bool encode_nvfp4_hessian_avx512(const Nvfp4Lanes& lanes, float global_scale,
                                 const float* hessian) {
  if (kE4m3Values[1] * global_scale == 0.0f) return false;
  __m512 columns[kBlock];
  transpose(lanes.values, lanes.value_stride, columns);
  const __m512i largest = largest_bits(columns);
  if (!all_finite(largest)) return false;
  const __m512 amax = _mm512_castsi512_ps(largest);
  const __m512i to_six = scale_codes(amax, global_scale);
  const __m512i first =
      _mm512_max_epi32(_mm512_sub_epi32(to_six, _mm512_set1_epi32(8)), _mm512_set1_epi32(1));
  __m512 best = _mm512_set1_ps(__builtin_inff());
  __m512i codes = first;
  for (int step = 0; step < 20; ++step) {
    const __m512i candidate =
        _mm512_min_epi32(_mm512_add_epi32(first, _mm512_set1_epi32(step)), _mm512_set1_epi32(0x7e));
    const __m512 errors = hessian_errors(columns, divisors(candidate, global_scale), hessian);
    const __mmask16 better = _mm512_cmp_ps_mask(errors, best, _CMP_LT_OQ);
    best = _mm512_mask_mov_ps(best, better, errors);
    codes = _mm512_mask_mov_epi32(codes, better, candidate);
  }
  store_codes(columns, divisors(codes, global_scale), lanes);
  store_scales(codes, lanes);
  return true;
}

}  // namespace nibble
