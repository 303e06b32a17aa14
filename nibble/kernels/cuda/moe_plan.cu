// One block. A warp counts and places the slots of every 32nd expert, 32 slots at a time. Bound at
// decode sizes: the launch.
#include <algorithm>

#include "nibble/kernels/cuda/launch.cuh"
#include "nibble/kernels/cuda/moe_plan.h"
#include "nibble/kernels/cuda/scan.cuh"

namespace nibble::cuda {
namespace {

constexpr int kThreads = 1024;    // more than there are groups
constexpr int kHeldSlots = 2048;  // whose experts are kept in shared memory

__global__ void moe_plan_kernel(MoePlanArgs a) {
  __shared__ int first[kThreads + 1];   // where a group's slots start
  __shared__ int pieces[kThreads + 1];  // where its work starts
  __shared__ uint64_t sums[33];
  __shared__ int32_t held[kHeldSlots];
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int groups = a.num_experts + (a.shared ? 1 : 0);
  let_next_start();
  wait_for_previous();

  const int32_t* ids = a.expert_ids;
  if (a.num_slots <= kHeldSlots) {
    for (int i = static_cast<int>(threadIdx.x); i < a.num_slots; i += kThreads) held[i] = ids[i];
    __syncthreads();
    ids = held;
  }
  for (int e = warp; e < a.num_experts; e += kThreads / 32) {
    int count = 0;
    for (int i = 0; i < a.num_slots; i += 32) {
      count += __popc(__ballot_sync(~0u, i + lane < a.num_slots && ids[i + lane] == e));
    }
    if (lane == 0) first[e] = count;
  }
  if (threadIdx.x == 0 && a.shared) first[a.num_experts] = a.num_tokens;
  __syncthreads();
  // A group's first slot and its first piece of work, summed together.
  const int mine = static_cast<int>(threadIdx.x);
  uint64_t both = 0;
  if (mine < groups) {
    const int count = first[mine];
    const bool wanted = a.classes == nullptr || a.classes[mine] == a.wanted;
    const int work = wanted ? (count + a.work_tokens - 1) / a.work_tokens : 0;
    both = static_cast<uint64_t>(work) << 32 | static_cast<uint32_t>(count);
  }
  uint64_t total = 0;
  const uint64_t before = block_sum_before(both, sums, total);
  if (mine < groups) {
    first[mine] = static_cast<int>(before & 0xffffffff);
    pieces[mine] = static_cast<int>(before >> 32);
  } else if (mine == groups) {
    first[mine] = static_cast<int>(total & 0xffffffff);
    pieces[mine] = static_cast<int>(total >> 32);
    *a.num_work = static_cast<int>(total >> 32);
  }
  __syncthreads();
  for (int e = warp; e < groups; e += kThreads / 32) {
    int at = first[e];
    if (e == a.num_experts) {
      for (int t = lane; t < a.num_tokens; t += 32) a.slots[at + t] = a.num_slots + t;
    } else {
      for (int i = 0; i < a.num_slots; i += 32) {
        const bool mine = i + lane < a.num_slots && ids[i + lane] == e;
        const unsigned all = __ballot_sync(~0u, mine);
        if (mine) a.slots[at + __popc(all & ((1u << lane) - 1))] = i + lane;
        at += __popc(all);
      }
    }
    for (int i = pieces[e] + lane; i < pieces[e + 1]; i += 32) {
      const int begin = first[e] + (i - pieces[e]) * a.work_tokens;
      a.work[i] = {e, begin, min(a.work_tokens, first[e + 1] - begin)};
    }
  }
}

}  // namespace

cudaError_t launch_moe_plan(const MoePlanArgs& args, cudaStream_t stream) {
  return launch_overlapped(moe_plan_kernel, dim3(1), dim3(kThreads), 0, stream, args);
}

int64_t max_moe_work(int64_t num_slots, int64_t num_tokens, int64_t num_experts, int work_tokens) {
  return std::min(num_slots, num_experts) + num_slots / work_tokens + num_tokens / work_tokens + 2;
}

}  // namespace nibble::cuda
