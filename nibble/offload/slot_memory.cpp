#include "nibble/offload/slot_memory.h"

#include <fmt/format.h>
#include <sys/mman.h>

#include <algorithm>

#include "nibble/base/error.h"
#include "nibble/base/text.h"

namespace nibble {
namespace {

constexpr size_t kPage = 4096;
constexpr size_t kHugePage = size_t{2} << 20;

// Of device memory taken at once: allocations are rounded up to 2 MiB each.
constexpr size_t kDeviceBytes = size_t{1} << 30;

}  // namespace

Result<SlotMemory> SlotMemory::allocate(size_t bytes) {
  void* const memory =
      ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) {
    return out_of_memory(fmt::format("no memory left for an expert of {}", format_bytes(bytes)));
  }
  // Fewer page faults and TLB misses; a refusal changes nothing.
  if (bytes >= 4 * kHugePage) (void)::madvise(memory, bytes, MADV_HUGEPAGE);
  std::shared_ptr<void> owner(memory, [bytes](void* data) { (void)::munmap(data, bytes); });
  return SlotMemory({static_cast<std::byte*>(memory), bytes}, std::move(owner));
}

SlotAllocator host_slots() {
  return [](size_t slot_bytes, int64_t count) -> Result<std::vector<SlotMemory>> {
    std::vector<SlotMemory> slots;
    for (int64_t i = 0; i < count; ++i) {
      slots.push_back(NIBBLE_TRY(SlotMemory::allocate(slot_bytes)));
    }
    return slots;
  };
}

SlotAllocator page_locked_slots(Device& device) {
  return [&device](size_t slot_bytes, int64_t count) -> Result<std::vector<SlotMemory>> {
    std::vector<SlotMemory> slots;
    for (int64_t i = 0; i < count; ++i) {
      // From the first page on: direct reads want whole pages, a device gives 256 bytes.
      Buffer buffer = NIBBLE_TRY(device.allocate_host_visible(slot_bytes + kPage));
      auto owner = std::make_shared<Buffer>(std::move(buffer));
      void* data = owner->data();
      size_t room = owner->size();
      (void)std::align(kPage, slot_bytes, data, room);
      slots.emplace_back(std::span(static_cast<std::byte*>(data), slot_bytes), owner);
    }
    return slots;
  };
}

SlotAllocator device_slots(Device& device) {
  return [&device](size_t slot_bytes, int64_t count) -> Result<std::vector<SlotMemory>> {
    std::vector<SlotMemory> slots;
    while (static_cast<int64_t>(slots.size()) < count) {
      const size_t missing = static_cast<size_t>(count) - slots.size();
      const size_t together = std::clamp<size_t>(kDeviceBytes / slot_bytes, size_t{1}, missing);
      Buffer buffer = NIBBLE_TRY(device.allocate_for(MemoryUse::kWeights, together * slot_bytes));
      auto owner = std::make_shared<Buffer>(std::move(buffer));
      for (size_t i = 0; i < together; ++i) {
        slots.emplace_back(std::span(owner->as<std::byte>() + i * slot_bytes, slot_bytes), owner);
      }
    }
    return slots;
  };
}

}  // namespace nibble
