#include "nibble/kernels/expert_dispatch.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "nibble/base/check.h"

#ifdef NIBBLE_HAVE_CUDA
#include "nibble/kernels/cuda/cuda_expert_dispatch.h"
#endif

namespace nibble {

void place_experts(int64_t count, const float* weights, const ExpertSlotsView& slots,
                   int32_t* expert_ids) {
  for (int64_t i = 0; i < count; ++i) {
    const int32_t* const of_expert = slots.begin + expert_ids[i];
    const auto copies = static_cast<uint32_t>(of_expert[1] - of_expert[0]);
    const uint32_t hash = (std::bit_cast<uint32_t>(weights[i]) * 2654435761U) >> 16;
    expert_ids[i] = slots.slots[static_cast<uint32_t>(of_expert[0]) + hash % copies];
  }
}

namespace {

class HostExpertDispatch final : public ExpertDispatch {
 public:
  explicit HostExpertDispatch(int64_t max_rows) : max_rows_(max_rows) {}

  void place(int64_t count, const float* weights, const ExpertSlotsView& slots,
             int32_t* expert_ids) override {
    place_experts(count, weights, slots, expert_ids);
  }

  void gather_rows(const MatrixView& from, std::span<const int32_t> rows,
                   const MatrixView& out) override {
    NIBBLE_CHECK(std::ssize(rows) == out.rows && out.rows <= max_rows_ && from.cols == out.cols);
    for (int64_t i = 0; i < out.rows; ++i) {
      std::memcpy(out.row<float>(i), from.row<float>(rows[static_cast<size_t>(i)]),
                  static_cast<size_t>(out.cols) * sizeof(float));
    }
  }

  void sum_rows(const MatrixView& from, std::span<const int32_t> rows,
                const MatrixView& out) override {
    if (out.rows == 0) return;
    const auto each = rows.size() / static_cast<size_t>(out.rows);
    NIBBLE_CHECK(each * static_cast<size_t>(out.rows) == rows.size() &&
                 std::ssize(rows) <= max_rows_ && from.cols == out.cols);
    for (int64_t t = 0; t < out.rows; ++t) {
      float* const sum = out.row<float>(t);
      std::fill_n(sum, out.cols, 0.0F);
      for (const int32_t row : rows.subspan(static_cast<size_t>(t) * each, each)) {
        if (row < 0) continue;
        const float* const y = from.row<float>(row);
        for (int64_t i = 0; i < out.cols; ++i) sum[i] += y[i];
      }
    }
  }

 private:
  int64_t max_rows_;
};

}  // namespace

Result<std::unique_ptr<ExpertDispatch>> make_expert_dispatch(Device& device, int64_t max_rows) {
#ifdef NIBBLE_HAVE_CUDA
  if (!device.is_host()) return cuda::make_cuda_expert_dispatch(device, max_rows);
#endif
  NIBBLE_CHECK(device.is_host());
  return std::make_unique<HostExpertDispatch>(max_rows);
}

}  // namespace nibble
