// The block products of the cpu backend for processors with AMX: those of AVX-512 with VNNI,
// walking several panels side by side.
#define NIBBLE_BLOCK_TOKENS 6        // of a tile of multiply
#define NIBBLE_BLOCK_FUSED_TOKENS 8  // up to so many take multiply_fused
#define NIBBLE_BLOCK_WALKED 4
#define NIBBLE_BLOCK_AHEAD 2048
#include "nibble/kernels/cpu/block_isa.h"
// After the declarations, in this order.
#include "nibble/kernels/cpu/nvfp4_units.inl"
//
#include "nibble/kernels/cpu/simd_avx512.inl"
//
#include "nibble/kernels/cpu/block_simd_avx512.inl"
//
#include "nibble/kernels/cpu/block_isa.inl"

namespace nibble {

const BlockIsa kBlockIsaAmx = NIBBLE_BLOCK_ISA_TABLE;

}  // namespace nibble
