#include "nibble/kernels/cuda/linear_direct.cuh"
#include "nibble/kernels/cuda/linear_portable.h"

namespace nibble::cuda {

bool direct_takes(const StreamArgs& args) {
  return args.format == LinearFormat::kNvfp4 && args.x_parts == 1 && args.units >= kDirectWarps;
}

cudaError_t launch_linear_direct(const StreamArgs& args, int work_tokens, cudaStream_t stream) {
  if (args.x_float != nullptr) return launch_direct_config<float, 1, 8, 2>(args, stream);
  return work_tokens == 8 ? launch_direct_config<uint16_t, 1, 8, 2>(args, stream)
                          : launch_direct_config<uint16_t, 2, 4, 2>(args, stream);
}

}  // namespace nibble::cuda
