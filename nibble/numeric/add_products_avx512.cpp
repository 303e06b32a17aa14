// A tile of 8 x 32 sums in sixteen registers: each step loads 32 values of b, and 8 of a one by
// one. Products and sums round separately, as in the plain code; processors that multiply and add
// on units of their own (Zen 5) lose nothing by it.
#include <immintrin.h>

#include "nibble/numeric/nvfp4_isa.h"

namespace nibble {

void add_product_tile_avx512(const float* a, const float* b, int64_t depth, int64_t m, int64_t n,
                             float* y, int64_t y_stride) {
  const auto low = static_cast<__mmask16>(n >= 16 ? 0xffff : (1 << n) - 1);
  const auto high = static_cast<__mmask16>(n >= 32 ? 0xffff : n > 16 ? (1 << (n - 16)) - 1 : 0);
  __m512 sums[kProductTileRows][2];
#pragma GCC unroll 8
  for (int i = 0; i < kProductTileRows; ++i) {
    const bool there = i < m;
    sums[i][0] = _mm512_maskz_loadu_ps(there ? low : __mmask16{0}, y + i * y_stride);
    sums[i][1] = _mm512_maskz_loadu_ps(there ? high : __mmask16{0}, y + i * y_stride + 16);
  }
  for (int64_t t = 0; t < depth; ++t) {
    const __m512 b_low = _mm512_loadu_ps(b + t * kProductTileCols);
    const __m512 b_high = _mm512_loadu_ps(b + t * kProductTileCols + 16);
#pragma GCC unroll 8
    for (int i = 0; i < kProductTileRows; ++i) {
      const __m512 factor = _mm512_set1_ps(a[t * kProductTileRows + i]);
      sums[i][0] = _mm512_add_ps(sums[i][0], _mm512_mul_ps(factor, b_low));
      sums[i][1] = _mm512_add_ps(sums[i][1], _mm512_mul_ps(factor, b_high));
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kProductTileRows; ++i) {
    if (i >= m) break;
    _mm512_mask_storeu_ps(y + i * y_stride, low, sums[i][0]);
    _mm512_mask_storeu_ps(y + i * y_stride + 16, high, sums[i][1]);
  }
}

}  // namespace nibble
