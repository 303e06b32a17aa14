// Memory for one record: whole pages, given back to the system when it goes.
#pragma once

#include <cstddef>
#include <span>
#include <utility>

#include "nibble/base/result.h"

namespace nibble {

// Move-only.
class SlotMemory {
 public:
  SlotMemory() = default;
  // bytes: a multiple of 4096. Errors: kOutOfMemory.
  static Result<SlotMemory> allocate(size_t bytes);
  SlotMemory(SlotMemory&& other) noexcept : bytes_(std::exchange(other.bytes_, {})) {}
  SlotMemory& operator=(SlotMemory&& other) noexcept {
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  SlotMemory(const SlotMemory&) = delete;
  SlotMemory& operator=(const SlotMemory&) = delete;
  ~SlotMemory();

  std::span<std::byte> bytes() const { return bytes_; }

 private:
  std::span<std::byte> bytes_;
};

}  // namespace nibble
