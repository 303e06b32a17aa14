// W4A4 on a GPU without FP4 tensor cores, bit by bit what the definition gives: for measuring the
// accuracy of Blackwell's arithmetic, not for speed.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "nibble/kernels/linear_weight.h"
#include "nibble/kernels/matrix_view.h"

namespace nibble::cuda {

// Activations of `rows` rows as doubled E2M1 codes and E4M3 scales times 512: both integers.
struct W4a4Activations {
  int8_t* codes = nullptr;    // [rows, padded_cols], zeros behind the last column
  int32_t* scales = nullptr;  // [rows, padded_cols / 16]
  int32_t* finite = nullptr;  // [rows]; 0: the row holds what has no code
  int64_t padded_cols = 0;    // a multiple of 128
};
void launch_w4a4_quantize(const float* x, int64_t rows, int64_t cols, int64_t stride,
                          float input_scale, const W4a4Activations& out, cudaStream_t stream);

// out[row, n] for all rows; expert e's weight is weights[e] in device memory, of one shape. A row i
// of the output is slot i: its expert is expert_ids[i] (or 0 when null), its activations row
// i / x_divisor. Slots of experts that are not W4A4 here are left alone.
struct W4a4Weight {
  const uint8_t* data = nullptr;  // null: not one of these
  float alpha = 1;                // input_scale * global_scale
};
struct W4a4Args {
  const W4a4Weight* weights = nullptr;
  W4a4Weight weight;  // when weights is null
  const int32_t* expert_ids = nullptr;
  int64_t slots = 0;
  int64_t x_divisor = 1;
  int64_t out_rows = 0;  // rows of the weight
  int64_t cols = 0;
  W4a4Activations x;
  float* out = nullptr;
  int64_t out_stride = 0;
};
void launch_linear_w4a4(const W4a4Args& args, cudaStream_t stream);

}  // namespace nibble::cuda
