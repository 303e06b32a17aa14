#include "nibble/offload/slot_memory.h"

#include <fmt/format.h>
#include <sys/mman.h>

#include "nibble/base/error.h"
#include "nibble/base/text.h"

namespace nibble {

Result<SlotMemory> SlotMemory::allocate(size_t bytes) {
  constexpr size_t kHugePage = size_t{2} << 20;
  void* const memory =
      ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) {
    return out_of_memory(fmt::format("no memory left for an expert of {}", format_bytes(bytes)));
  }
  // Fewer page faults and TLB misses; a refusal changes nothing.
  if (bytes >= 4 * kHugePage) (void)::madvise(memory, bytes, MADV_HUGEPAGE);
  SlotMemory slot;
  slot.bytes_ = {static_cast<std::byte*>(memory), bytes};
  return slot;
}

SlotMemory::~SlotMemory() {
  if (!bytes_.empty()) (void)::munmap(bytes_.data(), bytes_.size());
}

}  // namespace nibble
