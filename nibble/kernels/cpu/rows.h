// Operations on single rows that more than one operation of the cpu backend contains.
#pragma once

#include <cstdint>

#include "nibble/kernels/kernels.h"

namespace nibble {

// Kernels::rms_norm of one row of n elements, the mean of squares in binary64 from 16 partial sums;
// out may be x.
void cpu_rms_norm_row(const float* x, const float* weight, float epsilon, int64_t n, float* out);

}  // namespace nibble
