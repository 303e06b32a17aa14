// The cuda backend: the operations on one NVIDIA GPU (compute capability 9.0).
#pragma once

#include <memory>

#include "nibble/base/result.h"
#include "nibble/kernels/cuda_options.h"
#include "nibble/kernels/kernels.h"

namespace nibble {

// On one GPU. Errors: as make_cuda_device;
// kUnsupported for a GPU that this build has no code for, naming its compute capability.
Result<std::unique_ptr<Kernels>> make_cuda_kernels(const CudaOptions& options = {});

}  // namespace nibble
