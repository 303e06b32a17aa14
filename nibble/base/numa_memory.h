// Where memory comes from on a machine with several NUMA nodes.
#pragma once

#include <cstddef>
#include <span>

#include "nibble/base/result.h"

namespace nibble {

// A range stands for the pages whose first byte lies in it, so that neighbouring ranges share none.
// Only pages that nobody has touched yet follow. Nodes are the system's numbers, below 1024.
// Implementations: the system's, and recorders in tests. Any number of threads may call.
class NumaMemory {
 public:
  virtual ~NumaMemory() = default;

  // They come from this node as long as it has free memory, then from any. Errors: kUnavailable
  // where the system refuses (a container without CAP_SYS_NICE may), kInvalidArgument for a node
  // without memory for this process, kOutOfMemory where it may have no more mappings.
  virtual Status prefer(void* data, size_t bytes, int node) = 0;

  // They come from these nodes in turn. Errors as prefer().
  virtual Status interleave(void* data, size_t bytes, std::span<const int> nodes) = 0;
};

// mbind of Linux.
NumaMemory& system_numa_memory();

}  // namespace nibble
