#include "nibble/kernels/cuda/linear_direct.cuh"
#include "nibble/kernels/cuda/linear_stream.cuh"

namespace nibble::cuda {
namespace {

constexpr int64_t kFloatTokens = 4;

// Units of columns from which on a single matrix, which ends as soon as it has begun, is read
// faster through shared memory: 2 to 15 % on an H200.
constexpr int64_t kLongUnits = 32;

// Straight to registers where tokens are of one part and every warp has columns. By the matrix
// alone, so that a token's sums have one order.
bool goes_direct(int x_parts, int64_t units, bool experts) {
  return x_parts == 1 && units >= kDirectWarps && (experts || units < kLongUnits);
}

}  // namespace

bool stream_takes_floats(const LinearWeight& weight, bool experts, int x_parts, int64_t tokens,
                         const float* x, int64_t x_stride) {
  return weight.format == LinearFormat::kNvfp4 && tokens <= kFloatTokens &&
         weight.cols % kUnitCols == 0 && goes_direct(x_parts, weight.cols / kUnitCols, experts) &&
         x_stride % 4 == 0 && reinterpret_cast<uintptr_t>(x) % 16 == 0;
}

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
