#include "nibble/device/cuda/cuda_transfer_queue.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>

#include "nibble/base/error.h"
#include "nibble/device/cuda/cuda_stream.h"

namespace nibble {
namespace {

// Events are used again after so many marks or copies: who still waits for an old one then waits
// for a later one.
constexpr size_t kEvents = 1024;

class CudaTransferQueue final : public TransferQueue {
 public:
  CudaTransferQueue(Device& device, int ordinal)
      : device_(device), ordinal_(ordinal), work_(cuda_stream(device)) {}
  CudaTransferQueue(const CudaTransferQueue&) = delete;
  CudaTransferQueue& operator=(const CudaTransferQueue&) = delete;

  ~CudaTransferQueue() override {
    if (cudaSetDevice(ordinal_) != cudaSuccess) return;
    for (const cudaStream_t stream : streams_) {
      if (stream != nullptr) (void)cudaStreamSynchronize(stream);
    }
    for (auto* events : {&marks_, &copies_, &halves_}) {
      for (const cudaEvent_t event : *events) {
        if (event != nullptr) (void)cudaEventDestroy(event);
      }
    }
    for (const cudaStream_t stream : streams_) {
      if (stream != nullptr) (void)cudaStreamDestroy(stream);
    }
  }

  Status open(int num_streams) {
    num_streams_ = num_streams;
    keep(cudaSetDevice(ordinal_), "cudaSetDevice");
    int least = 0;
    int greatest = 0;
    keep(cudaDeviceGetStreamPriorityRange(&least, &greatest), "cudaDeviceGetStreamPriorityRange");
    for (int i = 0; i < num_streams; ++i) {
      keep(cudaStreamCreateWithPriority(&streams_[static_cast<size_t>(i)], cudaStreamNonBlocking,
                                        greatest),
           "cudaStreamCreate");
    }
    for (auto* events : {&marks_, &copies_, &halves_}) {
      for (cudaEvent_t& event : *events) {
        // Who waits for a copy on the host is no hurry: it gives memory back.
        keep(cudaEventCreateWithFlags(&event, cudaEventDisableTiming | cudaEventBlockingSync),
             "cudaEventCreate");
      }
    }
    const std::lock_guard lock(mutex_);
    return outcome();
  }

  uint64_t mark() override {
    const std::lock_guard lock(mutex_);
    keep(cudaSetDevice(ordinal_), "cudaSetDevice");
    keep(cudaEventRecord(marks_[++last_mark_ % kEvents], work_), "cudaEventRecord");
    return last_mark_;
  }

  uint64_t copy(std::byte* destination, std::span<const std::byte> source,
                uint64_t after) override {
    const std::lock_guard lock(mutex_);
    keep(cudaSetDevice(ordinal_), "cudaSetDevice");
    const uint64_t ticket = ++last_copy_;
    const auto streams = static_cast<size_t>(num_streams_);
    const size_t share = (source.size() / streams + 4095) / 4096 * 4096;
    for (size_t i = 0; i < streams && i * share < source.size(); ++i) {
      const cudaStream_t stream = streams_[i];
      if (i > 0 && ticket > 1) {  // copies to one place keep their order
        keep(cudaStreamWaitEvent(stream, copies_[(ticket - 1) % kEvents], 0),
             "cudaStreamWaitEvent");
      }
      if (after > 0) {
        keep(cudaStreamWaitEvent(stream, marks_[after % kEvents], 0), "cudaStreamWaitEvent");
      }
      const auto part = source.subspan(i * share, std::min(share, source.size() - i * share));
      keep(cudaMemcpyAsync(destination + i * share, part.data(), part.size(),
                           cudaMemcpyHostToDevice, stream),
           "a copy of weights to the device");
      if (i > 0) {
        keep(cudaEventRecord(halves_[ticket % kEvents], stream), "cudaEventRecord");
        keep(cudaStreamWaitEvent(streams_[0], halves_[ticket % kEvents], 0), "cudaStreamWaitEvent");
      }
    }
    keep(cudaEventRecord(copies_[ticket % kEvents], streams_[0]), "cudaEventRecord");
    return ticket;
  }

  void hold_device_until(uint64_t ticket) override {
    const std::lock_guard lock(mutex_);
    keep(cudaSetDevice(ordinal_), "cudaSetDevice");
    const cudaEvent_t event = copies_[ticket % kEvents];
    // A wait for what has happened would still keep the next launch from overlapping the last.
    const cudaError_t reached = cudaEventQuery(event);
    if (reached == cudaSuccess) return;
    if (reached == cudaErrorNotReady) {
      (void)cudaGetLastError();
    } else {
      keep(reached, "a copy of weights to the device");
    }
    keep(cudaStreamWaitEvent(work_, event, 0), "cudaStreamWaitEvent");
  }

  Status wait(uint64_t ticket) override {
    cudaEvent_t event = nullptr;
    {
      const std::lock_guard lock(mutex_);
      keep(cudaSetDevice(ordinal_), "cudaSetDevice");
      event = copies_[ticket % kEvents];
    }
    const cudaError_t reached = cudaEventSynchronize(event);
    const std::lock_guard lock(mutex_);
    keep(reached, "a copy of weights to the device");
    return outcome();
  }

 private:
  void keep(cudaError_t code, std::string_view call) {
    if (code == cudaSuccess) return;
    (void)cudaGetLastError();
    if (error_.empty()) {
      error_ = fmt::format("{}: {} ({})", call, cudaGetErrorString(code), cudaGetErrorName(code));
      // So that the step that reads what did not come fails, too.
      keep_cuda_error(device_, {ErrorCode::kUnavailable, error_});
    }
  }
  Status outcome() const { return error_.empty() ? Status() : unavailable(error_); }

  Device& device_;
  const int ordinal_;
  const cudaStream_t work_;
  int num_streams_ = 1;
  std::array<cudaStream_t, 2> streams_ = {};
  std::array<cudaEvent_t, kEvents> marks_ = {};
  std::array<cudaEvent_t, kEvents> copies_ = {};
  std::array<cudaEvent_t, kEvents> halves_ = {};
  std::mutex mutex_;
  uint64_t last_mark_ = 0;
  uint64_t last_copy_ = 0;
  std::string error_;  // the first one
};

}  // namespace

Result<std::unique_ptr<TransferQueue>> make_cuda_transfer_queue(Device& device, int ordinal,
                                                                int num_streams) {
  auto queue = std::make_unique<CudaTransferQueue>(device, ordinal);
  NIBBLE_TRY(queue->open(num_streams));
  return std::unique_ptr<TransferQueue>(std::move(queue));
}

}  // namespace nibble
