#include "nibble/device/cuda/cuda_device.h"

#include <cuda_runtime.h>
#include <fmt/format.h>

#include <mutex>
#include <optional>
#include <string>
#include <utility>

#include "nibble/base/error.h"
#include "nibble/base/text.h"
#include "nibble/device/cuda/cuda_stream.h"

namespace nibble {
namespace {

constexpr size_t kAlignment = 256;  // what Device::allocate promises; cudaMalloc gives as much

// A CUDA code as an Error with the call's name.
Status check(cudaError_t code, std::string_view call) {
  if (code == cudaSuccess) return {};
  (void)cudaGetLastError();  // clears it, so that the next call starts clean
  const std::string message =
      fmt::format("{}: {} ({})", call, cudaGetErrorString(code), cudaGetErrorName(code));
  return code == cudaErrorMemoryAllocation ? out_of_memory(message) : unavailable(message);
}

class CudaDevice final : public Device {
 public:
  CudaDevice(int ordinal, std::string name, cudaStream_t stream)
      : ordinal_(ordinal), name_(std::move(name)), stream_(stream) {}
  CudaDevice(const CudaDevice&) = delete;
  CudaDevice& operator=(const CudaDevice&) = delete;
  ~CudaDevice() override {
    if (cudaSetDevice(ordinal_) == cudaSuccess) (void)cudaStreamDestroy(stream_);
  }

  cudaStream_t stream() const { return stream_; }

  void keep_error(Error error) {
    const std::lock_guard lock(mutex_);
    if (!first_error_) first_error_ = std::move(error);
  }

  std::string_view name() const override { return name_; }

  Result<Buffer> allocate(size_t bytes) override {
    if (bytes == 0) return Buffer();
    NIBBLE_TRY(make_current());
    void* data = nullptr;
    const Status status = check(cudaMalloc(&data, bytes), "cudaMalloc");
    if (!status) {
      const auto info = memory();
      return out_of_memory(fmt::format(
          "cannot allocate {} on {}: {}; {} are free", format_bytes(bytes), name_,
          status.error().message, info ? format_bytes(info->free_bytes) : "an unknown amount"));
    }
    return Buffer(this, data, bytes);
  }

  Result<Buffer> allocate_host_visible(size_t bytes) override {
    if (bytes == 0) return Buffer();
    NIBBLE_TRY(make_current());
    void* data = nullptr;
    // Page-locked memory starts on a page, so that it is aligned as allocate() promises.
    static_assert(4096 % kAlignment == 0);
    const Status status = check(cudaHostAlloc(&data, bytes, cudaHostAllocDefault), "cudaHostAlloc");
    if (!status) {
      return out_of_memory(fmt::format("cannot allocate {} of page-locked host memory: {}",
                                       format_bytes(bytes), status.error().message));
    }
    return Buffer(this, data, bytes);
  }

  // The kind of memory is found from the address: either side may be host-visible memory.
  Status copy_to_device(void* destination, std::span<const std::byte> source) override {
    return copy(destination, source.data(), source.size(), "cudaMemcpyAsync to the device");
  }

  Status copy_to_host(std::span<std::byte> destination, const void* source) override {
    return copy(destination.data(), source, destination.size(), "cudaMemcpyAsync to the host");
  }

  Status synchronize() override {
    NIBBLE_TRY(make_current());
    Status launched = check(cudaGetLastError(), "a kernel launch");
    Status finished = check(cudaStreamSynchronize(stream_), "cudaStreamSynchronize");
    const std::lock_guard lock(mutex_);
    if (std::optional<Error> error = std::exchange(first_error_, std::nullopt)) {
      return tl::unexpected(std::move(*error));
    }
    return launched ? std::move(finished) : std::move(launched);
  }

  Result<DeviceMemory> memory() override {
    NIBBLE_TRY(make_current());
    size_t free_bytes = 0;
    size_t total_bytes = 0;
    NIBBLE_TRY(check(cudaMemGetInfo(&free_bytes, &total_bytes), "cudaMemGetInfo"));
    return DeviceMemory{total_bytes, free_bytes};
  }

  bool is_host() const override { return false; }

 protected:
  void deallocate(void* data, size_t) noexcept override {
    if (cudaSetDevice(ordinal_) != cudaSuccess) return;
    cudaPointerAttributes attributes = {};
    if (cudaPointerGetAttributes(&attributes, data) == cudaSuccess &&
        attributes.type == cudaMemoryTypeHost) {
      (void)cudaStreamSynchronize(stream_);  // unlike cudaFree, cudaFreeHost does not wait
      (void)cudaFreeHost(data);
    } else {
      (void)cudaFree(data);
    }
  }

 private:
  Status copy(void* destination, const void* source, size_t bytes, std::string_view call) {
    if (bytes == 0) return {};
    NIBBLE_TRY(make_current());
    NIBBLE_TRY(
        check(cudaMemcpyAsync(destination, source, bytes, cudaMemcpyDefault, stream_), call));
    return check(cudaStreamSynchronize(stream_), call);
  }

  Status make_current() const { return check(cudaSetDevice(ordinal_), "cudaSetDevice"); }

  int ordinal_;
  std::string name_;
  cudaStream_t stream_;
  std::mutex mutex_;
  std::optional<Error> first_error_;  // since the last synchronize()
};

}  // namespace

int num_cuda_devices() {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) {
    (void)cudaGetLastError();
    return 0;
  }
  return count;
}

Result<std::unique_ptr<Device>> make_cuda_device(int ordinal) {
  const int count = num_cuda_devices();
  if (ordinal < 0 || ordinal >= count) {
    return not_found(
        fmt::format("there is no CUDA device {}: this machine shows {}", ordinal, count));
  }
  cudaDeviceProp properties = {};
  NIBBLE_TRY(check(cudaGetDeviceProperties(&properties, ordinal), "cudaGetDeviceProperties"));
  NIBBLE_TRY(check(cudaSetDevice(ordinal), "cudaSetDevice"));
  cudaStream_t stream = nullptr;
  NIBBLE_TRY(check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreate"));
  return std::make_unique<CudaDevice>(ordinal, fmt::format("cuda:{} {}", ordinal, properties.name),
                                      stream);
}

void keep_cuda_error(Device& device, Error error) {
  static_cast<CudaDevice&>(device).keep_error(std::move(error));
}

cudaStream_t cuda_stream(Device& device) { return static_cast<CudaDevice&>(device).stream(); }

}  // namespace nibble
