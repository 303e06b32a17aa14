// Packed weights as plain BF16 rows, for products with many tokens.
#pragma once

#include <cuda_runtime.h>

#include "nibble/kernels/linear_weight.h"

namespace nibble::cuda {

// Whether the format's values (NVFP4: without the global scale) are BF16 values.
constexpr bool expands_exactly(LinearFormat format) {
  return format == LinearFormat::kNvfp4 || format == LinearFormat::kBf16;
}

// What the expanded values are to be multiplied with.
float expanded_scale(const LinearWeight& weight);

// out BF16 [16 * num_tiles, 128 * units]: the rows of tiles first_tile and up, zeros behind the
// last row and column. Bound: the bytes written, 2 for each 0.56 read.
cudaError_t launch_expand(const LinearWeight& weight, int64_t first_tile, int64_t num_tiles,
                          uint16_t* out, cudaStream_t stream);

}  // namespace nibble::cuda
