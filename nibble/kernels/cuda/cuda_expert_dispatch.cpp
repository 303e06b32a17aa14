#include "nibble/kernels/cuda/cuda_expert_dispatch.h"

#include <array>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/base/check.h"
#include "nibble/device/cuda/bf16_copies.h"
#include "nibble/device/cuda/cuda_stream.h"
#include "nibble/kernels/cuda/device_memory.h"
#include "nibble/kernels/cuda/expert_rows.h"

namespace nibble::cuda {
namespace {

// A layer sends three arrays of indices; with one more none waits for the last layer's.
constexpr size_t kUploads = 4;

class CudaExpertDispatch final : public ExpertDispatch {
 public:
  CudaExpertDispatch(Device& device, int64_t max_rows)
      : device_(device),
        stream_(cuda_stream(device)),
        max_rows_(max_rows),
        uploads_{Upload(device), Upload(device), Upload(device), Upload(device)} {}

  // Memory for the most indices now: what moved later would make recorded work void on one rank
  // and not on another (memory_generation).
  Status reserve() {
    const std::vector<int32_t> most(static_cast<size_t>(max_rows_));
    if (most.empty()) return {};
    for (Upload& upload : uploads_) (void)upload.put(std::span<const int32_t>(most));
    return device_.synchronize();
  }

  void place(int64_t count, const float* weights, const ExpertSlotsView& slots,
             int32_t* expert_ids) override {
    if (count == 0) return;
    keep(launch_place_experts(count, weights, slots, expert_ids, stream_), "place_experts");
  }

  void gather_rows(const MatrixView& from, std::span<const int32_t> rows,
                   const MatrixView& out) override {
    NIBBLE_CHECK(std::ssize(rows) == out.rows && out.rows <= max_rows_ && from.cols == out.cols);
    const int32_t* const there = send(rows);
    if (there == nullptr) return;
    bf16_copies(device_).make_void();
    keep(launch_gather_rows(from, there, out, stream_), "gather_rows");
  }

  void sum_rows(const MatrixView& from, std::span<const int32_t> rows,
                const MatrixView& out) override {
    if (out.rows == 0) return;
    const int64_t each = std::ssize(rows) / out.rows;
    NIBBLE_CHECK(each * out.rows == std::ssize(rows) && std::ssize(rows) <= max_rows_ &&
                 from.cols == out.cols);
    const int32_t* const there = send(rows);
    if (there == nullptr) return;
    bf16_copies(device_).make_void();
    keep(launch_sum_rows(from, there, each, out, stream_), "sum_rows");
  }

 private:
  const int32_t* send(std::span<const int32_t> rows) {
    next_ = (next_ + 1) % kUploads;
    return uploads_[next_].put(rows);
  }

  void keep(cudaError_t code, std::string_view operation) {
    if (code == cudaSuccess) return;
    keep_cuda_error(device_, {ErrorCode::kUnavailable,
                              std::string(operation) + ": " + cudaGetErrorString(code)});
  }

  Device& device_;
  cudaStream_t stream_;
  int64_t max_rows_;
  std::array<Upload, kUploads> uploads_;
  size_t next_ = 0;
};

}  // namespace

Result<std::unique_ptr<ExpertDispatch>> make_cuda_expert_dispatch(Device& device,
                                                                  int64_t max_rows) {
  auto dispatch = std::make_unique<CudaExpertDispatch>(device, max_rows);
  NIBBLE_TRY(dispatch->reserve());
  return dispatch;
}

}  // namespace nibble::cuda
