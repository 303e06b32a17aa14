// Every rank puts its vector where the others can read it, tells them, waits for their word, and
// adds all vectors up itself. Bound: the latency of two trips over the link.
#include "nibble/comm/cuda/one_shot.h"

namespace nibble::cuda {
namespace {

constexpr int kThreads = 64;  // of float4: 256 values at a time
constexpr uint64_t kPatienceNs = 60'000'000'000;

__device__ void store_release(uint32_t* address, uint32_t value) {
  asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(address), "r"(value) : "memory");
}
__device__ uint32_t load_acquire(const uint32_t* address) {
  uint32_t value;
  asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(value) : "l"(address) : "memory");
  return value;
}
__device__ uint64_t now_ns() {
  uint64_t time;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(time));
  return time;
}
// Past the caches: another GPU wrote it.
__device__ float4 load_peer(const float4* address) {
  float4 v;
  asm volatile("ld.volatile.global.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
               : "l"(address)
               : "memory");
  return v;
}

__device__ uint32_t* flag(std::byte* shared, int rank) {
  return reinterpret_cast<uint32_t*>(shared) + blockIdx.x * kMaxOneShotRanks + rank;
}

// Counts run over: b - a is what is compared.
__device__ bool is_before(uint32_t a, uint32_t b) { return static_cast<int32_t>(a - b) < 0; }

__global__ void __launch_bounds__(kThreads) one_shot_sum_kernel(const OneShotArgs a) {
  // Launched while what is in front of it still runs (programmatic dependent launch), as what
  // follows is.
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
  asm volatile("griddepcontrol.wait;" ::: "memory");
  const uint32_t turn = a.counters[blockIdx.x] + 1;
  const auto half = [&](int rank) {
    return reinterpret_cast<float*>(a.shared[rank] + OneShotLayout::kFlagBytes) +
           (turn & 1) * a.capacity;
  };
  // A block has whole groups of four; what is left of the last group is taken one by one.
  const int64_t groups = (a.count + 3) / 4;
  const int64_t each = (groups + gridDim.x - 1) / gridDim.x;
  const int64_t begin = each * blockIdx.x;
  const int64_t end = min(begin + each, groups);
  for (int64_t i = begin + threadIdx.x; i < end; i += kThreads) {
    if (4 * i + 4 <= a.count) {
      reinterpret_cast<float4*>(half(a.rank))[i] = reinterpret_cast<const float4*>(a.x)[i];
    } else {
      for (int64_t k = 4 * i; k < a.count; ++k) half(a.rank)[k] = a.x[k];
    }
  }
  __threadfence_system();
  __syncthreads();
  const int peer = static_cast<int>(threadIdx.x);
  if (peer < a.size && peer != a.rank) {
    store_release(flag(a.shared[peer], a.rank), turn);
    const uint64_t begun = now_ns();
    while (is_before(load_acquire(flag(a.shared[a.rank], peer)), turn)) {
      if (now_ns() - begun > kPatienceNs) __trap();
    }
  }
  __syncthreads();
  for (int64_t i = begin + threadIdx.x; i < end; i += kThreads) {
    float4 sum = load_peer(reinterpret_cast<const float4*>(half(0)) + i);
    for (int r = 1; r < a.size; ++r) {
      const float4 v = load_peer(reinterpret_cast<const float4*>(half(r)) + i);
      sum.x = __fadd_rn(sum.x, v.x);
      sum.y = __fadd_rn(sum.y, v.y);
      sum.z = __fadd_rn(sum.z, v.z);
      sum.w = __fadd_rn(sum.w, v.w);
    }
    if (4 * i + 4 <= a.count) {
      reinterpret_cast<float4*>(a.x)[i] = sum;
    } else {
      const float values[4] = {sum.x, sum.y, sum.z, sum.w};
      for (int64_t k = 4 * i; k < a.count; ++k) a.x[k] = values[k - 4 * i];
    }
  }
  if (threadIdx.x == 0) a.counters[blockIdx.x] = turn;
}

}  // namespace

cudaError_t launch_one_shot_sum(const OneShotArgs& args, cudaStream_t stream) {
  cudaLaunchAttribute overlap = {};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  // Always the same blocks, so that all their counters agree on whose turn it is.
  config.gridDim = dim3(kOneShotBlocks);
  config.blockDim = dim3(kThreads);
  config.stream = stream;
  config.attrs = &overlap;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, one_shot_sum_kernel, args);
}

}  // namespace nibble::cuda
