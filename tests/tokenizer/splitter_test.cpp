#include "nibble/tokenizer/splitter.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

namespace nibble {
namespace {

using ::testing::HasSubstr;

// All pieces of `text`, matches and gaps alike; {"!"} when the pattern gave up.
std::vector<std::string> split(const Splitter& splitter, std::string_view text) {
  MatchBuffer buffer;
  std::vector<std::string> pieces;
  size_t position = 0;
  size_t last_end = std::string_view::npos;
  size_t begin = 0;
  size_t end = 0;
  for (;;) {
    const auto found = splitter.find(text, position, last_end, buffer, &begin, &end);
    if (found == Splitter::Found::kFailed) return {"!"};
    if (found == Splitter::Found::kNone) break;
    if (begin > position) pieces.emplace_back(text.substr(position, begin - position));
    if (end > begin) pieces.emplace_back(text.substr(begin, end - begin));
    position = end;
    last_end = end;
  }
  if (position < text.size()) pieces.emplace_back(text.substr(position));
  return pieces;
}

std::vector<std::string> split(std::string_view pattern, std::string_view text) {
  const auto splitter = Splitter::compile(pattern);
  EXPECT_TRUE(splitter.has_value()) << splitter.error().message;
  return split(*splitter, text);
}

using Pieces = std::vector<std::string>;

TEST(Splitter, MatchesAndTheTextBetweenThemArePieces) {
  EXPECT_EQ(split("\\p{N}{1,3}", "ab12345c"), (Pieces{"ab", "123", "45", "c"}));
  EXPECT_EQ(split("x", "abc"), (Pieces{"abc"}));
}

// Hugging Face tokenizers 0.23.3, Split(Regex(pattern), "isolated"), on "aabcb b".
TEST(Splitter, EmptyMatchesCutWhereHuggingFaceCuts) {
  EXPECT_EQ(split("(?=b)", "aabcb b"), (Pieces{"aa", "bc", "b ", "b"}));
  EXPECT_EQ(split("a*", "aabcb b"), (Pieces{"aa", "b", "c", "b", " ", "b"}));
  EXPECT_EQ(split("(?<=a)", "aabcb b"), (Pieces{"a", "a", "bcb b"}));
  // An empty match in the middle of a character would be a bug.
  EXPECT_EQ(split("x*", "é中😀"), (Pieces{"é", "中", "😀"}));
}

// White_Space has 25 characters; U+180E and U+200B are not among them.
TEST(Splitter, SpaceIsUnicodesWhiteSpace) {
  const Pieces spaces = {"\t",     "\n",     "\v",     "\f",     "\r",     " ",
                         "\u0085", "\u00a0", "\u1680", "\u2000", "\u200a", "\u2028",
                         "\u2029", "\u202f", "\u205f", "\u3000"};
  for (const std::string& space : spaces) {
    EXPECT_EQ(split("\\s", "a" + space), (Pieces{"a", space}));
    EXPECT_EQ(split("[\\s]", "a" + space), (Pieces{"a", space}));
    EXPECT_EQ(split("\\S+", space + "a"), (Pieces{space, "a"}));
  }
  EXPECT_EQ(split("\\s", "a\u180e\u200b\ufeff\x1f"), (Pieces{"a\u180e\u200b\ufeff\x1f"}));
}

// Letter, mark, number, punctuation and symbol that Unicode 15 and 16 brought.
TEST(Splitter, CategoriesAreThoseOfUnicode16) {
  EXPECT_EQ(split("\\p{L}+", "1\U00031350\u1c891"), (Pieces{"1", "\U00031350\u1c89", "1"}));
  EXPECT_EQ(split("\\p{M}", "a\u0897"), (Pieces{"a", "\u0897"}));
  EXPECT_EQ(split("[\\p{N}]", "a\U0001ccf0"), (Pieces{"a", "\U0001ccf0"}));
  EXPECT_EQ(split("\\p{P}", "a\u1b4e"), (Pieces{"a", "\u1b4e"}));
  EXPECT_EQ(split("\\P{S}+", "a\U0001fae8"), (Pieces{"a", "\U0001fae8"}));
}

TEST(Splitter, APatternThatIsNoRegularExpressionIsCorrupt) {
  for (const std::string pattern : {"(a", "a)", "[z-a]", "*a", "(?<=a+)b", "a{70000}"}) {
    const auto splitter = Splitter::compile(pattern);
    ASSERT_FALSE(splitter.has_value()) << pattern;
    EXPECT_EQ(splitter.error().code, ErrorCode::kCorrupt);
    EXPECT_THAT(splitter.error().message, HasSubstr("of the regular expression"));
  }
}

TEST(Splitter, APatternTooLargeToCompileIsRefused) {
  EXPECT_EQ(Splitter::compile(std::string(70'000, 'a')).error().code, ErrorCode::kUnsupported);
  EXPECT_EQ(Splitter::compile("(?:(?:a{1000}){1000}){1000}").error().code, ErrorCode::kUnsupported);
}

TEST(Splitter, CatastrophicBacktrackingEndsInAnError) {
  const auto splitter = Splitter::compile("(?:a+)+[bc]");
  ASSERT_TRUE(splitter.has_value());
  EXPECT_EQ(split(*splitter, std::string(64, 'a')), (Pieces{"!"}));
  EXPECT_EQ(splitter->failure().error().code, ErrorCode::kUnsupported);
  EXPECT_THAT(splitter->failure().error().message, HasSubstr("(?:a+)+[bc]"));
}

// Each round of the group is remembered, more than the stack of compiled code holds: the
// interpreter takes over, and gives up at its limit instead of crashing.
TEST(Splitter, DeepBacktrackingLeavesTheStackAlone) {
  const std::string some(20'000, 'a');
  EXPECT_EQ(split("(?:a|b)*", some), (Pieces{some}));
  EXPECT_EQ(split("(?:a|b)*", std::string(8'000'000, 'a')), (Pieces{"!"}));
}

}  // namespace
}  // namespace nibble
