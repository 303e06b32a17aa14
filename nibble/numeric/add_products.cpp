#include "nibble/numeric/add_products.h"

#include <algorithm>
#include <vector>

#include "nibble/numeric/nvfp4_isa.h"

namespace nibble {
namespace {

void add_products_plain(const ProductSum& s) {
  for (int64_t i = 0; i < s.m; ++i) {
    float* const y = s.y + i * s.y_stride;
    for (int64_t t = 0; t < s.depth; ++t) {
      const float factor = s.a[t * s.a_stride + i];
      const float* const b = s.b + t * s.b_stride;
      for (int64_t k = 0; k < s.n; ++k) y[k] += factor * b[k];
    }
  }
}

#if defined(__x86_64__)
// Columns [first, first + width) of a matrix, one row behind the other, missing ones 0: rows that
// lie a power of two apart would push each other out of the cache.
void pack(const float* values, int64_t stride, int64_t depth, int64_t count, int64_t width,
          float* packed) {
  for (int64_t t = 0; t < depth; ++t) {
    std::copy_n(values + t * stride, count, packed + t * width);
    std::fill(packed + t * width + count, packed + (t + 1) * width, 0.0f);
  }
}

void add_products_tiled(const ProductSum& s) {
  constexpr int64_t kM = kProductTileRows;
  constexpr int64_t kN = kProductTileCols;
  std::vector<float> a(static_cast<size_t>((s.m + kM - 1) / kM * kM * s.depth));
  std::vector<float> b(static_cast<size_t>(kN * s.depth));
  for (int64_t i = 0; i < s.m; i += kM) {
    pack(s.a + i, s.a_stride, s.depth, std::min(kM, s.m - i), kM, a.data() + i * s.depth);
  }
  for (int64_t k = 0; k < s.n; k += kN) {
    const int64_t n = std::min(kN, s.n - k);
    pack(s.b + k, s.b_stride, s.depth, n, kN, b.data());
    for (int64_t i = 0; i < s.m; i += kM) {
      add_product_tile_avx512(a.data() + i * s.depth, b.data(), s.depth, std::min(kM, s.m - i), n,
                              s.y + i * s.y_stride + k, s.y_stride);
    }
  }
}
#endif

}  // namespace

void add_products(const ProductSum& sum, [[maybe_unused]] Isa isa) {
#if defined(__x86_64__)
  if (isa >= Isa::kAvx512) return add_products_tiled(sum);
#endif
  add_products_plain(sum);
}

}  // namespace nibble
