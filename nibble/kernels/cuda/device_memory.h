// Memory that operations keep between calls: scratch that grows, and small arrays of the host that
// the device reads.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <span>

#include "nibble/device/device.h"

namespace nibble::cuda {

// Counts how often memory of any Scratch or Upload of the device moved: work that was recorded with
// its addresses is void then. Ranks on several devices run the same operations and so count alike.
uint64_t memory_generation(const Device& device);

// Device memory of at least what was last asked for. Not thread-safe.
class Scratch {
 public:
  explicit Scratch(Device& device) : device_(&device) {}

  // Room for `count` elements, contents undefined. Growing waits for the device, which may still
  // use what is given back. Null when there is no memory: the error is kept for
  // Device::synchronize().
  template <typename T>
  T* get(int64_t count) {
    return static_cast<T*>(bytes(static_cast<size_t>(count) * sizeof(T)));
  }
  size_t size() const { return buffer_.size(); }

 private:
  void* bytes(size_t count);

  Device* device_;
  Buffer buffer_;
};

// An array of the host, copied to the device when it differs from the last one: a batch's positions
// are uploaded once and not for each layer.
class Upload {
 public:
  explicit Upload(Device& device) : device_(&device) {}
  Upload(const Upload&) = delete;
  Upload& operator=(const Upload&) = delete;
  ~Upload();

  // The address of the copy, valid for work launched before the next call. Null as in Scratch.
  template <typename T>
  const T* put(std::span<const T> values) {
    return static_cast<const T*>(put_bytes(std::as_bytes(values)));
  }

 private:
  const void* put_bytes(std::span<const std::byte> values);

  Device* device_;
  Buffer host_;
  Buffer device_memory_;
  size_t size_ = 0;
  cudaEvent_t copied_ = nullptr;
};

}  // namespace nibble::cuda
