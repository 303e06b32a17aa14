// What backends refuse to pack.
#pragma once

#include "nibble/base/result.h"
#include "nibble/kernels/linear_weight.h"

namespace nibble {

// Codes that inner loops don't decode and no sound checkpoint holds: kCorrupt with the place of the
// first FP8 weight that is NaN, or of the first NVFP4 block scale outside 0x00..0x7e.
Status check_source_codes(const HostLinear& source);

}  // namespace nibble
