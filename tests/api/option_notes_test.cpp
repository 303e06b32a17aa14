// Options that are taken and change nothing are not taken silently.
#define NIBBLE_IMPLEMENTATION  // the log is an inner part
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "nibble/base/log.h"
#include "nibble/options.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;

std::string logged(std::string_view json) {
  ::testing::internal::CaptureStderr();
  EXPECT_TRUE(api::parse_llm_options(json).has_value());
  return ::testing::internal::GetCapturedStderr();
}

TEST(OptionNotes, PartialReuseIsAcceptedButNotSilently) {
  set_log_level(LogLevel::kInfo);
  EXPECT_THAT(logged(R"({"kv_cache_config": {"enable_partial_reuse": true}})"),
              HasSubstr("kv_cache_config.enable_partial_reuse is accepted and has no effect"));
  EXPECT_EQ(logged(R"({"kv_cache_config": {"enable_partial_reuse": false}})"), "");
  set_log_level(LogLevel::kWarning);
}

}  // namespace
}  // namespace nibble
