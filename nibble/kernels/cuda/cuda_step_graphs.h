// The cuda backend's StepGraphs: CUDA graphs by kind of pass and number of tokens.
#pragma once

#include <memory>

#include "nibble/kernels/step_graphs.h"

namespace nibble::cuda {

class CudaKernels;

// `kernels` outlives it.
std::unique_ptr<StepGraphs> make_cuda_step_graphs(CudaKernels& kernels);

}  // namespace nibble::cuda
