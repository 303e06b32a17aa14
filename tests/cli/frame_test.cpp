// What every command shares: help, version, mistakes on the command line, broken output.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/cli/run_program.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;
using testing::ProgramRun;
using testing::run_nibble;

TEST(Program, PrintsItsVersionAndHelp) {
  const ProgramRun version = run_nibble({"--version"});
  EXPECT_EQ(version.exit_code, 0);
  EXPECT_THAT(version.out, ::testing::MatchesRegex("nibble [0-9]+\\.[0-9]+\\.[0-9]+\n"));
  const ProgramRun help = run_nibble({"--help"});
  EXPECT_EQ(help.exit_code, 0);
  EXPECT_THAT(help.out, HasSubstr("Commands:"));
  EXPECT_THAT(help.out, HasSubstr("  inspect "));
  EXPECT_EQ(help.err, "");
  const ProgramRun command_help = run_nibble({"help", "inspect"});
  EXPECT_EQ(command_help.exit_code, 0);
  EXPECT_THAT(command_help.out, HasSubstr("Usage: nibble inspect"));
}

TEST(Program, WithoutACommandShowsHelpAsAnError) {
  const ProgramRun run = run_nibble({});
  EXPECT_EQ(run.exit_code, 2);
  EXPECT_EQ(run.out, "");
  EXPECT_THAT(run.err, HasSubstr("Usage: nibble"));
}

TEST(Program, TellsMistakesOnTheCommandLineInOneLine) {
  const std::pair<std::vector<std::string>, const char*> cases[] = {
      {{"inspct"}, "nibble: unknown command 'inspct'; did you mean 'inspect'?\n"},
      {{"xyzzy"}, "nibble: unknown command 'xyzzy'; nibble --help lists the commands\n"},
      {{"--hlp"}, "nibble: unknown option '--hlp'; did you mean '--help'?\n"},
      {{"inspect", "--jsn", "demo"},
       "nibble inspect: unknown option '--jsn'; did you mean '--json'?\n"},
      {{"inspect", "demo", "-x"},
       "nibble inspect: unknown option '-x'; did you mean '-h' or '-q'?\n"},
      {{"inspect", "--zzzzzzzzz=3"},
       "nibble inspect: unknown option '--zzzzzzzzz'; nibble inspect --help lists the options\n"},
      {{"inspect"}, "nibble inspect: model is required; nibble inspect --help explains\n"},
      {{"inspect", "demo", "extra"}, "nibble inspect: unexpected argument 'extra'\n"},
      {{"inspect", "demo", "--log-level", "loud"},
       "nibble inspect: --log-level: log level is 'loud', expected error, warning, info, debug or "
       "trace\n"},
      {{"inspect", "demo", "--values", "--no-values"},
       "nibble inspect: --values and --no-values exclude each other\n"},
      {{"--log-level", "info"}, "nibble: a command is missing; nibble --help explains\n"},
  };
  for (const auto& [arguments, message] : cases) {
    const ProgramRun run = run_nibble(arguments);
    EXPECT_EQ(run.exit_code, 2) << message;
    EXPECT_EQ(run.err, message);
    EXPECT_EQ(run.out, "");
  }
}

TEST(Program, TakesUnderscoresInOptionNamesButNotInTheirValues) {
  const ProgramRun run = run_nibble({"inspect", "demo", "--no_values", "--log_level=error"});
  EXPECT_EQ(run.exit_code, 0) << run.err;
  EXPECT_THAT(run.out, HasSubstr("not checked"));
  const ProgramRun value = run_nibble({"inspect", "demo", "--tensor", "--no_values"});
  EXPECT_THAT(value.err, HasSubstr("no tensor \"--no_values\""));
}

TEST(Program, SaysWhenItsOutputCanNotBeWritten) {
  const ProgramRun run = run_nibble({"--version"});
  ASSERT_EQ(run.exit_code, 0);
  const std::string program = "\"" NIBBLE_PROGRAM "\"";  // the path may hold a space
  const int full = std::system((program + " inspect demo -q > /dev/full 2> /dev/null").c_str());
  EXPECT_EQ(WEXITSTATUS(full), 1);
  // A reader that leaves early is no reason to complain: exit code as after SIGPIPE, no message.
  const int pipe = std::system(
      ("bash -c 'set -o pipefail; " + program + " inspect demo -q --tensors 2>&1 | true'").c_str());
  EXPECT_EQ(WEXITSTATUS(pipe), 141);
}

}  // namespace
}  // namespace nibble
