// Sums of short vectors over GPUs that reach each other's memory, in one kernel; with the residual
// add and the norm that follow, where they are rows.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "nibble/comm/communicator.h"
#include "nibble/device/cuda/bf16_copies.h"

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

// A row is a cluster's, which adds up the squares in its blocks' shared memory.
constexpr int kNormClusterBlocks = 8;
constexpr int kNormClusters = 16;
constexpr int kNormBlocks = kNormClusters * kNormClusterBlocks;
constexpr int kNormThreads = 256;  // of float4
constexpr int kNormRowsOfCluster = 2;
constexpr int64_t kMaxNormRows = int64_t{kNormClusters} * kNormRowsOfCluster;
constexpr int64_t kMaxNormCols = int64_t{kNormClusterBlocks} * kNormThreads * 4;

// As OneShotLayout; each block has flags and a place of its own in both halves, whatever the rows.
struct NormLayout {
  static constexpr size_t kFlagBytes = 4096;
  static constexpr int64_t kBlockFloats = int64_t{kNormRowsOfCluster} * kNormThreads * 4;
  static constexpr size_t kBytes =
      kFlagBytes + 2 * static_cast<size_t>(kNormBlocks * kBlockFloats) * sizeof(float);
};
static_assert(sizeof(uint32_t) * kNormBlocks * kMaxOneShotRanks <= NormLayout::kFlagBytes);

struct OneShotNormArgs {
  SumNorm work;
  Bf16Copy copy;  // of work.out, where it has data
  int rank = 0;
  int size = 1;
  std::byte* shared[kMaxOneShotRanks]{};  // of every rank, as this one sees it: NormLayout
  uint32_t* counters = nullptr;           // [kNormBlocks] this rank's, zeros at first
};

// The same on all ranks. Pointers of `work` are aligned to 16 bytes, strides multiples of 4.
bool one_shot_norm_takes(int64_t rows, int64_t cols);

// Whether this device runs clusters of such blocks.
bool one_shot_norm_runs_here();

// As launch_one_shot_sum; the sum's bits are its. The squares are added up in binary64.
cudaError_t launch_one_shot_norm(const OneShotNormArgs& args, cudaStream_t stream);

}  // namespace nibble::cuda
