#include "nibble/kernels/cuda/linear_stream.h"

namespace nibble::cuda {

int stream_work_tokens(int x_parts, int64_t tokens) { return x_parts == 1 && tokens > 8 ? 16 : 8; }

cudaError_t launch_linear_stream(const StreamArgs& args, int work_tokens, cudaStream_t stream) {
  switch (args.format) {
    case LinearFormat::kNvfp4:
      return launch_linear_stream_nvfp4(args, work_tokens, stream);
    case LinearFormat::kFp8Block:
      return launch_linear_stream_fp8(args, work_tokens, stream);
    case LinearFormat::kBf16:
    case LinearFormat::kF32:
      return launch_linear_stream_bf16(args, work_tokens, stream);
  }
  return cudaErrorInvalidValue;
}

namespace {
__global__ void probe_kernel() {}
}  // namespace

bool stream_kernels_run_here() {
  cudaFuncAttributes attributes = {};
  const bool found = cudaFuncGetAttributes(&attributes, probe_kernel) == cudaSuccess;
  (void)cudaGetLastError();
  return found;
}

}  // namespace nibble::cuda
