// The rows of grouped products (gemm_nvfp4.h): which slot is where, and the gathering of tokens.
// Bound: the plan by its one block's latency, the gathering by the bytes written.
#include "nibble/kernels/cuda/gemm_nvfp4.h"
#include "nibble/kernels/cuda/launch.cuh"
#include "nibble/kernels/cuda/numeric.cuh"
#include "nibble/kernels/cuda/packed_layout.h"
#include "nibble/kernels/cuda/scan.cuh"

namespace nibble::cuda {
namespace {

constexpr int kPlanThreads = 1024;  // more than there are groups
constexpr int kPlanWarps = kPlanThreads / 32;

// A group's pieces: all of `size` rows but the last one.
struct Pieces {
  int count;
  int size;

  __device__ explicit Pieces(int rows) {
    count = (rows + kGemmTokens - 1) / kGemmTokens;
    size = count == 0 ? 0 : ((rows + count - 1) / count + 7) / 8 * 8;
  }
  __device__ static int class_of(int rows) { return (rows + 31) / 32 - 1; }
};

// One block: each warp takes a run of slots, twice.
__global__ __launch_bounds__(kPlanThreads) void gemm_plan_kernel(GemmPlanArgs a) {
  extern __shared__ int
      counts[];  // [warps][experts]: slots of an expert; then those of warps before
  __shared__ int first[kPlanThreads + 1];
  __shared__ uint64_t sums[33];
  const int thread = static_cast<int>(threadIdx.x);
  const int warp = thread / 32;
  const int lane = thread % 32;
  const int groups = a.num_experts + (a.shared ? 1 : 0);
  for (int i = thread; i < kPlanWarps * a.num_experts; i += kPlanThreads) counts[i] = 0;
  let_next_start();
  wait_for_previous();
  __syncthreads();

  const int run = (a.num_slots + kPlanThreads - 1) / kPlanThreads * 32;
  const int begin = warp * run;
  const int end = min(begin + run, a.num_slots);
  int* const mine = counts + warp * a.num_experts;
  for (int i = begin; i < end; i += 32) {
    const int expert = i + lane < end ? a.expert_ids[i + lane] : -1;
    const unsigned peers = __match_any_sync(~0u, expert);
    if (expert >= 0 && lane == __ffs(static_cast<int>(peers)) - 1) mine[expert] += __popc(peers);
    __syncwarp();
  }
  __syncthreads();

  int rows = 0;
  if (thread < a.num_experts) {
    for (int w = 0; w < kPlanWarps; ++w) {
      int& count = counts[w * a.num_experts + thread];
      const int before = rows;
      rows += count;
      count = before;
    }
  } else if (thread < groups) {
    rows = a.num_tokens;
  }
  uint64_t total = 0;
  const int padded = (rows + 7) / 8 * 8;
  first[thread] = static_cast<int>(block_sum_before(static_cast<uint64_t>(padded), sums, total));
  const int all_rows = static_cast<int>(total);

  // Pieces of each class, 16 bits of the sum each.
  const bool wanted = thread < groups && (a.classes == nullptr || a.classes[thread] == a.wanted);
  const Pieces pieces(wanted ? rows : 0);
  uint64_t of_class = 0;
  for (int i = 0; i < pieces.count; ++i) {
    const int count = min(pieces.size, rows - i * pieces.size);
    of_class += uint64_t{1} << (16 * Pieces::class_of(count));
  }
  uint64_t before = block_sum_before(of_class, sums, total);
  for (int i = 0; i < pieces.count; ++i) {
    const int count = min(pieces.size, rows - i * pieces.size);
    const int c = Pieces::class_of(count);
    const auto at = static_cast<int64_t>(before >> (16 * c) & 0xffff);
    a.work[c * a.work_capacity + at] = {thread, first[thread] + i * pieces.size, count};
    before += uint64_t{1} << (16 * c);
  }
  if (thread < kGemmClasses) a.num_work[thread] = static_cast<int>(total >> (16 * thread) & 0xffff);

  for (int i = rows; i < padded; ++i) a.rows[first[thread] + i] = -1;
  for (int64_t i = all_rows + thread; i < a.row_capacity; i += kPlanThreads) a.rows[i] = -1;
  __syncthreads();
  if (a.shared) {
    for (int i = thread; i < a.num_tokens; i += kPlanThreads) {
      a.rows[first[a.num_experts] + i] = a.num_slots + i;
    }
  }
  for (int i = begin; i < end; i += 32) {
    const int expert = i + lane < end ? a.expert_ids[i + lane] : -1;
    const unsigned peers = __match_any_sync(~0u, expert);
    if (expert >= 0) {
      a.rows[first[expert] + mine[expert] + __popc(peers & ((1u << lane) - 1))] = i + lane;
    }
    __syncwarp();
    if (expert >= 0 && lane == __ffs(static_cast<int>(peers)) - 1) mine[expert] += __popc(peers);
    __syncwarp();
  }
}

constexpr int kArrangeThreads = 256;

// A block takes 8 rows and a share of the columns; 64 threads write 8 rows of 64 columns.
__global__ __launch_bounds__(kArrangeThreads) void arrange_kernel(const ArrangeArgs a,
                                                                  int64_t column_groups) {
  let_next_start();
  wait_for_previous();
  const int chunk = static_cast<int>(threadIdx.x) % 8;  // where it is written
  const int r = static_cast<int>(threadIdx.x) / 8 % 8;
  const int64_t row = int64_t{blockIdx.x} * 8 + r;
  const int slot = a.rows[row];
  if (slot < 0) return;
  const int source = slot < a.x_routed ? slot / a.x_divisor : slot - a.x_routed;
  const float* const x = a.x + source * a.x_stride;
  const int part = chunk ^ r;  // values 8 part .. 8 part + 7: columns 16 t + 2 part + j
  for (int64_t group = int64_t{blockIdx.y} * 4 + threadIdx.x / 64; group < column_groups;
       group += int64_t{gridDim.y} * 4) {
    uint32_t out[4];
#pragma unroll
    for (int t = 0; t < 4; ++t) {
      const int64_t col = 64 * group + 16 * t + 2 * part;
      const float low = col < a.cols ? x[col] : 0;
      const float high = col + 1 < a.cols ? x[col + 1] : 0;
      out[t] = static_cast<uint32_t>(bf16_bits(low)) | static_cast<uint32_t>(bf16_bits(high)) << 16;
    }
    *reinterpret_cast<uint4*>(a.out + (group * a.row_capacity + row) * 64 + 8 * chunk) =
        make_uint4(out[0], out[1], out[2], out[3]);
  }
}

}  // namespace

int64_t gemm_row_capacity(int64_t slots, int64_t groups) {
  return ceil_div(slots + 7 * groups, 8) * 8;
}

int64_t max_gemm_work(int64_t slots, int64_t groups) { return slots / (kGemmTokens / 2) + groups; }

cudaError_t launch_gemm_plan(const GemmPlanArgs& args, cudaStream_t stream) {
  const size_t shared = sizeof(int) * kPlanWarps * static_cast<size_t>(args.num_experts);
  const cudaError_t configured = allow_shared<gemm_plan_kernel>(4 * kPlanWarps * kMaxGemmGroups);
  if (configured != cudaSuccess) return configured;
  return launch_overlapped(gemm_plan_kernel, dim3(1), dim3(kPlanThreads), shared, stream, args);
}

cudaError_t launch_arrange(const ArrangeArgs& args, cudaStream_t stream) {
  const int64_t column_groups = ceil_div(args.cols, kUnitCols) * 2;
  return launch_overlapped(arrange_kernel, dim3(static_cast<unsigned>(args.row_capacity / 8), 4),
                           dim3(kArrangeThreads), 0, stream, args, column_groups);
}

}  // namespace nibble::cuda
