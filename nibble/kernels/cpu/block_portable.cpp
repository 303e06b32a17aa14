// The block products of the cpu backend for any machine.
#define NIBBLE_BLOCK_TOKENS 2        // of a tile of multiply
#define NIBBLE_BLOCK_FUSED_TOKENS 2  // up to so many take multiply_fused
#include "nibble/kernels/cpu/block_isa.h"
// After the declarations, in this order.
#include "nibble/kernels/cpu/nvfp4_units.inl"
//
#include "nibble/kernels/cpu/simd_portable.inl"
//
#include "nibble/kernels/cpu/block_simd_portable.inl"
//
#include "nibble/kernels/cpu/block_isa.inl"

namespace nibble {

const BlockIsa kBlockIsaPortable = NIBBLE_BLOCK_ISA_TABLE;

}  // namespace nibble
