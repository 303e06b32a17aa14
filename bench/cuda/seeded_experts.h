// Experts of R1's widths made from a seed instead of read from a file, for an ExpertStore.
#pragma once

#include <cstddef>
#include <memory>
#include <mutex>
#include <set>
#include <span>
#include <vector>

#include "nibble/kernels/kernels.h"
#include "nibble/offload/expert_loader.h"
#include "nibble/offload/slot_memory.h"

namespace nibble::bench {

// Page-locked memory that outlives the stores that use it. Where a store asks for more slots than
// there are, slots share memory: experts then are alike, and copying them takes as long.
class SharedSlots {
 public:
  // Takes `bytes` of page-locked memory on several threads at once: it grows by a few GB a second.
  SharedSlots(Device& device, size_t slot_bytes, uint64_t bytes);
  SlotAllocator allocator();
  // Whether this is the first time that the memory is asked for.
  bool fill_once(const std::byte* data);
  size_t num_distinct() const { return slots_.size(); }

 private:
  std::vector<std::shared_ptr<Buffer>> slots_;
  std::mutex mutex_;
  std::set<const std::byte*> filled_;
};

// Bytes of a record.
size_t seeded_expert_bytes(const Kernels& kernels);

// What is in a slot already stays: fill_once() of `slots`, which must outlive the loader.
std::unique_ptr<ExpertLoader> make_seeded_loader(const Kernels& kernels, int num_threads,
                                                 SharedSlots* slots);

}  // namespace nibble::bench
