#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <vector>

#include "nibble/device/device.h"

namespace nibble {
namespace {

TEST(HostDevice, GivesAlignedMemoryOfAnySize) {
  const auto device = make_host_device();
  for (const size_t bytes : {size_t{1}, size_t{255}, size_t{4096}, size_t{5} << 20}) {
    auto buffer = device->allocate(bytes);
    ASSERT_TRUE(buffer.has_value());
    EXPECT_EQ(buffer->size(), bytes);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer->data()) % 256, 0u);
    std::memset(buffer->data(), 0xa5, bytes);
  }
  auto empty = device->allocate(0);
  ASSERT_TRUE(empty.has_value());
  EXPECT_EQ(empty->data(), nullptr);
}

TEST(HostDevice, CopiesThereAndBack) {
  const auto device = make_host_device();
  const std::vector<int> there = {1, 2, 3};
  std::vector<int> back(3);
  auto buffer = device->allocate(12);
  ASSERT_TRUE(buffer.has_value());
  ASSERT_TRUE(device->copy_to_device(buffer->data(), std::as_bytes(std::span(there))).has_value());
  ASSERT_TRUE(
      device->copy_to_host(std::as_writable_bytes(std::span(back)), buffer->data()).has_value());
  EXPECT_EQ(back, there);
  EXPECT_TRUE(device->synchronize().has_value());
}

TEST(HostDevice, TooMuchIsOutOfMemoryWithBothAmounts) {
  const auto device = make_host_device();
  const auto buffer = device->allocate(size_t{1} << 60);
  ASSERT_FALSE(buffer.has_value());
  EXPECT_EQ(buffer.error().code, ErrorCode::kOutOfMemory);
  EXPECT_NE(buffer.error().message.find("1152.9 PB"), std::string::npos) << buffer.error().message;
  EXPECT_NE(buffer.error().message.find("available"), std::string::npos);
}

TEST(Buffer, MovingLeavesOneOwner) {
  const auto device = make_host_device();
  auto first = device->allocate(64);
  ASSERT_TRUE(first.has_value());
  void* data = first->data();
  Buffer second = *std::move(first);
  EXPECT_EQ(second.data(), data);
  EXPECT_EQ(first->data(), nullptr);
  second = Buffer();
  EXPECT_EQ(second.data(), nullptr);
}

}  // namespace
}  // namespace nibble
