#include "nibble/kernels/registry.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>

namespace nibble {
namespace {

TEST(Registry, MakesTheBackendsOfThisBuild) {
  EXPECT_EQ((*make_kernels("reference"))->name(), "reference");
  const std::string cpu = "cpu " + std::string(isa_name(detected_isa()));
  KernelOptions options;
  options.isa = detected_isa();
  EXPECT_EQ((*make_kernels("cpu", options))->name(), cpu);
  EXPECT_EQ((*make_kernels("auto", options))->name(), cpu);
  options.isa = Isa::kPortable;
  EXPECT_EQ((*make_kernels("cpu", options))->name(), "cpu portable");
}

TEST(Registry, NamesWhatItHasWhenAskedForCuda) {
  const auto result = make_kernels("cuda");
  ASSERT_FALSE(result.has_value());
  EXPECT_EQ(result.error().code, ErrorCode::kUnsupported);
  EXPECT_THAT(result.error().message, testing::HasSubstr("cpu and reference"));
}

TEST(Registry, SuggestsTheBackendThatWasMeant) {
  const auto result = make_kernels("referense");
  ASSERT_FALSE(result.has_value());
  EXPECT_EQ(result.error().code, ErrorCode::kInvalidArgument);
  EXPECT_THAT(result.error().message, testing::HasSubstr("did you mean 'reference'"));
  EXPECT_EQ(make_kernels("").error().code, ErrorCode::kInvalidArgument);
}

TEST(Registry, RefusesImpossibleThreadCounts) {
  KernelOptions options;
  options.threads = -1;
  EXPECT_EQ(make_kernels("cpu", options).error().code, ErrorCode::kInvalidArgument);
  options.threads = 1000000;
  EXPECT_EQ(make_kernels("cpu", options).error().code, ErrorCode::kInvalidArgument);
}

TEST(Registry, RefusesActivationsOfEightBitsThatAreExact) {
  KernelOptions options;
  options.cpu_int8_activations = true;
  options.cpu_exact_activations = true;
  EXPECT_EQ(make_kernels("cpu", options).error().code, ErrorCode::kInvalidArgument);
}

TEST(Registry, RefusesAnInstructionSetThatTheMachineLacks) {
  if (detected_isa() == Isa::kAmx) GTEST_SKIP() << "this machine has all of them";
  KernelOptions options;
  options.isa = Isa::kAmx;
  EXPECT_EQ(make_kernels("cpu", options).error().code, ErrorCode::kUnsupported);
}

TEST(Registry, FollowsTheEnvironmentUnlessToldOtherwise) {
  const char* const before = std::getenv("NIBBLE_ISA");
  const std::string saved = before == nullptr ? "" : before;
  ASSERT_EQ(setenv("NIBBLE_ISA", "portable", 1), 0);
  EXPECT_EQ((*make_kernels("cpu"))->name(), "cpu portable");
  ASSERT_EQ(setenv("NIBBLE_ISA", "avx1024", 1), 0);
  EXPECT_EQ(make_kernels("cpu").error().code, ErrorCode::kInvalidArgument);
  if (before == nullptr) {
    unsetenv("NIBBLE_ISA");
  } else {
    setenv("NIBBLE_ISA", saved.c_str(), 1);
  }
}

}  // namespace
}  // namespace nibble
