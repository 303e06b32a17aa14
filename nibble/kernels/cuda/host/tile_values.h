// The values of a packed tile (packed_layout.h), by plain loops.
#pragma once

#include <cstdint>

#include "nibble/kernels/linear_weight.h"

namespace nibble::cuda {

// One unit as float [16 rows][128 columns]; NVFP4 without the global scale. kF32: one of the three
// parts, whose sum the value is.
void unit_values(LinearFormat format, const uint8_t* unit, float* out);

}  // namespace nibble::cuda
