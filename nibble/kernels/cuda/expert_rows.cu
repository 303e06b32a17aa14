#include "nibble/kernels/cuda/expert_rows.h"

namespace nibble::cuda {
namespace {

constexpr int kThreads = 256;

unsigned blocks_for(int64_t count) {
  return static_cast<unsigned>((count + kThreads - 1) / kThreads);
}

__global__ void place_experts_kernel(int64_t count, const float* weights, ExpertSlotsView slots,
                                     int32_t* expert_ids) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= count) return;
  const int32_t* const of_expert = slots.begin + expert_ids[i];
  const auto copies = static_cast<uint32_t>(of_expert[1] - of_expert[0]);
  const uint32_t hash = (__float_as_uint(weights[i]) * 2654435761U) >> 16;
  expert_ids[i] = slots.slots[static_cast<uint32_t>(of_expert[0]) + hash % copies];
}

// A block for each row of the output.
__global__ void gather_rows_kernel(const float* from, int64_t from_stride, const int32_t* rows,
                                   float* out, int64_t out_stride, int64_t cols) {
  const int64_t t = blockIdx.x;
  const float* const x = from + rows[t] * from_stride;
  for (int64_t i = threadIdx.x; i < cols; i += kThreads) out[t * out_stride + i] = x[i];
}

__global__ void sum_rows_kernel(const float* from, int64_t from_stride, const int32_t* rows,
                                int64_t each, float* out, int64_t out_stride, int64_t cols) {
  const int64_t t = blockIdx.x;
  const int64_t i = int64_t{blockIdx.y} * kThreads + threadIdx.x;
  if (i >= cols) return;
  float sum = 0;
  for (int64_t j = 0; j < each; ++j) {
    const int64_t row = rows[t * each + j];
    if (row >= 0) sum += from[row * from_stride + i];
  }
  out[t * out_stride + i] = sum;
}

}  // namespace

cudaError_t launch_place_experts(int64_t count, const float* weights, const ExpertSlotsView& slots,
                                 int32_t* expert_ids, cudaStream_t stream) {
  place_experts_kernel<<<blocks_for(count), kThreads, 0, stream>>>(count, weights, slots,
                                                                   expert_ids);
  return cudaGetLastError();
}

cudaError_t launch_gather_rows(const MatrixView& from, const int32_t* rows, const MatrixView& out,
                               cudaStream_t stream) {
  gather_rows_kernel<<<static_cast<unsigned>(out.rows), kThreads, 0, stream>>>(
      from.row<const float>(0), from.stride, rows, out.row<float>(0), out.stride, out.cols);
  return cudaGetLastError();
}

cudaError_t launch_sum_rows(const MatrixView& from, const int32_t* rows, int64_t each,
                            const MatrixView& out, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(out.rows), blocks_for(out.cols));
  sum_rows_kernel<<<grid, kThreads, 0, stream>>>(from.row<const float>(0), from.stride, rows, each,
                                                 out.row<float>(0), out.stride, out.cols);
  return cudaGetLastError();
}

}  // namespace nibble::cuda
