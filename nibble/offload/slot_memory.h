// Memory for records: whole pages of the host, page-locked ones, or a device's own.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "nibble/base/result.h"
#include "nibble/device/device.h"

namespace nibble {

// Memory for one record, given back when it goes. Move-only.
class SlotMemory {
 public:
  SlotMemory() = default;
  // Part of what `owner` keeps.
  SlotMemory(std::span<std::byte> bytes, std::shared_ptr<void> owner)
      : bytes_(bytes), owner_(std::move(owner)) {}
  // Pages of the host. bytes: a multiple of 4096. Errors: kOutOfMemory.
  static Result<SlotMemory> allocate(size_t bytes);
  SlotMemory(SlotMemory&&) noexcept = default;
  SlotMemory& operator=(SlotMemory&&) noexcept = default;
  SlotMemory(const SlotMemory&) = delete;
  SlotMemory& operator=(const SlotMemory&) = delete;
  ~SlotMemory() = default;

  std::span<std::byte> bytes() const { return bytes_; }

 private:
  std::span<std::byte> bytes_;
  std::shared_ptr<void> owner_;
};

// `count` slots of slot_bytes, a multiple of 4096. Errors: kOutOfMemory.
using SlotAllocator =
    std::function<Result<std::vector<SlotMemory>>(size_t slot_bytes, int64_t count)>;

// Each on its own.
SlotAllocator host_slots();

// The same, page-locked for the device, which must outlive the slots.
SlotAllocator page_locked_slots(Device& device);

// In the device's memory, many in one allocation: given back together. The device must outlive
// them.
SlotAllocator device_slots(Device& device);

}  // namespace nibble
