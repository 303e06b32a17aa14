#include "nibble/kernels/cuda/linear_direct.cuh"
#include "nibble/kernels/cuda/linear_stream.cuh"

namespace nibble::cuda {
namespace {

// Units of columns from which on a single matrix, which ends as soon as it has begun, is read
// faster through shared memory: 2 to 15 % on an H200.
constexpr int64_t kLongUnits = 32;

// Straight to registers where tokens are of one part and every warp has columns. By the matrix
// alone, so that a token's sums have one order.
bool goes_direct(int x_parts, int64_t units, bool experts) {
  return x_parts == 1 && units >= kDirectWarps && (experts || units < kLongUnits);
}

}  // namespace

cudaError_t launch_linear_stream_nvfp4(const StreamArgs& args, int work_tokens,
                                       cudaStream_t stream) {
  if (!goes_direct(args.x_parts, args.units, args.work != nullptr)) {
    return launch_stream_format<Nvfp4Unit>(args, work_tokens, stream);
  }
  if (args.x_float != nullptr) return launch_direct_config<float, 1, 8, 2>(args, stream);
  return work_tokens == 8 ? launch_direct_config<uint16_t, 1, 8, 2>(args, stream)
                          : launch_direct_config<uint16_t, 2, 4, 2>(args, stream);
}

}  // namespace nibble::cuda
