// Sums over the threads of a block.
#pragma once

#include <cstdint>

namespace nibble::cuda {

// The sum of `value` over the threads before this one; `total` over all. For blocks of up to 1024
// threads, a multiple of 32, all of which call it; `shared` holds 33 values.
__device__ inline uint64_t block_sum_before(uint64_t value, uint64_t* shared, uint64_t& total) {
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  uint64_t sum = value;
  for (int offset = 1; offset < 32; offset *= 2) {
    const uint64_t other = __shfl_up_sync(~0u, sum, offset);
    if (lane >= offset) sum += other;
  }
  __syncthreads();  // an earlier call's `shared` has been read
  if (lane == 31) shared[warp] = sum;
  __syncthreads();
  if (warp == 0) {
    const uint64_t of_warp = lane < static_cast<int>(blockDim.x) / 32 ? shared[lane] : 0;
    uint64_t warps = of_warp;
    for (int offset = 1; offset < 32; offset *= 2) {
      const uint64_t other = __shfl_up_sync(~0u, warps, offset);
      if (lane >= offset) warps += other;
    }
    shared[lane] = warps - of_warp;
    if (lane == 31) shared[32] = warps;
  }
  __syncthreads();
  total = shared[32];
  return shared[warp] + sum - value;
}

}  // namespace nibble::cuda
