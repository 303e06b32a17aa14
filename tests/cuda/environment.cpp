// Every test of this binary needs a GPU: without one all are skipped, by name and with the reason.
#include <gtest/gtest.h>

#include <iostream>

#include "nibble/kernels/cuda/cuda_kernels.h"

namespace nibble {
namespace {

class NeedsGpu final : public ::testing::Environment {
 public:
  void SetUp() override {
    const auto kernels = make_cuda_kernels();
    if (kernels) return;
    // GoogleTest counts tests behind a skipped environment as passed; this line tells ctest better.
    std::cout << "[  SKIPPED ] all of these tests need a GPU" << std::endl;
    GTEST_SKIP() << "needs a GPU: " << kernels.error().message;
  }
};

[[maybe_unused]] const ::testing::Environment* const kEnvironment =
    ::testing::AddGlobalTestEnvironment(new NeedsGpu);

}  // namespace
}  // namespace nibble
