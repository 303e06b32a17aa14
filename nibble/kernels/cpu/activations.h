// How rows of activations enter a product.
#pragma once

#include <cstdint>

#include "nibble/kernels/linear_weight.h"

namespace nibble {

// Copies row `row` of a sliced matrix [slices, rows, 128] from x [cols]; quantized to NVFP4 values
// without input_scale (e2m1 * e4m3, exact) when the weight asks for that. What lies past cols in
// the last slice is not written.
void copy_to_slices(const float* x, const LinearWeight& weight, int64_t row, int64_t rows,
                    float* slices);

// x [cols] -> its NVFP4 values divided by input_scale, in place or not, by the rule of
// quantize_nvfp4_activation_block; cols a multiple of 16. A block with a NaN or an infinity, which
// have no code, becomes NaN.
void quantize_activations(const float* x, int64_t cols, float input_scale, float* out);

// Whether two weights of equal cols can share one copy of their input.
bool same_activation(const LinearWeight& a, const LinearWeight& b);

// The factor of a weight's products: 1, global_scale, or input_scale * global_scale.
float output_scale(const LinearWeight& weight);

}  // namespace nibble
