// Who owns memory and in what order work on it happens.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <utility>

#include "nibble/base/result.h"

namespace nibble {

class Device;

// Memory of one device, freed when it goes. Move-only. The device must outlive it.
class Buffer {
 public:
  Buffer() = default;
  Buffer(Device* device, void* data, size_t size) : device_(device), data_(data), size_(size) {}
  Buffer(Buffer&& other) noexcept
      : device_(std::exchange(other.device_, nullptr)),
        data_(std::exchange(other.data_, nullptr)),
        size_(std::exchange(other.size_, 0)) {}
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(device_, other.device_);
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer();

  void* data() const { return data_; }
  size_t size() const { return size_; }
  template <typename T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  Device* device_ = nullptr;
  void* data_ = nullptr;
  size_t size_ = 0;
};

struct DeviceMemory {
  uint64_t total_bytes;
  uint64_t free_bytes;
};

// Implementations: HostDevice, CudaDevice. Allocation is thread-safe.
class Device {
 public:
  virtual ~Device() = default;

  // "host", "cuda:0 NVIDIA H200".
  virtual std::string_view name() const = 0;

  // Memory aligned to 256 bytes, its contents undefined; zero bytes give an empty buffer.
  // Errors: kOutOfMemory with what was asked and what is free.
  virtual Result<Buffer> allocate(size_t bytes) = 0;

  // Memory as allocate() gives that the host may read and write directly, too, as long as no work
  // given to the device uses it: results to read, inputs to fill. Slower for the device than its
  // own. A host device has no other kind.
  virtual Result<Buffer> allocate_host_visible(size_t bytes) { return allocate(bytes); }

  // Copies between host memory and this device's, in order with other work; the host side may be
  // reused when the call returns.
  virtual Status copy_to_device(void* destination, std::span<const std::byte> source) = 0;
  virtual Status copy_to_host(std::span<std::byte> destination, const void* source) = 0;

  // Waits for all work that was given to the device; returns the first error of any of it.
  virtual Status synchronize() = 0;

  virtual Result<DeviceMemory> memory() = 0;

  // Whether the host may read and write all of this device's memory directly.
  virtual bool is_host() const = 0;

 protected:
  friend class Buffer;
  virtual void deallocate(void* data, size_t bytes) noexcept = 0;
};

inline Buffer::~Buffer() {
  if (data_ != nullptr) device_->deallocate(data_, size_);
}

// Host memory of this process.
std::unique_ptr<Device> make_host_device();

}  // namespace nibble
