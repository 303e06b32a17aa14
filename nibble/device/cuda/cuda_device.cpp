#include "nibble/device/cuda/cuda_device.h"

#include <cuda_runtime.h>
#include <fmt/format.h>
#include <nvtx3/nvToolsExt.h>

#include <mutex>
#include <optional>
#include <string>
#include <utility>

#include "nibble/base/error.h"
#include "nibble/base/text.h"
#include "nibble/device/cuda/bf16_copies.h"
#include "nibble/device/cuda/cuda_stream.h"
#include "nibble/device/cuda/cuda_transfer_queue.h"
#include "nibble/device/cuda/slab_pool.h"
#include "nibble/device/memory_report.h"

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

constexpr size_t kLargeWeight = size_t{64} << 20;  // from here on an allocation of its own

// The option that makes room for this use.
std::string_view way_out(MemoryUse use) {
  switch (use) {
    case MemoryUse::kWeights:
      return "; the weights need a larger GPU or a smaller checkpoint (nibble quantize; nibble "
             "plan "
             "tells what fits)";
    case MemoryUse::kKvCache:
      return "; a lower kv_cache_free_gpu_memory_fraction, max_batch_size or max_seq_len, or "
             "kv_cache_dtype fp8, takes less for the cache";
    case MemoryUse::kWorkspace:
    case MemoryUse::kHostVisible:
      break;
  }
  return "; a lower max_num_tokens takes less for activations, and a lower "
         "kv_cache_free_gpu_memory_fraction leaves more for them";
}

class CudaDevice final : public Device {
 public:
  CudaDevice(int ordinal, std::string name, cudaStream_t stream)
      : ordinal_(ordinal),
        name_(std::move(name)),
        stream_(stream),
        pool_(
            [](size_t bytes) -> void* {
              void* data = nullptr;
              if (cudaMalloc(&data, bytes) == cudaSuccess) return data;
              (void)cudaGetLastError();
              return nullptr;
            },
            [](void* data) { (void)cudaFree(data); }) {}
  CudaDevice(const CudaDevice&) = delete;
  CudaDevice& operator=(const CudaDevice&) = delete;
  ~CudaDevice() override {
    bf16_copies_.clear();
    if (cudaSetDevice(ordinal_) == cudaSuccess) (void)cudaStreamDestroy(stream_);
  }

  cudaStream_t stream() const { return stream_; }
  Bf16Copies& bf16_copies() { return bf16_copies_; }
  Status make_current() const { return check(cudaSetDevice(ordinal_), "cudaSetDevice"); }

  void keep_error(Error error) {
    const std::lock_guard lock(mutex_);
    if (!first_error_) first_error_ = std::move(error);
  }

  std::string_view name() const override { return name_; }

  Result<Buffer> allocate(size_t bytes) override {
    return allocate_for(MemoryUse::kWorkspace, bytes);
  }

  Result<Buffer> allocate_for(MemoryUse use, size_t bytes) override {
    if (bytes == 0) return Buffer();
    NIBBLE_TRY(make_current());
    void* data = nullptr;
    std::string why = "no room for a slab of weights";
    if (use == MemoryUse::kWeights && bytes < kLargeWeight) {
      data = pool_.allocate(bytes);
    } else if (const Status status = check(cudaMalloc(&data, bytes), "cudaMalloc"); !status) {
      data = nullptr;
      why = status.error().message;
    }
    if (data != nullptr) return Buffer(this, data, bytes, use);
    const auto report = memory_report(*this);
    return out_of_memory(fmt::format("cannot allocate {} on {}: {}; {}{}", format_bytes(bytes),
                                     name_, why, report ? to_text(*report) : "", way_out(use)));
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
    return Buffer(this, data, bytes, MemoryUse::kHostVisible);
  }

  // The kind of memory is found from the address: either side may be host-visible memory.
  Status copy_to_device(void* destination, std::span<const std::byte> source) override {
    bf16_copies_.make_void();
    return copy(destination, source.data(), source.size(), "cudaMemcpyAsync to the device");
  }

  Status copy_to_host(std::span<std::byte> destination, const void* source) override {
    return copy(destination.data(), source, destination.size(), "cudaMemcpyAsync to the host");
  }

  // From here on the host may write memory that it sees.
  Status synchronize() override {
    bf16_copies_.make_void();
    NIBBLE_TRY(make_current());
    Status launched = check(cudaGetLastError(), "a kernel launch");
    Status finished = check(cudaStreamSynchronize(stream_), "cudaStreamSynchronize");
    const std::lock_guard lock(mutex_);
    if (std::optional<Error> error = std::exchange(first_error_, std::nullopt)) {
      return tl::unexpected(std::move(*error));
    }
    return launched ? std::move(finished) : std::move(launched);
  }

  Result<std::unique_ptr<TransferQueue>> make_transfer_queue(int num_streams) override {
    return make_cuda_transfer_queue(*this, ordinal_, num_streams);
  }

  Result<DeviceMemory> memory() override {
    NIBBLE_TRY(make_current());
    size_t free_bytes = 0;
    size_t total_bytes = 0;
    NIBBLE_TRY(check(cudaMemGetInfo(&free_bytes, &total_bytes), "cudaMemGetInfo"));
    return DeviceMemory{total_bytes, free_bytes};
  }

  bool is_host() const override { return false; }

  uint64_t pooled_bytes() const override { return pool_.unused_bytes(); }

  void push_range(const char* name) override { (void)nvtxRangePushA(name); }
  void pop_range() override { (void)nvtxRangePop(); }

 protected:
  void deallocate(void* data, size_t bytes) noexcept override {
    bf16_copies_.make_void();
    if (cudaSetDevice(ordinal_) != cudaSuccess) return;
    if (pool_.deallocate(data, bytes)) return;
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

  int ordinal_;
  std::string name_;
  cudaStream_t stream_;
  SlabPool pool_;
  std::mutex mutex_;
  std::optional<Error> first_error_;  // since the last synchronize()
  Bf16Copies bf16_copies_{*this};
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
  int count = 0;
  const cudaError_t counted = cudaGetDeviceCount(&count);
  if (counted != cudaSuccess) {
    (void)cudaGetLastError();
    return not_found(fmt::format(
        "there is no CUDA device {} on this machine: {} ({}); nvidia-smi tells what the driver "
        "sees, and --backend cpu needs no GPU",
        ordinal, cudaGetErrorString(counted), cudaGetErrorName(counted)));
  }
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

Status use_cuda_device(Device& device) { return static_cast<CudaDevice&>(device).make_current(); }

Bf16Copies& bf16_copies(Device& device) { return static_cast<CudaDevice&>(device).bf16_copies(); }

cudaStream_t cuda_stream(Device& device) { return static_cast<CudaDevice&>(device).stream(); }

}  // namespace nibble
