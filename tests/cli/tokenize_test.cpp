#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/cli/run_program.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;
using testing::ProgramRun;
using testing::run_nibble;

// Ids as in tests/golden/demo/reference.json.
TEST(TokenizeCommand, PrintsTheTokensOfAText) {
  const ProgramRun run = run_nibble({"tokenize", "demo", "Hello, my name is"});
  EXPECT_EQ(run.exit_code, 0) << run.err;
  EXPECT_EQ(run.out,
            "    1115  \"Hello\"\n      14  \",\"\n    1130  \" my\"\n     769  \" name\"\n"
            "     273  \" is\"\n5 tokens, 17 bytes\n");
  EXPECT_EQ(run_nibble({"tokenize", "demo", "--ids", "--add-bos"}, "Hello, my name is").out,
            "0 1115 14 1130 769 273\n");
}

TEST(TokenizeCommand, PrintsJson) {
  EXPECT_EQ(run_nibble({"tokenize", "demo", "Hello\xc3\xa9", "--json"}).out,
            R"({"count":3,"ids":[1115,130,105],"tokens":[)"
            R"({"id":1115,"text":"Hello","bytes":[72,101,108,108,111]},)"
            "{\"id\":130,\"text\":\"\ufffd\",\"bytes\":[195]},"
            "{\"id\":105,\"text\":\"\ufffd\",\"bytes\":[169]}]}\n");
  EXPECT_EQ(run_nibble({"tokenize", "demo", "Hello", "--json", "--ids"}).out, "[1115]\n");
}

TEST(TokenizeCommand, DecodesExactlyWhatItEncoded) {
  const std::string text = "a\n\n  <think>\t\"\\ \U0001f600\u4e2d\r\n";
  for (const char* flag : {"--ids", "--json"}) {
    std::vector<std::string> arguments = {"tokenize", "demo", "--ids"};
    if (std::string(flag) == "--json") arguments.emplace_back(flag);
    const ProgramRun encoded = run_nibble(arguments, text);
    EXPECT_EQ(run_nibble({"tokenize", "demo", "--decode", "-"}, encoded.out).out, text);
  }
}

TEST(TokenizeCommand, NoSpecialTakesAddedTokensAsTextAndLeavesSpecialOnesOut) {
  EXPECT_EQ(run_nibble({"tokenize", "demo", "--ids", "<think>"}).out, "4085\n");
  EXPECT_NE(run_nibble({"tokenize", "demo", "--ids", "--no-special", "<think>"}).out, "4085\n");
  EXPECT_EQ(run_nibble({"tokenize", "demo", "--decode", "0 4085 1", "--no-special"}).out,
            "<think>");
}

TEST(TokenizeCommand, SaysWhatIsWrongAndExitsWithTwo) {
  const std::vector<std::tuple<std::vector<std::string>, std::string, std::string>> cases = {
      {{"--decode", "1 4096"}, "", "'4096' is not a token id, expected 0..4095"},
      {{"--decode", "1x"}, "", "'1x' is not a token id"},
      {{"--decode", "1", "text"}, "", "--decode takes ids"},
      {{"text", "--file", "-"}, "", "both TEXT and --file"},
      {{}, "ab\xff", "the text is not UTF-8 at byte 2 (value 0xff)"},
  };
  for (const auto& [more, input, message] : cases) {
    std::vector<std::string> arguments = {"tokenize", "demo"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    const ProgramRun run = run_nibble(arguments, input);
    EXPECT_EQ(run.exit_code, 2) << message;
    EXPECT_EQ(run.out, "");
    EXPECT_THAT(run.err, HasSubstr("nibble tokenize: "));
    EXPECT_THAT(run.err, HasSubstr(message));
  }
  const ProgramRun missing = run_nibble({"tokenize", "demo", "--file", "/nonexistent/file"});
  EXPECT_EQ(missing.exit_code, 1);
}

}  // namespace
}  // namespace nibble
