// The cpu backend's inner loops for any machine.
#define NIBBLE_PANEL_WIDE 0
#include "nibble/kernels/cpu/panel_isa.h"
// After the declarations, in this order.
#include "nibble/kernels/cpu/simd_portable.inl"
//
#include "nibble/kernels/cpu/panel_isa.inl"

namespace nibble {

const PanelIsa kPanelIsaPortable = NIBBLE_PANEL_ISA_TABLE;

}  // namespace nibble
