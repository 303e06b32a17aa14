#include "nibble/kernels/cpu/scratch.h"

#include <new>

namespace nibble {

float* Scratch::reserve(Device& device, int64_t count) {
  const size_t bytes = static_cast<size_t>(count) * sizeof(float);
  if (bytes > buffer_.size()) {
    buffer_ = Buffer();  // the old memory goes first
    auto grown = device.allocate(bytes);
    if (!grown) throw std::bad_alloc();
    buffer_ = *std::move(grown);
  }
  return buffer_.as<float>();
}

}  // namespace nibble
