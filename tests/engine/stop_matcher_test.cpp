#include "nibble/engine/stop_matcher.h"

#include <gtest/gtest.h>

#include <random>

namespace nibble {
namespace {

TEST(StopMatcher, HoldsBackWhatCouldBeginAStopString) {
  StopMatcher matcher({"END"});
  EXPECT_EQ(matcher.push("a E").text, "a ");
  EXPECT_EQ(matcher.held_bytes(), 1U);
  EXPECT_EQ(matcher.push("N").text, "");
  EXPECT_EQ(matcher.held_bytes(), 2U);
  EXPECT_EQ(matcher.push("X").text, "ENX");
  EXPECT_EQ(matcher.push("EN").text, "");
  EXPECT_EQ(matcher.flush(), "EN");
}

TEST(StopMatcher, AMatchAcrossPiecesEndsTheTextBeforeIt) {
  for (const bool include : {false, true}) {
    StopMatcher matcher({"zz", "END"}, include);
    EXPECT_EQ(matcher.push("ab E").text, "ab ");
    const auto output = matcher.push("ND more");
    EXPECT_EQ(output.match, 1U);
    EXPECT_EQ(output.text, include ? "END" : "");
  }
}

TEST(StopMatcher, TheEarliestMatchWinsAndOfTwoTheLonger) {
  StopMatcher matcher({"cd", "b", "bcd", "xyz"});
  const auto output = matcher.push("abcd");
  EXPECT_EQ(output.match, 2U);
  EXPECT_EQ(output.text, "a");
}

TEST(StopMatcher, TheHeldPartCanStillBeginALaterMatch) {
  StopMatcher matcher({"aab"});
  EXPECT_EQ(matcher.push("aa").text, "");
  EXPECT_EQ(matcher.push("a").text, "a");
  EXPECT_TRUE(matcher.push("b").match.has_value());
}

TEST(StopMatcher, TextBeforeMinTokensTakesNoPart) {
  StopMatcher matcher({"END"});
  EXPECT_EQ(matcher.push("END E", false).text, "END E");
  EXPECT_FALSE(matcher.push("ND", true).match.has_value());
  EXPECT_TRUE(matcher.push(" END", true).match.has_value());
}

TEST(StopMatcher, WithoutStopStringsNothingIsHeld) {
  StopMatcher matcher({});
  EXPECT_EQ(matcher.push("anything").text, "anything");
  EXPECT_EQ(matcher.flush(), "");
}

struct NaiveStop {
  std::string text;
  bool matched = false;
};

// The definition: after each piece look at all text so far.
NaiveStop naive_stop(const std::vector<std::string>& stop, const std::vector<std::string>& pieces,
                     bool include) {
  std::string text;
  for (const std::string& piece : pieces) {
    text += piece;
    for (size_t begin = 0; begin < text.size(); ++begin) {
      size_t longest = 0;
      for (const std::string& s : stop) {
        if (text.compare(begin, s.size(), s) == 0) longest = std::max(longest, s.size());
      }
      if (longest > 0) return {text.substr(0, begin + (include ? longest : 0)), true};
    }
  }
  return {text, false};
}

TEST(StopMatcher, GivesWhatANaiveSearchGivesAtEverySplit) {
  std::mt19937 rng(17);
  int matches = 0;
  for (int round = 0; round < 4000; ++round) {
    const auto random_text = [&](size_t length) {
      std::string text;
      for (size_t i = 0; i < length; ++i) text += static_cast<char>('a' + rng() % 3);
      return text;
    };
    std::vector<std::string> stop;
    for (size_t i = rng() % 4 + 1; i > 0; --i) stop.push_back(random_text(rng() % 5 + 2));
    const bool include = rng() % 2 == 0;
    const std::string whole = random_text(9);
    for (unsigned split = 0; split < 1U << 8; split += static_cast<unsigned>(1 + rng() % 7)) {
      std::vector<std::string> pieces(1);
      for (size_t i = 0; i < whole.size(); ++i) {
        pieces.back() += whole[i];
        if (split >> i & 1) pieces.emplace_back();
      }
      StopMatcher matcher(stop, include);
      std::string text;
      bool matched = false;
      for (const std::string& piece : pieces) {
        const auto output = matcher.push(piece);
        text += output.text;
        matched = output.match.has_value();
        if (matched) break;
      }
      if (!matched) text += matcher.flush();
      const NaiveStop naive = naive_stop(stop, pieces, include);
      ASSERT_EQ(text, naive.text) << whole << ' ' << split;
      ASSERT_EQ(matched, naive.matched);
      matches += matched ? 1 : 0;
    }
  }
  EXPECT_GT(matches, 1000);
}

// One stop string: where pieces end makes no difference.
TEST(StopMatcher, TheSplitOfTheTextDoesNotMatter) {
  const std::string whole = "ababac ab\xe2\x82\xac abac";
  for (const std::string& stop :
       {std::string("abac"), std::string("\xe2\x82\xac"), std::string("nothing")}) {
    const size_t at = whole.find(stop);
    for (unsigned split = 0; split < 1U << 17; split += 37) {
      StopMatcher matcher({stop});
      std::string text;
      std::string piece;
      bool matched = false;
      for (size_t i = 0; i < whole.size() && !matched; ++i) {
        piece += whole[i];
        if ((split >> i & 1) == 0 && i + 1 < whole.size()) continue;
        const auto output = matcher.push(piece);
        text += output.text;
        matched = output.match.has_value();
        piece.clear();
      }
      if (!matched) text += matcher.flush();
      ASSERT_EQ(text, whole.substr(0, at));
    }
  }
}

}  // namespace
}  // namespace nibble
