// What goes to stderr (log, progress) and what comes from the keyboard (interrupt).
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <csignal>
#include <string>
#include <thread>
#include <vector>

#include "nibble/base/interrupt.h"
#include "nibble/base/log.h"
#include "nibble/base/progress.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;
using ::testing::MatchesRegex;
using ::testing::Not;

TEST(Log, WritesTimeLevelAndTextToStderr) {
  ::testing::internal::CaptureStderr();
  set_log_level(LogLevel::kInfo);
  log_info("listening on port 8000");
  set_log_level(LogLevel::kWarning);
  EXPECT_THAT(::testing::internal::GetCapturedStderr(),
              MatchesRegex("[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\\.[0-9]{3}Z "
                           "INFO listening on port 8000\n"));
}

TEST(Log, DropsWhatIsBelowTheLevelWhichIsWarningAtFirst) {
  ::testing::internal::CaptureStderr();
  log_info("not shown");
  log_debug("not shown");
  log_warning("shown first");
  log_error("shown second");
  const std::string text = ::testing::internal::GetCapturedStderr();
  EXPECT_THAT(text, Not(HasSubstr("not shown")));
  EXPECT_THAT(text, HasSubstr(" WARNING shown first\n"));
  EXPECT_THAT(text, HasSubstr(" ERROR shown second\n"));
}

// A message from a file may hold anything, also what looks like a format.
TEST(Log, WritesBracesAndPercentSignsAsTheyAre) {
  ::testing::internal::CaptureStderr();
  log_error("{} {0} %s %v 100%");
  EXPECT_THAT(::testing::internal::GetCapturedStderr(), HasSubstr(" ERROR {} {0} %s %v 100%\n"));
}

TEST(ParseLogLevel, KnowsFiveNamesAndOneAlias) {
  EXPECT_EQ(parse_log_level("error").value(), LogLevel::kError);
  EXPECT_EQ(parse_log_level("warning").value(), LogLevel::kWarning);
  EXPECT_EQ(parse_log_level("info").value(), LogLevel::kInfo);
  EXPECT_EQ(parse_log_level("debug").value(), LogLevel::kDebug);
  EXPECT_EQ(parse_log_level("verbose").value(), LogLevel::kDebug);
  EXPECT_EQ(parse_log_level("trace").value(), LogLevel::kTrace);
  const auto unknown = parse_log_level("loud");
  ASSERT_FALSE(unknown);
  EXPECT_EQ(unknown.error().code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(unknown.error().message,
            "log level is 'loud', expected error, warning, info, debug or trace");
}

TEST(Progress, EndsWithOneLineThatSumsUp) {
  ::testing::internal::CaptureStderr();
  {
    Progress progress("quantizing", 4'000'000, Progress::Unit::kBytes);
    progress.add(1'000'000);
    progress.add(3'000'000);
    progress.finish();
    progress.finish();
  }
  EXPECT_THAT(::testing::internal::GetCapturedStderr(),
              MatchesRegex("quantizing 100 %  4\\.0 MB of 4\\.0 MB  .*/s  in [0-9.]+ s\n"));
}

TEST(Progress, SaysHowFarItCameWhenWorkIsGivenUp) {
  ::testing::internal::CaptureStderr();
  {
    Progress progress("reading", 2000, Progress::Unit::kItems);
    progress.add(500);
  }
  EXPECT_THAT(::testing::internal::GetCapturedStderr(),
              MatchesRegex("reading  25 %  500 of 2,000  .*/s  in .*\n"));
}

TEST(Progress, PrintsNothingWhenItIsOff) {
  ::testing::internal::CaptureStderr();
  {
    Progress progress("reading", 10, Progress::Unit::kItems, false);
    progress.add(10);
    progress.finish();
  }
  EXPECT_EQ(::testing::internal::GetCapturedStderr(), "");
}

TEST(Progress, CountsFromSeveralThreads) {
  ::testing::internal::CaptureStderr();
  {
    Progress progress("reading", 4000, Progress::Unit::kItems);
    std::vector<std::thread> threads;
    for (int t = 0; t < 4; ++t) {
      threads.emplace_back([&] {
        for (int i = 0; i < 1000; ++i) progress.add(1);
      });
    }
    for (std::thread& thread : threads) thread.join();
  }
  EXPECT_THAT(::testing::internal::GetCapturedStderr(), HasSubstr("100 %  4,000 of 4,000"));
}

TEST(Interrupt, TheFirstSignalSetsTheFlag) {
  install_interrupt_handlers();
  clear_interrupt();
  EXPECT_FALSE(interrupted());
  EXPECT_TRUE(check_interrupt());
  ::raise(SIGINT);
  EXPECT_TRUE(interrupted());
  const Status status = check_interrupt();
  ASSERT_FALSE(status);
  EXPECT_EQ(status.error().code, ErrorCode::kCancelled);
  EXPECT_EQ(status.error().message, "interrupted");
  clear_interrupt();
  EXPECT_FALSE(interrupted());
  ::raise(SIGTERM);
  EXPECT_TRUE(interrupted());
  clear_interrupt();
}

TEST(InterruptDeathTest, TheSecondSignalEndsTheProcess) {
  EXPECT_EXIT(
      {
        install_interrupt_handlers();
        clear_interrupt();
        ::raise(SIGINT);
        ::raise(SIGINT);
      },
      ::testing::ExitedWithCode(130), "");
  EXPECT_EXIT(
      {
        install_interrupt_handlers();
        clear_interrupt();
        ::raise(SIGINT);
        ::raise(SIGTERM);
      },
      ::testing::ExitedWithCode(143), "");
}

}  // namespace
}  // namespace nibble
