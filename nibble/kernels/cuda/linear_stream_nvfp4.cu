#include "nibble/kernels/cuda/linear_direct.cuh"
#include "nibble/kernels/cuda/linear_ring.h"
#include "nibble/kernels/cuda/linear_stream.cuh"

namespace nibble::cuda {
namespace {

// Straight to registers where tokens are of one part and every warp has columns. By the matrix
// alone, so that a token's sums have one order.
bool goes_direct(const StreamArgs& args) { return args.x_parts == 1 && args.units >= kDirectWarps; }

}  // namespace

cudaError_t launch_linear_stream_nvfp4(const StreamArgs& args, int work_tokens,
                                       cudaStream_t stream) {
  if (ring_takes(args)) return launch_linear_ring(args, work_tokens, stream);
  if (!goes_direct(args)) {
    return launch_stream_format<Nvfp4Unit>(args, work_tokens, stream);
  }
  if (args.x_float != nullptr) return launch_direct_config<float, 1, 8, 2>(args, stream);
  return work_tokens == 8 ? launch_direct_config<uint16_t, 1, 8, 2>(args, stream)
                          : launch_direct_config<uint16_t, 2, 4, 2>(args, stream);
}

}  // namespace nibble::cuda
