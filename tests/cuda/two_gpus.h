// Tests of what two GPUs of one host do together: skipped, with the reason, where there is one.
#pragma once

#include <gtest/gtest.h>

#include "nibble/device/cuda/cuda_device.h"

namespace nibble {

class TwoGpus : public ::testing::Test {
 protected:
  void SetUp() override {
    if (num_cuda_devices() < 2) GTEST_SKIP() << "needs two GPUs";
  }
};

}  // namespace nibble
