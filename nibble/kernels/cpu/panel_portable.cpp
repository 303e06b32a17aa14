// The inner loops of the cpu backend for any machine.
#define NIBBLE_TILE_TOKENS 2   // of a tile of multiply
#define NIBBLE_FUSED_TOKENS 2  // up to so many take multiply_fused
#include "nibble/kernels/cpu/panel_isa.h"
// After the declarations, in this order.
#include "nibble/kernels/cpu/nvfp4_units.inl"
//
#include "nibble/kernels/cpu/simd_portable.inl"
//
#include "nibble/kernels/cpu/panel_isa.inl"

namespace nibble {

const PanelIsa kPanelIsaPortable = NIBBLE_PANEL_ISA_TABLE;

}  // namespace nibble
