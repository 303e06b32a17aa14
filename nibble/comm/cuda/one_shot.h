// The sum of a short vector over GPUs that reach each other's memory, in one kernel.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

namespace nibble::cuda {

constexpr int kMaxOneShotRanks = 8;
constexpr int kOneShotBlocks = 28;  // a row of 7168 binary32 values: 256 for each

// What a rank shares with the others, in one allocation: flags, then two halves for data.
//
//   flags  uint32 [kOneShotBlocks, kMaxOneShotRanks]  the last sum for which a rank's block has its
//                                                    data ready, told by that rank
//   data   float [2, capacity]                        by turns, so that a sum may begin while a
//                                                    slow rank still reads the one before it
struct OneShotLayout {
  static constexpr size_t kFlagBytes = 4096;
  static constexpr size_t bytes(int64_t capacity) {
    return kFlagBytes + 2 * static_cast<size_t>(capacity) * sizeof(float);
  }
};
static_assert(sizeof(uint32_t) * kOneShotBlocks * kMaxOneShotRanks <= OneShotLayout::kFlagBytes);

struct OneShotArgs {
  float* x = nullptr;  // aligned to 16 bytes
  int64_t count = 0;   // at most capacity
  int rank = 0;
  int size = 1;
  int64_t capacity = 0;                   // floats, a multiple of 4
  std::byte* shared[kMaxOneShotRanks]{};  // of every rank, as this one sees it
  uint32_t* counters = nullptr;           // [kOneShotBlocks] this rank's, zeros at first
};

// x = x_0 + x_1 + ..., rank after rank, the same bits everywhere. All ranks launch the same sums in
// the same order. A rank that does not come within a minute is given up: the kernel fails, which
// the device's next synchronize() tells.
cudaError_t launch_one_shot_sum(const OneShotArgs& args, cudaStream_t stream);

}  // namespace nibble::cuda
