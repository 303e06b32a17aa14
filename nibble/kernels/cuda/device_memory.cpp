#include "nibble/kernels/cuda/device_memory.h"

#include <algorithm>
#include <cstring>
#include <mutex>
#include <unordered_map>

#include "nibble/device/cuda/cuda_stream.h"

namespace nibble::cuda {
namespace {

std::mutex g_mutex;
std::unordered_map<const Device*, uint64_t> g_generations;  // a later device may go on counting

// A buffer of at least `bytes`; what it held is lost. False: the error is kept.
bool grow(Device& device, size_t bytes, bool host_visible, Buffer& buffer) {
  if (bytes <= buffer.size()) return true;
  if (Status status = device.synchronize(); !status) {
    keep_cuda_error(device, std::move(status).error());
    return false;
  }
  const size_t wanted = std::max<size_t>(bytes + bytes / 4, 4096);
  buffer = Buffer();
  auto grown = host_visible ? device.allocate_host_visible(wanted) : device.allocate(wanted);
  if (!grown) {
    keep_cuda_error(device, std::move(grown).error().with_context("workspace of an operation"));
    return false;
  }
  buffer = *std::move(grown);
  if (!host_visible) {
    const std::lock_guard lock(g_mutex);
    ++g_generations[&device];
  }
  return true;
}

}  // namespace

uint64_t memory_generation(const Device& device) {
  const std::lock_guard lock(g_mutex);
  const auto found = g_generations.find(&device);
  return found == g_generations.end() ? 0 : found->second;
}

void* Scratch::bytes(size_t count) {
  return grow(*device_, std::max<size_t>(count, 1), false, buffer_) ? buffer_.data() : nullptr;
}

Upload::~Upload() {
  if (copied_ != nullptr) (void)cudaEventDestroy(copied_);
}

const void* Upload::put_bytes(std::span<const std::byte> values) {
  if (copied_ == nullptr &&
      cudaEventCreateWithFlags(&copied_, cudaEventDisableTiming) != cudaSuccess) {
    keep_cuda_error(*device_, {ErrorCode::kUnavailable, "cudaEventCreate failed"});
    return nullptr;
  }
  const bool same = size_ == values.size() && size_ > 0 &&
                    std::memcmp(host_.data(), values.data(), values.size()) == 0;
  if (same) return device_memory_.data();
  if (values.empty()) return nullptr;
  size_ = 0;
  if (!grow(*device_, values.size(), true, host_)) return nullptr;
  if (!grow(*device_, values.size(), false, device_memory_)) return nullptr;
  (void)cudaEventSynchronize(copied_);  // the last copy may still be reading
  std::memcpy(host_.data(), values.data(), values.size());
  cudaStream_t stream = cuda_stream(*device_);
  if (cudaMemcpyAsync(device_memory_.data(), host_.data(), values.size(), cudaMemcpyHostToDevice,
                      stream) != cudaSuccess ||
      cudaEventRecord(copied_, stream) != cudaSuccess) {
    keep_cuda_error(*device_, {ErrorCode::kUnavailable, "an upload to the device failed"});
    return nullptr;
  }
  size_ = values.size();
  return device_memory_.data();
}

}  // namespace nibble::cuda
