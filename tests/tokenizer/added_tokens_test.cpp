#include "nibble/tokenizer/added_tokens.h"

#include <gtest/gtest.h>

namespace nibble {
namespace {

AddedTokenMatcher matcher_of(const std::vector<std::string>& contents) {
  std::vector<AddedToken> tokens;
  for (const std::string& content : contents) {
    tokens.push_back({static_cast<int32_t>(tokens.size()), content, false, false});
  }
  return AddedTokenMatcher(tokens);
}

void expect_match(const AddedTokenMatcher& matcher, std::string_view text, size_t start,
                  size_t begin, size_t end, int32_t id) {
  const auto match = matcher.find(text, start);
  EXPECT_EQ(match.begin, begin) << text;
  EXPECT_EQ(match.end, end) << text;
  if (end > begin) {
    EXPECT_EQ(match.id, id) << text;
  }
}

TEST(AddedTokenMatcher, FindsTheLeftmostThenTheLongest) {
  const auto matcher = matcher_of({"<a>", "<a>b", "b", "<\xff>"});
  expect_match(matcher, "x<a>c", 0, 1, 4, 0);
  expect_match(matcher, "x<a>b", 0, 1, 5, 1);
  expect_match(matcher, "b<a>b", 0, 0, 1, 2);
  expect_match(matcher, "b<a>b", 1, 1, 5, 1);
  expect_match(matcher, "<\xff>", 0, 0, 3, 3);
}

// "abcd" fails at its last byte; what matched on the way, "ab", counts.
TEST(AddedTokenMatcher, FallsBackToTheShorterTokenWhenTheLongerBreaksOff) {
  const auto matcher = matcher_of({"ab", "abcd", "bcx"});
  expect_match(matcher, "abcx", 0, 0, 2, 0);
  expect_match(matcher, "abc", 0, 0, 2, 0);
}

TEST(AddedTokenMatcher, WithoutAMatchTheEndIsReturned) {
  expect_match(matcher_of({"<a>"}), "<a<a", 0, 4, 4, 0);
  expect_match(matcher_of({"<a>"}), "", 0, 0, 0, 0);
  expect_match(AddedTokenMatcher(), "abc", 1, 3, 3, 0);
}

}  // namespace
}  // namespace nibble
