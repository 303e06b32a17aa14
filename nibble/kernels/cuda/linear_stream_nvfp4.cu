#include "nibble/kernels/cuda/linear_portable.h"
#include "nibble/kernels/cuda/linear_ring.h"
#include "nibble/kernels/cuda/linear_stream.cuh"

namespace nibble::cuda {

cudaError_t launch_linear_stream_nvfp4(const StreamArgs& args, int work_tokens,
                                       cudaStream_t stream) {
  if (ring_takes(args)) return launch_linear_ring(args, work_tokens, stream);
  if (direct_takes(args)) return launch_linear_direct(args, work_tokens, stream);
  return launch_stream_format<Nvfp4Unit>(args, work_tokens, stream);
}

}  // namespace nibble::cuda
