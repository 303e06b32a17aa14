// What a reply's tokens and text become, every way of cutting them into steps. Token ids are the
// demo's; the cases are those of a chat template that opens <think> itself, and of one that
// doesn't.
#include "nibble/api/thinking_split.h"

#include <gtest/gtest.h>

#include <vector>

#include "nibble/tokenizer/tokenizer.h"

namespace nibble {
namespace {

const Tokenizer& demo_tokenizer() {
  static const Tokenizer tokenizer =
      Tokenizer::load(std::string(NIBBLE_SOURCE_DIR) + "/models/demo").value();
  return tokenizer;
}

std::vector<int32_t> ids_of(std::string_view text) { return *demo_tokenizer().encode(text); }

struct Parts {
  std::string reasoning;
  std::string content;
  bool operator==(const Parts&) const = default;
};

// `given`: how many bytes of the text the engine gives out in the end.
Parts split(std::string_view prompt, const std::vector<int32_t>& ids, size_t step,
            size_t given = std::string::npos) {
  const auto prompt_ids = ids_of(prompt);
  ThinkingSplit splitter(demo_tokenizer(), prompt_ids, true);
  Detokenizer detokenizer(demo_tokenizer(), true);
  Parts parts;
  size_t bytes = 0;
  for (size_t i = 0; i < ids.size(); i += step) {
    const size_t size = std::min(step, ids.size() - i);
    std::string text;
    for (size_t j = i; j < i + size; ++j) text += detokenizer.push(ids[j]);
    text.resize(std::min(text.size(), given - std::min(given, bytes)));
    bytes += text.size();
    splitter.push({ids.data() + i, size}, text, &parts.reasoning, &parts.content);
  }
  return parts;
}

TEST(ThinkingSplit, PartsAreTheSameHoweverTheTokensCome) {
  const auto ids = ids_of("<think>\nfirst\n\nsecond\n</think>\n\nThe answer\nis 4.\n");
  const Parts expected{"first\n\nsecond", "The answer\nis 4.\n"};
  for (size_t step = 1; step <= ids.size(); ++step) EXPECT_EQ(split("Hi", ids, step), expected);
}

TEST(ThinkingSplit, AReplyThatThePromptLetThinkBeginsThinking) {
  EXPECT_EQ(split("Hi<think>\n", ids_of("so\n</think>\n\nyes"), 1), (Parts{"so", "yes"}));
  EXPECT_EQ(split("Hi<think>\n\n</think>\n\n", ids_of("yes"), 1), (Parts{"", "yes"}));
  EXPECT_EQ(split("Hi", ids_of("yes\nno"), 1), (Parts{"", "yes\nno"}));
}

TEST(ThinkingSplit, ThinkingThatIsCutOffIsThinking) {
  EXPECT_EQ(split("Hi", ids_of("<think>\nhm\n"), 1), (Parts{"hm", ""}));
}

TEST(ThinkingSplit, ASpelledTagIsText) {
  EncodeOptions plain;
  plain.parse_added_tokens = false;
  const auto spelled = *demo_tokenizer().encode("a</think>b", plain);
  EXPECT_EQ(split("Hi<think>\n", spelled, 1), (Parts{"a</think>b", ""}));
}

TEST(ThinkingSplit, TextThatAStopStringHeldBackOrCutOffKeepsItsPart) {
  const auto ids = ids_of("<think>\nab\n</think>\n\ncd STOP");
  const std::string text = "<think>\nab\n</think>\n\ncd STOP";
  for (size_t given = 0; given <= text.size(); ++given) {
    const std::string shown = text.substr(0, given);
    const size_t end = std::string("<think>\nab\n</think>\n\n").size();
    Parts expected{given >= 10  ? "ab"
                   : given == 9 ? "a"
                                : "",
                   given > end ? text.substr(end, given - end) : ""};
    EXPECT_EQ(split("Hi", ids, ids.size(), given), expected) << shown;
  }
}

}  // namespace
}  // namespace nibble
