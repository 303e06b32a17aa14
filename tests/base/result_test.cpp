#include "nibble/base/result.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cerrno>
#include <memory>
#include <string>
#include <utility>

#include "nibble/base/check.h"
#include "nibble/base/error.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;

Result<int> half(int x) {
  if (x % 2 != 0) return invalid_argument(std::to_string(x) + " is odd");
  return x / 2;
}

Result<int> quarter(int x) {
  const int y = NIBBLE_TRY(half(x));
  return half(y);
}

Status both_even(int x, int y) {
  NIBBLE_TRY(half(x));
  NIBBLE_TRY(half(y));
  return {};
}

Result<std::unique_ptr<int>> boxed(int x) {
  if (x < 0) return unsupported("negative");
  return std::make_unique<int>(x);
}

Result<int> unboxed(int x) {
  const std::unique_ptr<int> box = NIBBLE_TRY(boxed(x));
  return *box;
}

Status refuses(int* reached) {
  NIBBLE_TRY(both_even(2, 3));
  ++*reached;
  return {};
}

TEST(NibbleTry, TakesTheValueOutOfASuccess) {
  EXPECT_EQ(quarter(12).value(), 3);
  EXPECT_EQ(unboxed(7).value(), 7);  // a type that can only be moved
  EXPECT_TRUE(both_even(2, 4).has_value());
}

TEST(NibbleTry, ReturnsTheFirstErrorWithItsCode) {
  const Result<int> first = quarter(5);
  ASSERT_FALSE(first);
  EXPECT_EQ(first.error().code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(first.error().message, "5 is odd");
  EXPECT_EQ(quarter(6).error().message, "3 is odd");
  EXPECT_EQ(unboxed(-1).error().code, ErrorCode::kUnsupported);
}

TEST(NibbleTry, LeavesTheFunctionAtTheError) {
  int reached = 0;
  EXPECT_EQ(refuses(&reached).error().message, "3 is odd");
  EXPECT_EQ(reached, 0);
}

TEST(WithContext, PutsTheContextInFrontAndKeepsTheCode) {
  const Result<int> result = with_context(with_context(half(9), "shard 7"), "loading layer 3");
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().message, "loading layer 3: shard 7: 9 is odd");
  EXPECT_EQ(result.error().code, ErrorCode::kInvalidArgument);
}

TEST(WithContext, LeavesAValueAlone) { EXPECT_EQ(with_context(half(8), "unused").value(), 4); }

TEST(ErrorHelpers, EachMakesItsOwnCode) {
  EXPECT_EQ(invalid_argument("m").value().code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(not_found("m").value().code, ErrorCode::kNotFound);
  EXPECT_EQ(corrupt("m").value().code, ErrorCode::kCorrupt);
  EXPECT_EQ(unsupported("m").value().code, ErrorCode::kUnsupported);
  EXPECT_EQ(out_of_memory("m").value().code, ErrorCode::kOutOfMemory);
  EXPECT_EQ(unavailable("m").value().code, ErrorCode::kUnavailable);
  EXPECT_EQ(cancelled("m").value().code, ErrorCode::kCancelled);
  EXPECT_EQ(cancelled("the words").value().message, "the words");
}

TEST(SystemError, MapsErrnoAndEndsInItsText) {
  EXPECT_EQ(system_error("open a", ENOENT).value().code, ErrorCode::kNotFound);
  EXPECT_EQ(system_error("open a", ENOTDIR).value().code, ErrorCode::kNotFound);
  EXPECT_EQ(system_error("map a", ENOMEM).value().code, ErrorCode::kOutOfMemory);
  EXPECT_EQ(system_error("write a", ENOSPC).value().code, ErrorCode::kUnavailable);
  EXPECT_EQ(system_error("write a", ENOSPC).value().message, "write a: No space left on device");
}

// The numbers that result.h and the server's contract promise.
TEST(ExitCode, IsTwoForUsageOneThirtyForInterruptOtherwiseOne) {
  EXPECT_EQ(exit_code(ErrorCode::kInvalidArgument), 2);
  EXPECT_EQ(exit_code(ErrorCode::kCancelled), 130);
  for (const ErrorCode code : {ErrorCode::kNotFound, ErrorCode::kCorrupt, ErrorCode::kUnsupported,
                               ErrorCode::kOutOfMemory, ErrorCode::kUnavailable}) {
    EXPECT_EQ(exit_code(code), 1) << error_code_name(code);
  }
}

TEST(ErrorCodeName, NamesEveryCodeInWords) {
  EXPECT_EQ(error_code_name(ErrorCode::kInvalidArgument), "invalid argument");
  EXPECT_EQ(error_code_name(ErrorCode::kNotFound), "not found");
  EXPECT_EQ(error_code_name(ErrorCode::kCorrupt), "corrupt");
  EXPECT_EQ(error_code_name(ErrorCode::kUnsupported), "unsupported");
  EXPECT_EQ(error_code_name(ErrorCode::kOutOfMemory), "out of memory");
  EXPECT_EQ(error_code_name(ErrorCode::kUnavailable), "unavailable");
  EXPECT_EQ(error_code_name(ErrorCode::kCancelled), "cancelled");
}

TEST(NibbleCheckDeathTest, PrintsTheConditionWithItsPlaceAndAborts) {
  const int cols = 17;
  EXPECT_DEATH(NIBBLE_CHECK(cols % 16 == 0),
               "result_test.cpp:[0-9]+: check failed: cols % 16 == 0");
}

TEST(NibbleCheck, EvaluatesATrueConditionOnceAndGoesOn) {
  int evaluations = 0;
  NIBBLE_CHECK(++evaluations == 1);
  EXPECT_EQ(evaluations, 1);
}

}  // namespace
}  // namespace nibble
