#include "nibble/device/cuda/cuda_device.h"

#include <cuda_runtime.h>
#include <fmt/format.h>

#include <string>
#include <utility>

#include "nibble/base/error.h"
#include "nibble/base/text.h"

namespace nibble {
namespace {

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
  CudaDevice(int ordinal, std::string name) : ordinal_(ordinal), name_(std::move(name)) {}

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

  Status copy_to_device(void* destination, std::span<const std::byte> source) override {
    NIBBLE_TRY(make_current());
    return check(cudaMemcpy(destination, source.data(), source.size(), cudaMemcpyHostToDevice),
                 "cudaMemcpy to the device");
  }

  Status copy_to_host(std::span<std::byte> destination, const void* source) override {
    NIBBLE_TRY(make_current());
    return check(cudaMemcpy(destination.data(), source, destination.size(), cudaMemcpyDeviceToHost),
                 "cudaMemcpy to the host");
  }

  Status synchronize() override {
    NIBBLE_TRY(make_current());
    NIBBLE_TRY(check(cudaGetLastError(), "a kernel launch"));
    return check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
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
    if (cudaSetDevice(ordinal_) == cudaSuccess) (void)cudaFree(data);
  }

 private:
  Status make_current() const { return check(cudaSetDevice(ordinal_), "cudaSetDevice"); }

  int ordinal_;
  std::string name_;
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
  return std::make_unique<CudaDevice>(ordinal, fmt::format("cuda:{} {}", ordinal, properties.name));
}

}  // namespace nibble
