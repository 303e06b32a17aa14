// Which NUMA node has which rows of a packed weight, and which threads take them.
//
// Every matrix is cut by groups of 8 panels (128 outputs), in proportion to the nodes' threads; an
// expert as well as a dense one: whichever experts the router picks, all nodes read equal parts of
// each, while whole experts by node would leave one node 5.1 of 8 on average of two.
#pragma once

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <vector>

#include "nibble/base/numa_memory.h"
#include "nibble/base/thread_pool.h"
#include "nibble/kernels/linear_weight.h"

namespace nibble {

// Does nothing where the pool's threads have one node. Refused by the system, it says so once, and
// pages come from the node of the thread that first touches them. Any number of threads may call.
class WeightPlacement {
 public:
  // Both must outlive it.
  WeightPlacement(const ThreadPool& pool, NumaMemory& memory) : pool_(pool), memory_(memory) {}

  // The first of the groups of nodes()[node], of `groups` groups; `groups` for node =
  // nodes().size().
  int64_t first_group(int64_t groups, size_t node) const { return pool_.share_begin(groups, node); }

  // For a loop over pieces of `step` of the groups: its bounds for parallel_for_nodes. A piece with
  // groups of two nodes belongs to the first.
  void piece_bounds(int64_t groups, int64_t step, std::vector<int64_t>* bounds) const;

  // To be called before the memory at `data` (as CpuKernels::pack fills it) is written: each node's
  // panels come from its memory. A weight below 2 MiB stays on the heap, wherever that is.
  void place(void* data, LinearFormat format, int64_t rows, int64_t cols) const;

  // What the threads of all nodes read alike comes from the nodes in turn.
  void spread(void* data, size_t bytes) const;

 private:
  void report(const Status& placed) const;

  const ThreadPool& pool_;
  NumaMemory& memory_;
  mutable std::once_flag reported_;
};

}  // namespace nibble
