// What Kernels::mla_attention needs besides a cache, at R1's widths.
#pragma once

#include <cuda_runtime.h>

#include "nibble/kernels/kernels.h"

namespace nibble::bench {

constexpr int64_t kMlaBlockSize = 64;  // of the caches measured

struct MlaOperands {
  MlaShape shape;
  Buffer packed;
  MlaUpWeight weight;  // in BF16
  Buffer q_values;
  Buffer out_values;
  MatrixView q;    // [tokens, heads * 192]
  MatrixView out;  // [tokens, heads * 128]
};
MlaOperands mla_operands(Kernels& kernels, int64_t heads, int64_t tokens, cudaStream_t stream);

}  // namespace nibble::bench
