// The cpu backend's inner loops for AVX512; the only code built with its flags beside its like.
#define NIBBLE_PANEL_WIDE 1
#include "nibble/kernels/cpu/panel_isa.h"
// After the declarations, in this order.
#include "nibble/kernels/cpu/simd_avx512.inl"
//
#include "nibble/kernels/cpu/panel_isa.inl"

namespace nibble {

const PanelIsa kPanelIsaAvx512 = NIBBLE_PANEL_ISA_TABLE;

}  // namespace nibble
