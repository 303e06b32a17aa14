// The inner product that the reference's matrix products are made of.
#pragma once

#include <cstdint>

namespace nibble {

// sum_i a[i] * b[i] in binary64: eight partial sums of every eighth term, then their sum in order.
// Each product of two binary32 values is exact in binary64.
inline double dot(const float* a, const float* b, int64_t n) {
  double partial[8] = {};
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    for (int64_t j = 0; j < 8; ++j) {
      partial[j] += static_cast<double>(a[i + j]) * static_cast<double>(b[i + j]);
    }
  }
  double sum = 0;
  for (const double p : partial) sum += p;
  for (; i < n; ++i) sum += static_cast<double>(a[i]) * static_cast<double>(b[i]);
  return sum;
}

}  // namespace nibble
