// The way of weights from host memory to the device, for many packing threads at once.
#pragma once

#include <cuda_runtime.h>

#include <array>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "nibble/device/device.h"
#include "nibble/kernels/linear_weight.h"

namespace nibble::cuda {

struct EventDeleter {
  void operator()(cudaEvent_t event) const { (void)cudaEventDestroy(event); }
};

class PackPool {
 public:
  explicit PackPool(Device& device);
  ~PackPool();
  PackPool(const PackPool&) = delete;
  PackPool& operator=(const PackPool&) = delete;

  // Copies the matrix to the device and calls `rearrange` with the copy and a stream; returns when
  // what it launched is done. Thread-safe.
  Status run(const HostLinear& source,
             const std::function<void(const LinearWeight&, cudaStream_t)>& rearrange);

 private:
  static constexpr size_t kPieceBytes = size_t{4} << 20;
  static constexpr size_t kKeptBytes = size_t{32}
                                       << 20;  // an expert's matrix; larger ones are rare

  struct Slot {
    cudaStream_t stream = nullptr;
    Buffer host_memory;  // two pieces
    Buffer device_memory;
    std::array<std::unique_ptr<CUevent_st, EventDeleter>, 2> sent;
  };

  Result<Slot> take(size_t bytes);
  void give_back(Slot slot);
  static Status copy(Slot& slot, size_t offset, std::span<const std::byte> source);

  Device* device_;
  std::mutex mutex_;
  std::vector<Slot> free_;
};

}  // namespace nibble::cuda
