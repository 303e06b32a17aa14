// What compute-sanitizer's racecheck says of a ring of shared memory that bulk copies fill: the
// smallest program with the pattern of linear_stream.cuh, and two whose order nobody doubts.
//
//   nvcc -arch=sm_90 -std=c++20 -I. -o racecheck_ring tools/racecheck_ring.cu
//   for way in 0 1 2 3 4; do compute-sanitizer --tool racecheck ./racecheck_ring $way; done
//
// 0: __syncthreads() between the reads of a slot and its next copy, and a proxy fence
// 1: every thread arrives on an mbarrier behind its reads; the next copy waits for all of them
// 2: a lane of each warp arrives behind __syncwarp() (what the kernels do)
// 3: nobody waits: a race
// 4: as 1, but four lanes of a warp of its own each wait for one of the other warps and bring what
//    that one will read (linear_stream.cuh)
//
// Each prints its sum; all but 3 have to print the same, right one.
#include <cuda_runtime.h>

#include <cstdio>
#include <cstdlib>
#include <vector>

#include "nibble/kernels/cuda/ptx.cuh"

namespace {

using namespace nibble::cuda;

constexpr int kThreads = 128;
constexpr int kSlotBytes = 16 * kThreads;
constexpr int kRounds = 64;

__global__ void ring_kernel(const uint8_t* from, int way, unsigned* sums) {
  __shared__ __align__(128) uint8_t slot[kSlotBytes];
  __shared__ uint64_t full;
  __shared__ uint64_t empty;
  const int thread = static_cast<int>(threadIdx.x);
  if (thread == 0) {
    barrier_init(&full, 1);
    barrier_init(&empty, way == 1 ? kThreads : kThreads / 32);
    fence_barrier_init();
  }
  __syncthreads();
  const auto bring = [&](int round) {
    barrier_expect(&full, kSlotBytes);
    bulk_copy_kept(slot, from + round * kSlotBytes, kSlotBytes, &full);
  };
  if (thread == 0) bring(0);
  unsigned sum = 0;
  for (int round = 0; round < kRounds; ++round) {
    const auto phase = static_cast<uint32_t>(round % 2);
    barrier_wait(&full, phase);
    const uint4 v = *reinterpret_cast<const uint4*>(slot + 16 * thread);
    sum += v.x + 3 * v.y + 5 * v.z + 7 * v.w;
    if (way == 0) {
      asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
      __syncthreads();
    } else if (way == 1) {
      barrier_arrive(&empty);
    } else if (way == 2) {
      __syncwarp();
      if (thread % 32 == 0) barrier_arrive(&empty);
    }
    if (thread == 0 && round + 1 < kRounds) {
      if (way == 1 || way == 2) barrier_wait(&empty, phase);
      bring(round + 1);
    }
    __syncwarp();
  }
  atomicAdd(sums, sum);
}

__global__ void served_kernel(const uint8_t* from, unsigned* sums) {
  constexpr int kWarps = kThreads / 32;
  __shared__ __align__(128) uint8_t slot[kSlotBytes];
  __shared__ uint64_t full[kWarps];
  __shared__ uint64_t empty[kWarps];
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if (threadIdx.x < kWarps) {
    barrier_init(&full[threadIdx.x], 1);
    barrier_init(&empty[threadIdx.x], 32);
    fence_barrier_init();
  }
  __syncthreads();
  constexpr int kPart = kSlotBytes / kWarps;
  if (warp == kWarps) {
    if (lane >= kWarps) return;
    for (int round = 0; round < kRounds; ++round) {
      barrier_wait(&empty[lane], static_cast<uint32_t>((round + 1) % 2));  // it starts empty
      barrier_expect(&full[lane], kPart);
      bulk_copy_kept(slot + lane * kPart, from + round * kSlotBytes + lane * kPart, kPart,
                     &full[lane]);
    }
    return;
  }
  unsigned sum = 0;
  for (int round = 0; round < kRounds; ++round) {
    barrier_wait(&full[warp], static_cast<uint32_t>(round % 2));
    const uint4 v = *reinterpret_cast<const uint4*>(slot + 16 * threadIdx.x);
    sum += v.x + 3 * v.y + 5 * v.z + 7 * v.w;
    barrier_arrive(&empty[warp]);
  }
  atomicAdd(sums, sum);
}

}  // namespace

int main(int argc, char** argv) {
  const int way = argc > 1 ? std::atoi(argv[1]) : 0;
  std::vector<uint8_t> bytes(static_cast<size_t>(kRounds) * kSlotBytes);
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<uint8_t>(i * 2654435761u >> 13);
  unsigned want = 0;
  for (size_t i = 0; i < bytes.size(); i += 4) {
    const unsigned word = bytes[i] | bytes[i + 1] << 8 | bytes[i + 2] << 16 |
                          static_cast<unsigned>(bytes[i + 3]) << 24;
    want += word * static_cast<unsigned>(2 * (i / 4 % 4) + 1);
  }
  uint8_t* from = nullptr;
  unsigned* sums = nullptr;
  if (cudaMalloc(&from, bytes.size()) != cudaSuccess || cudaMalloc(&sums, 4) != cudaSuccess) {
    std::puts("no device memory");
    return 2;
  }
  cudaMemcpy(from, bytes.data(), bytes.size(), cudaMemcpyHostToDevice);
  cudaMemset(sums, 0, 4);
  if (way == 4) {
    served_kernel<<<1, kThreads + 32>>>(from, sums);
  } else {
    ring_kernel<<<1, kThreads>>>(from, way, sums);
  }
  unsigned got = 0;
  const cudaError_t code = cudaMemcpy(&got, sums, 4, cudaMemcpyDeviceToHost);
  std::printf("way %d: %s, sum %08x, want %08x\n", way, cudaGetErrorString(code), got, want);
  return code == cudaSuccess && (got == want || way == 3) ? 0 : 1;
}
