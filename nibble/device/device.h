// Who owns memory and in what order work on it happens.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <utility>

#include "nibble/base/result.h"
#include "nibble/device/transfer_queue.h"

namespace nibble {

class Device;

// What memory is for, in reports.
enum class MemoryUse : uint8_t {
  kWeights,
  kKvCache,
  kWorkspace,    // activations, logits, what operations keep between calls
  kHostVisible,  // page-locked memory of the host; on a host device kWorkspace
};
inline constexpr size_t kNumMemoryUses = 4;

// Memory of one device, freed when it goes. Move-only. The device must outlive it.
class Buffer {
 public:
  Buffer() = default;
  Buffer(Device* device, void* data, size_t size, MemoryUse use = MemoryUse::kWorkspace);
  Buffer(Buffer&& other) noexcept
      : device_(std::exchange(other.device_, nullptr)),
        data_(std::exchange(other.data_, nullptr)),
        size_(std::exchange(other.size_, 0)),
        use_(other.use_) {}
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(device_, other.device_);
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    std::swap(use_, other.use_);
    return *this;
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer();

  void* data() const { return data_; }
  size_t size() const { return size_; }
  void set_use(MemoryUse use);
  template <typename T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  Device* device_ = nullptr;
  void* data_ = nullptr;
  size_t size_ = 0;
  MemoryUse use_ = MemoryUse::kWorkspace;
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

  // The same, known in reports under `use`. Errors say which option would help.
  virtual Result<Buffer> allocate_for(MemoryUse use, size_t bytes);

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

  // Copies beside the device's work, on num_streams (1 or 2) streams of their own. Null for a host
  // device, whose work is done when a call returns.
  virtual Result<std::unique_ptr<TransferQueue>> make_transfer_queue(int /*num_streams*/) {
    return std::unique_ptr<TransferQueue>();
  }

  virtual Result<DeviceMemory> memory() = 0;

  // Whether the host may read and write all of this device's memory directly.
  virtual bool is_host() const = 0;

  // Bytes in buffers of this use now.
  uint64_t used_bytes(MemoryUse use) const {
    return used_[static_cast<size_t>(use)].load(std::memory_order_relaxed);
  }
  // Bytes that were taken from the system for buffers and that no buffer has.
  virtual uint64_t pooled_bytes() const { return 0; }

  // A named range around work that is given to the device, for profilers; ranges nest.
  virtual void push_range(const char* /*name*/) {}
  virtual void pop_range() {}

 protected:
  friend class Buffer;
  virtual void deallocate(void* data, size_t bytes) noexcept = 0;

 private:
  std::array<std::atomic<uint64_t>, kNumMemoryUses> used_ = {};
};

inline Buffer::Buffer(Device* device, void* data, size_t size, MemoryUse use)
    : device_(device), data_(data), size_(size), use_(use) {
  device->used_[static_cast<size_t>(use)].fetch_add(size, std::memory_order_relaxed);
}

inline void Buffer::set_use(MemoryUse use) {
  if (device_ == nullptr) return;
  device_->used_[static_cast<size_t>(use_)].fetch_sub(size_, std::memory_order_relaxed);
  use_ = use;
  device_->used_[static_cast<size_t>(use_)].fetch_add(size_, std::memory_order_relaxed);
}

inline Buffer::~Buffer() {
  if (data_ == nullptr) return;
  device_->used_[static_cast<size_t>(use_)].fetch_sub(size_, std::memory_order_relaxed);
  device_->deallocate(data_, size_);
}

// A range of the device for as long as it lives.
class DeviceRange {
 public:
  DeviceRange(Device& device, const char* name) : device_(device) { device.push_range(name); }
  DeviceRange(const DeviceRange&) = delete;
  DeviceRange& operator=(const DeviceRange&) = delete;
  ~DeviceRange() { device_.pop_range(); }

 private:
  Device& device_;
};

// Host memory of this process.
std::unique_ptr<Device> make_host_device();

}  // namespace nibble
