// StagedMoe of the cuda backend: what is launched, and how the choices come to the host.
#pragma once

#include <memory>

#include "nibble/kernels/staged_moe.h"

namespace nibble::cuda {

class CudaKernels;

std::unique_ptr<StagedMoe> make_cuda_staged_moe(CudaKernels& kernels);

}  // namespace nibble::cuda
