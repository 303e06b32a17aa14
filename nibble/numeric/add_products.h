// Sums of products of two tall matrices, in registers and caches: what Hessians, their factors and
// error compensation are made of.
#pragma once

#include <cstdint>

#include "nibble/base/cpu_features.h"
#include "nibble/numeric/nvfp4.h"

namespace nibble {

// y[i, k] += sum_t a[t, i] * b[t, k], t rising, every product and every sum rounded: the bits are
// the same at every instruction-set level, and however the work is cut into ranges of i, k and t.
//
//   a [depth, m], b [depth, n], y [m, n]; rows begin every a_stride, b_stride, y_stride floats
//
// Source of the blocking: Goto and van de Geijn, Anatomy of High-Performance Matrix Multiplication
// (2008). Bound: arithmetic.
struct ProductSum {
  const float* a;
  int64_t a_stride;
  const float* b;
  int64_t b_stride;
  int64_t depth;
  int64_t m;
  int64_t n;
  float* y;
  int64_t y_stride;
};
void add_products(const ProductSum& sum, Isa isa = numeric_isa());

}  // namespace nibble
