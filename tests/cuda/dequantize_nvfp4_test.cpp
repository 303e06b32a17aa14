#include "nibble/kernels/cuda/dequantize_nvfp4.h"

#include <gtest/gtest.h>

#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "nibble/device/cuda/cuda_device.h"
#include "nibble/kernels/reference/reference_kernels.h"

namespace nibble {
namespace {

// A matrix that lies on the device; outputs are poisoned first.
class DequantizeNvfp4Cuda : public ::testing::Test {
 protected:
  void SetUp() override {
    auto device = make_cuda_device(0);
    if (!device) GTEST_SKIP() << "needs a GPU: " << device.error().message;
    device_ = *std::move(device);
  }

  std::vector<float> run(const std::vector<uint8_t>& packed, const std::vector<uint8_t>& scales,
                         float global_scale, int64_t rows, int64_t cols) {
    Buffer packed_buffer = *device_->allocate(packed.size());
    Buffer scales_buffer = *device_->allocate(scales.size());
    std::vector<float> out(static_cast<size_t>(rows * cols),
                           std::numeric_limits<float>::quiet_NaN());
    Buffer out_buffer = *device_->allocate(out.size() * sizeof(float));
    EXPECT_TRUE(device_->copy_to_device(packed_buffer.data(), std::as_bytes(std::span(packed))));
    EXPECT_TRUE(device_->copy_to_device(scales_buffer.data(), std::as_bytes(std::span(scales))));
    EXPECT_TRUE(device_->copy_to_device(out_buffer.data(), std::as_bytes(std::span(out))));
    LinearWeight weight;
    weight.format = LinearFormat::kNvfp4;
    weight.rows = rows;
    weight.cols = cols;
    weight.data = packed_buffer.data();
    weight.scales = scales_buffer.data();
    weight.global_scale = global_scale;
    dequantize_nvfp4_cuda(weight, out_buffer.as<float>());
    const Status status = device_->synchronize();
    EXPECT_TRUE(status.has_value()) << status.error().message;
    EXPECT_TRUE(device_->copy_to_host(std::as_writable_bytes(std::span(out)), out_buffer.data()));
    return out;
  }

  std::unique_ptr<Device> device_;
};

// All 16 codes against all 127 legal block scales.
TEST_F(DequantizeNvfp4Cuda, EveryCodeAndScaleGivesTheReferenceBits) {
  constexpr int64_t kRows = 127;
  std::vector<uint8_t> packed;
  std::vector<uint8_t> scales;
  for (int row = 0; row < kRows; ++row) {
    for (const int byte : {0x10, 0x32, 0x54, 0x76, 0x98, 0xba, 0xdc, 0xfe}) {
      packed.push_back(static_cast<uint8_t>(byte));
    }
    scales.push_back(static_cast<uint8_t>(row));
  }
  const std::vector<float> got = run(packed, scales, 0.37f, kRows, 16);
  std::vector<float> want(got.size());
  LinearWeight weight;
  weight.format = LinearFormat::kNvfp4;
  weight.rows = kRows;
  weight.cols = 16;
  weight.data = packed.data();
  weight.scales = scales.data();
  weight.global_scale = 0.37f;
  ReferenceKernels::dequantize(weight, want.data());
  EXPECT_EQ(0, std::memcmp(got.data(), want.data(), want.size() * sizeof(float)));
}

TEST_F(DequantizeNvfp4Cuda, RandomMatricesOfAnyRowCountGiveTheReferenceBits) {
  std::mt19937 rng(7);
  for (const int64_t rows : {1, 3, 513}) {
    constexpr int64_t kCols = 7168;
    std::vector<uint8_t> packed(static_cast<size_t>(rows * kCols / 2));
    std::vector<uint8_t> scales(static_cast<size_t>(rows * kCols / 16));
    for (uint8_t& byte : packed) byte = static_cast<uint8_t>(rng());
    for (uint8_t& byte : scales) byte = static_cast<uint8_t>(rng() % 0x7f);
    const std::vector<float> got = run(packed, scales, 3.1e-4f, rows, kCols);
    std::vector<float> want(got.size());
    LinearWeight weight;
    weight.format = LinearFormat::kNvfp4;
    weight.rows = rows;
    weight.cols = kCols;
    weight.data = packed.data();
    weight.scales = scales.data();
    weight.global_scale = 3.1e-4f;
    ReferenceKernels::dequantize(weight, want.data());
    EXPECT_EQ(0, std::memcmp(got.data(), want.data(), want.size() * sizeof(float))) << rows;
  }
}

TEST(CudaDevice, AnOrdinalThatIsNotThereIsNamedWithTheCount) {
  const auto device = make_cuda_device(99);
  ASSERT_FALSE(device.has_value());
  EXPECT_EQ(device.error().code, ErrorCode::kNotFound);
  EXPECT_NE(device.error().message.find("99"), std::string::npos);
}

TEST_F(DequantizeNvfp4Cuda, MoreMemoryThanTheDeviceHasIsAnErrorWithBothAmounts) {
  const auto buffer = device_->allocate(size_t{1} << 50);
  ASSERT_FALSE(buffer.has_value());
  EXPECT_EQ(buffer.error().code, ErrorCode::kOutOfMemory);
  EXPECT_NE(buffer.error().message.find("are free"), std::string::npos);
}

}  // namespace
}  // namespace nibble
