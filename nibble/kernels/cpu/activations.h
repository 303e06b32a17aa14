// How rows of activations enter a product.
#pragma once

#include <cstdint>

#include "nibble/kernels/cpu/block_isa.h"
#include "nibble/kernels/cpu/panel_isa.h"
#include "nibble/kernels/linear_weight.h"

namespace nibble {

// Copies row `row` of a sliced matrix [slices, rows, 128] from x [cols]. What lies past cols in the
// last slice is not written.
void copy_floats_to_slices(const float* x, int64_t cols, int64_t row, int64_t rows, float* slices);

// x [count] -> an int8 record (block_isa.h) of its NVFP4 codes, doubled, and half their E4M3
// scales, by the rule of quantize_nvfp4_activation_block; count <= 128 and a multiple of 16. A
// block with a NaN or an infinity, which have no code, becomes NaN.
void quantize_nvfp4_row(const BlockIsa& isa, const float* x, int64_t count, float input_scale,
                        void* record);

// Whether two weights of equal cols can share one copy of their input.
bool same_activation(const LinearWeight& a, const LinearWeight& b);

// The factor of a weight's products with rows of that format: 1, global_scale, or input_scale *
// global_scale, and for tiles the power of two of tile_isa.h.
float output_scale(const LinearWeight& weight, RowFormat rows);

}  // namespace nibble
