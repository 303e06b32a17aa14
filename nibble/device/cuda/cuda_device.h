// One NVIDIA GPU of this machine.
#pragma once

#include <memory>

#include "nibble/base/result.h"
#include "nibble/device/device.h"

namespace nibble {

// GPU `ordinal` in CUDA's own count (CUDA_VISIBLE_DEVICES applies). Work is ordered on a stream of
// its own (cuda_stream.h). Errors: kNotFound without a driver or without that many GPUs, saying how
// many there are.
Result<std::unique_ptr<Device>> make_cuda_device(int ordinal);

// How many GPUs there are; 0 without a driver.
int num_cuda_devices();

}  // namespace nibble
