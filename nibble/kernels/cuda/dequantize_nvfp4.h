// The first CUDA operation; the backend as a whole is not there yet.
#pragma once

#include "nibble/kernels/linear_weight.h"

namespace nibble {

// out[r, c] = e2m1(code) * (e4m3(block scale) * global_scale) for an NVFP4 weight whose data and
// scales lie in GPU memory in the checkpoint's layout; out is float [rows, cols] there. The bits of
// ReferenceKernels::dequantize. Launched on the current device's default stream; a failed launch
// shows at the next Device::synchronize.
//
// Bound: bytes written, 4 for each 0.56 read.
void dequantize_nvfp4_cuda(const LinearWeight& weight, float* out);

}  // namespace nibble
