// The cuda backend's DeviceSampler.
#pragma once

#include <memory>

#include "nibble/base/result.h"
#include "nibble/device/device.h"
#include "nibble/kernels/device_sampler.h"

namespace nibble::cuda {

// More tokens overflow the sums of find_threshold(); such a vocabulary is sampled by the host.
inline constexpr int64_t kMaxSampledVocab = int64_t{1} << 17;

// `device` is a CUDA device and outlives the sampler. Errors: kOutOfMemory.
Result<std::unique_ptr<DeviceSampler>> make_cuda_sampler(Device& device, int64_t vocab_size);

}  // namespace nibble::cuda
