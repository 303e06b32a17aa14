#include "nibble/kernels/cuda/linear_stream.cuh"

namespace nibble::cuda {

cudaError_t launch_linear_stream_fp8(const StreamArgs& args, int work_tokens, cudaStream_t stream) {
  return launch_stream_format<Fp8Unit>(args, work_tokens, stream);
}

}  // namespace nibble::cuda
