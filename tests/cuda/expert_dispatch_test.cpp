// ExpertDispatch on the GPU against the host's, whose sums have the same order: the same bits.
#include "nibble/kernels/expert_dispatch.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "nibble/device/cuda/cuda_device.h"
#include "nibble/model/expert_placement.h"

namespace nibble {
namespace {

template <typename T>
Buffer sent(Device& device, const std::vector<T>& values) {
  Buffer buffer = device.allocate(values.size() * sizeof(T)).value();
  EXPECT_TRUE(device.copy_to_device(buffer.data(), std::as_bytes(std::span(values))));
  return buffer;
}

template <typename T>
std::vector<T> brought(Device& device, const Buffer& buffer) {
  std::vector<T> values(buffer.size() / sizeof(T));
  EXPECT_TRUE(device.copy_to_host(std::as_writable_bytes(std::span(values)), buffer.data()));
  return values;
}

std::vector<float> drawn(size_t count, unsigned seed) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(count);
  for (float& value : values) value = normal(rng);
  return values;
}

class ExpertDispatchOnCuda : public ::testing::Test {
 protected:
  void SetUp() override {
    device_ = make_cuda_device(0).value();
    host_ = make_host_device();
  }
  std::unique_ptr<Device> device_;
  std::unique_ptr<Device> host_;
};

// 256 experts in 8 groups, 32 of them twice or more: every choice takes the copy it takes on the
// host.
TEST_F(ExpertDispatchOnCuda, TakesTheHostsCopies) {
  ExpertLoad load;
  for (int e = 0; e < 256; ++e) load[3].push_back(1000.0 / (1 + e));
  const ExpertSlots slots = balance_experts(load, 256, 8, 32).value().index_of(3);
  std::mt19937 rng(1);
  for (const int64_t count : {1, 8, 1000, 16384}) {
    std::vector<int32_t> ids(static_cast<size_t>(count));
    for (int32_t& id : ids) id = static_cast<int32_t>(rng() % 256);
    std::vector<float> weights = drawn(ids.size(), 2);
    for (float& weight : weights) weight = std::abs(weight);
    const Buffer begin = sent(*device_, slots.begin);
    const Buffer list = sent(*device_, slots.slots);
    const Buffer device_weights = sent(*device_, weights);
    const Buffer device_ids = sent(*device_, ids);
    const auto dispatch = make_expert_dispatch(*device_, 0).value();
    dispatch->place(count, device_weights.as<float>(), {begin.as<int32_t>(), list.as<int32_t>()},
                    device_ids.as<int32_t>());
    std::vector<int32_t> want = ids;
    slots.place(count, weights.data(), want.data());
    EXPECT_EQ(brought<int32_t>(*device_, device_ids), want) << count;
    if (count > 1000) {
      EXPECT_GT(*std::max_element(want.begin(), want.end()), 256) << "no copy was taken";
    }
  }
}

TEST_F(ExpertDispatchOnCuda, GathersAndSumsRowsAsTheHostDoes) {
  constexpr int64_t kRows = 700;
  const auto dispatch = make_expert_dispatch(*device_, 8 * kRows).value();
  const auto host_dispatch = make_expert_dispatch(*host_, 8 * kRows).value();
  std::mt19937 rng(4);
  for (const int64_t cols : {8, 384, 7168, 7}) {
    std::vector<float> values = drawn(static_cast<size_t>(kRows * (cols + 4)), 5);
    const Buffer device_values = sent(*device_, values);
    const MatrixView from{values.data(), DType::kF32, kRows, cols, cols + 4};
    const MatrixView device_from{device_values.data(), DType::kF32, kRows, cols, cols + 4};
    std::vector<int32_t> rows(kRows);
    for (int32_t& row : rows) row = static_cast<int32_t>(rng() % kRows);
    std::vector<int32_t> sums(8 * 90);
    for (int32_t& row : sums) row = static_cast<int32_t>(rng() % (2 * kRows)) - kRows;
    for (int32_t& row : sums) row = std::max(row, -1);
    std::vector<float> gathered(static_cast<size_t>(kRows * cols));
    std::vector<float> summed(static_cast<size_t>(90 * cols));
    host_dispatch->gather_rows(from, rows, {gathered.data(), DType::kF32, kRows, cols, cols});
    host_dispatch->sum_rows(from, sums, {summed.data(), DType::kF32, 90, cols, cols});
    const Buffer device_gathered = sent(*device_, std::vector<float>(gathered.size(), -1));
    const Buffer device_summed = sent(*device_, std::vector<float>(summed.size(), -1));
    // More calls than arrays of indices that may be under way.
    for (int i = 0; i < 6; ++i) {
      dispatch->gather_rows(device_from, rows,
                            {device_gathered.data(), DType::kF32, kRows, cols, cols});
      dispatch->sum_rows(device_from, sums, {device_summed.data(), DType::kF32, 90, cols, cols});
    }
    EXPECT_EQ(brought<float>(*device_, device_gathered), gathered) << cols;
    EXPECT_EQ(brought<float>(*device_, device_summed), summed) << cols;
    EXPECT_TRUE(device_->synchronize());
  }
}

}  // namespace
}  // namespace nibble
