// One block. With few slots each is a thread's, which counts those before it; with more a warp
// counts and places the slots of every 32nd expert, 32 slots at a time. Bound at decode sizes: the
// launch.
#include <algorithm>
#include <climits>

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

constexpr int kFewSlots = 256;

__global__ __launch_bounds__(kFewSlots) void moe_plan_few_kernel(MoePlanArgs a) {
  __shared__ int ids[kFewSlots];
  __shared__ int pieces[kFewSlots];  // of work, of the expert whose first slot it is
  const int i = static_cast<int>(threadIdx.x);
  let_next_start();
  wait_for_previous();
  const int id = i < a.num_slots ? a.expert_ids[i] : -1;
  const bool is_here = id >= 0 && id < a.num_experts;
  ids[i] = is_here ? id : INT_MAX;  // elsewhere: behind all others
  __syncthreads();
  const auto work_of = [&](int group, int count) {
    const bool wanted = a.classes == nullptr || a.classes[group] == a.wanted;
    return wanted ? (count + a.work_tokens - 1) / a.work_tokens : 0;
  };
  int lower = 0;   // slots of experts in front of this one
  int before = 0;  // of this expert, in front of this slot
  int same = 0;
  int here = 0;
  for (int j = 0; j < a.num_slots; ++j) {
    const int other = ids[j];
    lower += other < id ? 1 : 0;
    same += other == id ? 1 : 0;
    before += other == id && j < i ? 1 : 0;
    here += other != INT_MAX ? 1 : 0;
  }
  const bool is_first = is_here && before == 0;
  pieces[i] = is_first ? work_of(id, same) : 0;
  __syncthreads();
  int work = 0;
  int all_work = 0;
  for (int j = 0; j < a.num_slots; ++j) {
    all_work += pieces[j];
    work += ids[j] < id ? pieces[j] : 0;
  }
  if (is_here) a.slots[lower + before] = i;
  if (is_first) {
    for (int k = 0; k < pieces[i]; ++k) {
      const int begin = k * a.work_tokens;
      a.work[work + k] = {id, lower + begin, min(a.work_tokens, same - begin)};
    }
  }
  const int shared_work = a.shared ? work_of(a.num_experts, a.num_tokens) : 0;
  if (i == 0) *a.num_work = all_work + shared_work;
  if (!a.shared) return;
  for (int t = i; t < a.num_tokens; t += kFewSlots) a.slots[here + t] = a.num_slots + t;
  for (int k = i; k < shared_work; k += kFewSlots) {
    const int begin = k * a.work_tokens;
    a.work[all_work + k] = {a.num_experts, here + begin, min(a.work_tokens, a.num_tokens - begin)};
  }
}

}  // namespace

cudaError_t launch_moe_plan(const MoePlanArgs& args, cudaStream_t stream) {
  if (args.num_slots <= kFewSlots) {
    return launch_overlapped(moe_plan_few_kernel, dim3(1), dim3(kFewSlots), 0, stream, args);
  }
  return launch_overlapped(moe_plan_kernel, dim3(1), dim3(kThreads), 0, stream, args);
}

int64_t max_moe_work(int64_t num_slots, int64_t num_tokens, int64_t num_experts, int work_tokens) {
  return std::min(num_slots, num_experts) + num_slots / work_tokens + num_tokens / work_tokens + 2;
}

}  // namespace nibble::cuda
