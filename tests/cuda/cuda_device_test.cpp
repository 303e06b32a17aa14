#include "nibble/device/cuda/cuda_device.h"

#include <gtest/gtest.h>

#include <numeric>
#include <vector>

namespace nibble {
namespace {

TEST(CudaDevice, AnOrdinalThatIsNotThereIsNamedWithTheCount) {
  const auto device = make_cuda_device(99);
  ASSERT_FALSE(device.has_value());
  EXPECT_EQ(device.error().code, ErrorCode::kNotFound);
  EXPECT_NE(device.error().message.find("99"), std::string::npos);
}

TEST(CudaDevice, MoreMemoryThanTheDeviceHasIsAnErrorWithBothAmounts) {
  const auto device = make_cuda_device(0).value();
  const auto buffer = device->allocate(size_t{1} << 50);
  ASSERT_FALSE(buffer.has_value());
  EXPECT_EQ(buffer.error().code, ErrorCode::kOutOfMemory);
  EXPECT_NE(buffer.error().message.find("of which"), std::string::npos);
  EXPECT_NE(buffer.error().message.find("max_num_tokens"), std::string::npos);
  EXPECT_TRUE(device->synchronize().has_value());  // the error does not stick
}

TEST(CudaDevice, CopiesThereAndBackThroughBothKindsOfMemory) {
  const auto device = make_cuda_device(0).value();
  std::vector<int> values(100003);
  std::iota(values.begin(), values.end(), 7);
  const size_t bytes = values.size() * sizeof(int);
  const Buffer own = device->allocate(bytes).value();
  const Buffer visible = device->allocate_host_visible(bytes).value();
  ASSERT_TRUE(device->copy_to_device(own.data(), std::as_bytes(std::span(values))));
  const std::span<std::byte> host(visible.as<std::byte>(), bytes);
  ASSERT_TRUE(device->copy_to_host(host, own.data()));
  for (size_t i = 0; i < values.size(); ++i) ASSERT_EQ(visible.as<int>()[i], values[i]);
}

TEST(CudaDevice, FreeMemoryShrinksByWhatIsAllocated) {
  const auto device = make_cuda_device(0).value();
  const DeviceMemory before = device->memory().value();
  const Buffer buffer = device->allocate(size_t{1} << 30).value();
  const DeviceMemory after = device->memory().value();
  EXPECT_GE(before.free_bytes - after.free_bytes, uint64_t{1} << 30);
  EXPECT_EQ(before.total_bytes, after.total_bytes);
}

}  // namespace
}  // namespace nibble
