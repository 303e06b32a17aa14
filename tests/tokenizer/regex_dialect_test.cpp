#include "nibble/tokenizer/regex_dialect.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace nibble {
namespace {

using ::testing::HasSubstr;

TEST(RegexDialect, WhatBothLibrariesReadAlikeStaysAsItIs) {
  for (const std::string pattern :
       {"", "abc|d", "(?:a)(b)(?=c)(?!d)(?<=e)(?<!f)", "a*b+c?d*?e+?f??g*+h++i?+",
        "a{1}b{2,}c{3,4}", "[^\\r\\n\\]a-z!\"#$%&'()*+,\\-./]+", ".\\.\\\\", "\\x{4e00}",
        "[一-龥]+", "[a-]"}) {
    const auto translated = to_pcre2(pattern);
    ASSERT_TRUE(translated.has_value()) << translated.error().message;
    EXPECT_EQ(*translated, pattern);
  }
}

TEST(RegexDialect, RubysCodePointEscapesBecomeBraced) {
  EXPECT_EQ(to_pcre2("\\u4E00\\x41").value(), "\\x{4E00}\\x{41}");
}

TEST(RegexDialect, WhatWouldMeanSomethingElseIsRefusedByName) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"^a", "the anchor '^' at byte 0"},
      {"a$", "the anchor '$' at byte 1"},
      {"[a[bc]]", "a '[' inside a class"},
      {"[a&&b]", "intersection"},
      {"[]a]", "begins with ']'"},
      {"[abc", "without its ']'"},
      {"[\\s-z]", "begins with a class escape"},
      {"[^\\S]", "\\S' inside a class"},
      {"[\\P{L}]", "\\P' inside a class"},
      {"(?i:a)", "the group '(?i:'"},
      {"(?<name>a)", "the group '(?<n'"},
      {"(*ACCEPT)", "the group '(*AC'"},
      {"(?R)", "the group '(?R)'"},
      {"a{,3}", "'{' that is not"},
      {"a{2", "'{' that is not"},
      {"a{x}", "'{' that is not"},
      {"a{2}?", "repeat of a repeat"},
      {"a{2}+", "repeat of a repeat"},
      {"a**", "repeat of a repeat"},
      {"a}", "a bare '}'"},
      {"\\h", "the escape '\\h'"},
      {"\\w+", "the escape '\\w'"},
      {"\\d", "the escape '\\d'"},
      {"\\b", "the escape '\\b'"},
      {"(a)\\1", "the escape '\\1'"},
      {"\\K", "the escape '\\K'"},
      {"\\", "a backslash at the end"},
      {"\\p{Han}", "the property 'Han'"},
      {"\\p{^L}", "the property '^L'"},
      {"\\pL", "\\p without {name}"},
      {"\\p{L", "\\p without {name}"},
      {"\\x9", "\\x without its digits"},
      {"\\xe9", "\\x above 7F"},
      {"\\u12", "\\u without its digits"},
      {"\\x{}", "\\x{ without"},
      {"\\x{1234567}", "\\x{ without"},
  };
  for (const auto& [pattern, message] : cases) {
    const auto translated = to_pcre2(pattern);
    ASSERT_FALSE(translated.has_value()) << pattern;
    EXPECT_EQ(translated.error().code, ErrorCode::kUnsupported);
    EXPECT_THAT(translated.error().message, HasSubstr(message));
  }
}

}  // namespace
}  // namespace nibble
