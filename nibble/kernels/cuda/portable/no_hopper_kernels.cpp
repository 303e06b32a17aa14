// In place of linear_ring.cu and linear_stream_*.cu in a build for GPUs before compute capability
// 9.0 alone, whose launches launch_linear_portable() takes.
#include "nibble/kernels/cuda/linear_ring.h"
#include "nibble/kernels/cuda/linear_stream.h"

namespace nibble::cuda {

bool ring_takes(const StreamArgs& /*args*/) { return false; }

cudaError_t launch_linear_stream_nvfp4(const StreamArgs& /*args*/, int /*work_tokens*/,
                                       cudaStream_t /*stream*/) {
  return cudaErrorNotSupported;
}

cudaError_t launch_linear_stream_fp8(const StreamArgs& /*args*/, int /*work_tokens*/,
                                     cudaStream_t /*stream*/) {
  return cudaErrorNotSupported;
}

cudaError_t launch_linear_stream_bf16(const StreamArgs& /*args*/, int /*work_tokens*/,
                                      cudaStream_t /*stream*/) {
  return cudaErrorNotSupported;
}

}  // namespace nibble::cuda
