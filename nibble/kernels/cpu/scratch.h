// Memory that operations reuse from call to call: it grows to what the largest call needed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "nibble/device/device.h"

namespace nibble {

// Floats at 256-byte alignment. reserve() keeps the address while `count` does not grow beyond what
// was asked before; contents are undefined. Throws std::bad_alloc.
class Scratch {
 public:
  float* reserve(Device& device, int64_t count);

 private:
  Buffer buffer_;
};

// Hands out consecutive parts of one thread's scratch, each on a cache line.
class ScratchCursor {
 public:
  explicit ScratchCursor(float* base) : next_(base) {}
  float* take(int64_t count) {
    float* const part = next_;
    next_ += padded(count);
    return part;
  }
  static int64_t padded(int64_t count) { return (count + 15) / 16 * 16; }

 private:
  float* next_;
};

}  // namespace nibble
