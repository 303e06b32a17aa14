// The inner loops of the cpu backend for AVX2 and FMA.
#define NIBBLE_TILE_TOKENS 6   // of a tile of multiply
#define NIBBLE_FUSED_TOKENS 4  // up to so many take multiply_fused
#include "nibble/kernels/cpu/panel_isa.h"
// After the declarations, in this order.
#include "nibble/kernels/cpu/nvfp4_units.inl"
//
#include "nibble/kernels/cpu/simd_avx2.inl"
//
#include "nibble/kernels/cpu/panel_isa.inl"

namespace nibble {

const PanelIsa kPanelIsaAvx2 = NIBBLE_PANEL_ISA_TABLE;

}  // namespace nibble
