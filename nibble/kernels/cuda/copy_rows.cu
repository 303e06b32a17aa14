#include "nibble/kernels/cuda/copy_rows.h"

namespace nibble::cuda {
namespace {

constexpr int kThreads = 256;

__global__ void copy_rows_kernel(const RowCopy* rows, int64_t cols) {
  const RowCopy row = rows[blockIdx.x];
  for (int64_t i = threadIdx.x; i < cols; i += kThreads) row.to[i] = row.from[i];
}

}  // namespace

cudaError_t launch_copy_rows(const RowCopy* rows, int64_t count, int64_t cols,
                             cudaStream_t stream) {
  copy_rows_kernel<<<static_cast<unsigned>(count), kThreads, 0, stream>>>(rows, cols);
  return cudaGetLastError();
}

}  // namespace nibble::cuda
