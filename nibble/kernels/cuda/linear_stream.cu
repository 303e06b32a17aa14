#include "nibble/kernels/cuda/cuda_level.h"
#include "nibble/kernels/cuda/linear_portable.h"
#include "nibble/kernels/cuda/linear_stream.h"
#include "nibble/kernels/cuda/packed_layout.h"

namespace nibble::cuda {

int stream_work_tokens(int x_parts, int64_t tokens) { return x_parts == 1 && tokens > 8 ? 16 : 8; }

bool stream_takes_floats(int64_t cols, int x_parts, int64_t tokens, const float* x,
                         int64_t x_stride) {
  constexpr int64_t kFloatTokens = 4;
  return tokens <= kFloatTokens && x_parts != 2 && cols % kUnitCols == 0 && x_stride % 4 == 0 &&
         reinterpret_cast<uintptr_t>(x) % 16 == 0;
}

cudaError_t launch_linear_stream(const StreamArgs& args, int work_tokens, cudaStream_t stream) {
  if (!has_hopper_kernels()) return launch_linear_portable(args, work_tokens, stream);
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

}  // namespace nibble::cuda
