// The stream on which a CUDA device's work is ordered, for those who launch kernels.
#pragma once

#include <cuda_runtime.h>

#include "nibble/device/device.h"

namespace nibble {

// `device` was made by make_cuda_device. The device owns the stream.
cudaStream_t cuda_stream(Device& device);

// What the calling thread makes and launches from now on is this device's: a new thread starts with
// device 0. Errors: kUnavailable with CUDA's words.
Status use_cuda_device(Device& device);

// Operations return nothing: what goes wrong in one is kept here, the first error only, and
// returned by the device's next synchronize().
void keep_cuda_error(Device& device, Error error);

}  // namespace nibble
