// Products of many tokens with a BF16 matrix for each head: MLA's absorption and its values.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace nibble::cuda {

struct HeadProductArgs {
  // Packed BF16 matrices (packed_layout.h), one for each head, [rows, cols] each: rows a multiple
  // of 64, cols 128 or 512.
  const uint8_t* weights = nullptr;
  float scale = 1;  // of the sums
  int rows = 0;
  int cols = 0;
  int heads = 0;
  int64_t tokens = 0;
  // Activations of token i and head j from x + i * x_stride + j * x_head_stride on, in floats
  // (rounded to BF16), or in BF16; 16-byte aligned.
  const float* x_float = nullptr;
  const uint16_t* x = nullptr;
  int64_t x_stride = 0;
  int64_t x_head_stride = 0;
  float* out = nullptr;  // of token i and head j from out + i * out_stride + j * rows on
  int64_t out_stride = 0;
  uint16_t* out_copy = nullptr;  // where it is given, the same in BF16
  int64_t out_copy_stride = 0;
};

// Each of up to 64 tokens meets a weight that is read once. A token's bits do not depend on the
// others. The bound: reading weights and activations, as long as tokens are few.
cudaError_t launch_head_products(const HeadProductArgs& args, cudaStream_t stream);

}  // namespace nibble::cuda
