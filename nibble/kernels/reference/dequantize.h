// One row of a weight in the checkpoint's layout, as binary32 values.
#pragma once

#include "nibble/kernels/linear_weight.h"

namespace nibble {

// out [cols]: row `row` of `weight`; see ReferenceKernels::dequantize.
void dequantize_row(const LinearWeight& weight, int64_t row, float* out);

}  // namespace nibble
