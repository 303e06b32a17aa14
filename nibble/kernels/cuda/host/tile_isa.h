// One tile of 16 rows of packed_layout.h times some tokens, on the host.
//
// This header is included by a file that is built for newer processors: it defines no function.
#pragma once

#include <cstddef>
#include <cstdint>

namespace nibble::cuda {

// out[16 k + r] = sum_c tile[r, c] * x_k[c] for two tokens, or for one when x1 is null; NVFP4
// without the global scale. Bound: the weights' bytes, on a machine with cores enough.
//
//   tile    units of kNvfp4UnitBytes, at a multiple of 64
//   x0, x1  per unit 2 halves x 4 groups x 16 words of two BF16 values: word 4t + 2u + o of group
//           k holds columns 16t + 2p, 16t + 2p + 1 of the half, p = {0, 1, 2, 6}[k] + (o ? {3, 3,
//           3, 1}[k] : 0), for both u
//
// Defined where the compiler knows the instructions; to be called where the processor does, too.
void multiply_nvfp4_tile_avx512bf16(const uint8_t* tile, int64_t units, const uint32_t* x0,
                                    const uint32_t* x1, float* out);

}  // namespace nibble::cuda
