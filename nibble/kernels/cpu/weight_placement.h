// Which NUMA node has which rows of a packed weight, and which threads take them.
//
// Every matrix is cut by groups of 8 panels (128 outputs), in proportion to the nodes' threads; an
// expert as well as a dense one: whichever experts the router picks, all nodes read equal parts of
// each, while whole experts by node would leave one node 5.1 of 8 on average of two.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <vector>

#include "nibble/base/numa_memory.h"
#include "nibble/base/thread_pool.h"
#include "nibble/kernels/linear_weight.h"

namespace nibble {

// Mappings that the system grants a process: vm.max_map_count, or its default of 65530 where that
// can't be read.
int64_t system_most_mappings();

// Does nothing where the pool's threads have one node. Refused by the system, it says so once, and
// pages come from the node of the thread that first touches them. The same, with a warning of its
// own, once half of the mappings that a process may have are taken: each node's part of a matrix is
// a mapping, and without any left nothing more can be allocated. Any number of threads may call.
class WeightPlacement {
 public:
  // Both must outlive it.
  WeightPlacement(const ThreadPool& pool, NumaMemory& memory,
                  int64_t most_mappings = system_most_mappings())
      : pool_(pool), memory_(memory), most_mappings_(most_mappings) {}

  // How many matrices place() will be called for, from which the warning counts what it asks for.
  // What was placed before is taken for gone.
  void expect(int64_t matrices) {
    expected_ = matrices;
    mappings_ = 0;
  }

  // The first of the groups of nodes()[node], of `groups` groups; `groups` for node =
  // nodes().size().
  int64_t first_group(int64_t groups, size_t node) const { return pool_.share_begin(groups, node); }

  // For a loop over pieces of `step` of the groups: its bounds for parallel_for_nodes. A piece with
  // groups of two nodes belongs to the first.
  void piece_bounds(int64_t groups, int64_t step, std::vector<int64_t>* bounds) const;

  // To be called before the memory at `data` (which CpuKernels::pack will fill) is written: each
  // node's panels come from its memory. A weight below 2 MiB stays on the heap, wherever that is.
  void place(void* data, LinearFormat format, int64_t rows, int64_t cols) const;

  // What the threads of all nodes read alike comes from the nodes in turn.
  void spread(void* data, size_t bytes) const;

 private:
  // Whether there is room for this many more mappings, which are then taken.
  bool take_mappings(int64_t count) const;
  void report(const Status& placed) const;

  const ThreadPool& pool_;
  NumaMemory& memory_;
  int64_t most_mappings_;
  std::atomic<int64_t> expected_ = 0;
  mutable std::atomic<int64_t> mappings_ = 0;  // of placed memory
  mutable std::once_flag reported_;
  mutable std::once_flag reported_mappings_;
};

}  // namespace nibble
