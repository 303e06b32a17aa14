#include "nibble/base/text.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

namespace nibble {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

TEST(FormatBytes, UsesDecimalUnitsWithOneDigit) {
  EXPECT_EQ(format_bytes(0), "0 B");
  EXPECT_EQ(format_bytes(999), "999 B");
  EXPECT_EQ(format_bytes(1000), "1.0 KB");
  EXPECT_EQ(format_bytes(413'306'995'616), "413.3 GB");  // the v2 checkpoint
  EXPECT_EQ(format_bytes(1'500'000'000'000), "1.5 TB");
}

TEST(FormatBytes, NeverSaysAThousandOfAUnit) {
  EXPECT_EQ(format_bytes(999'949), "999.9 KB");
  EXPECT_EQ(format_bytes(999'950), "1.0 MB");
  EXPECT_EQ(format_bytes(999'999'999), "1.0 GB");
}

TEST(FormatBytes, StopsAtTheLargestUnit) {
  EXPECT_EQ(format_bytes(std::numeric_limits<uint64_t>::max()), "18446.7 PB");
}

TEST(FormatDuration, ChangesUnitsWithSize) {
  EXPECT_EQ(format_duration(0), "0.0 s");
  EXPECT_EQ(format_duration(8.24), "8.2 s");
  EXPECT_EQ(format_duration(185), "3 min 05 s");
  EXPECT_EQ(format_duration(7645), "2 h 07 min");
}

TEST(FormatDuration, RoundsUpIntoTheNextUnit) {
  EXPECT_EQ(format_duration(59.94), "59.9 s");
  EXPECT_EQ(format_duration(59.96), "1 min 00 s");
  EXPECT_EQ(format_duration(3599.6), "1 h 00 min");
}

TEST(FormatDuration, AnswersAQuestionMarkForWhatIsNoDuration) {
  EXPECT_EQ(format_duration(-1), "?");
  EXPECT_EQ(format_duration(std::numeric_limits<double>::quiet_NaN()), "?");
  EXPECT_EQ(format_duration(std::numeric_limits<double>::infinity()), "?");
  EXPECT_EQ(format_duration(1e300), "?");
}

TEST(FormatCount, SeparatesThousands) {
  EXPECT_EQ(format_count(0), "0");
  EXPECT_EQ(format_count(999), "999");
  EXPECT_EQ(format_count(1000), "1,000");
  EXPECT_EQ(format_count(12345), "12,345");
  EXPECT_EQ(format_count(684'531'386'000), "684,531,386,000");
}

TEST(EditDistance, CountsInsertDeleteReplaceAndNeighbourSwap) {
  EXPECT_EQ(edit_distance("", ""), 0);
  EXPECT_EQ(edit_distance("", "abc"), 3);
  EXPECT_EQ(edit_distance("abc", ""), 3);
  EXPECT_EQ(edit_distance("kitten", "sitting"), 3);
  EXPECT_EQ(edit_distance("abcd", "abdc"), 1);
  // Optimal string alignment: a swapped pair is not edited again, so not 2.
  EXPECT_EQ(edit_distance("ca", "abc"), 3);
}

TEST(EditDistance, IsSymmetricAndBoundedByLength) {
  const std::vector<std::string> words = {"tp_size", "tp-sise", "ep_size", "model", "", "a", "aab"};
  for (const std::string& a : words) {
    for (const std::string& b : words) {
      SCOPED_TRACE(a + " " + b);
      EXPECT_EQ(edit_distance(a, b), edit_distance(b, a));
      EXPECT_LE(edit_distance(a, b), static_cast<int>(std::max(a.size(), b.size())));
      EXPECT_EQ(edit_distance(a, b) == 0, a == b);
    }
  }
}

// The cases of the serving contract for unknown keys and options.
TEST(DidYouMean, IgnoresCaseUnderscoreAndDash) {
  const std::vector<std::string> keys = {"use_cuda_graph", "enable_attention_dp", "max_batch_size"};
  EXPECT_EQ(did_you_mean("use_cudagraph", keys), "; did you mean 'use_cuda_graph'?");
  EXPECT_EQ(did_you_mean("Use-CUDA-Graph", keys), "; did you mean 'use_cuda_graph'?");
  const std::vector<std::string> options = {"--host", "--port", "--tp_size", "--max_batch_size"};
  EXPECT_EQ(did_you_mean("--tp-sise", options), "; did you mean '--tp_size'?");
}

TEST(DidYouMean, SaysNothingWithoutANearCandidate) {
  EXPECT_EQ(did_you_mean("zebra", std::vector<std::string>{"host", "port"}), "");
  EXPECT_EQ(did_you_mean("zebra", {}), "");
}

TEST(DidYouMean, JoinsTwoAndThreeCandidates) {
  EXPECT_EQ(did_you_mean("tpp", std::vector<std::string>{"tp", "top"}),
            "; did you mean 'tp' or 'top'?");
  EXPECT_EQ(did_you_mean("ax", std::vector<std::string>{"ay", "az", "aw"}),
            "; did you mean 'ay', 'az' or 'aw'?");
}

TEST(Suggestions, KeepsAtMostThreeBestFirstTiesInOrder) {
  const std::vector<std::string> candidates = {"abcdeX", "abcdYZ", "abcdef", "abcdXf", "aXcdef"};
  EXPECT_THAT(suggestions("abcdef", candidates), ElementsAre("abcdef", "abcdeX", "abcdXf"));
}

// length / 3: 2 for six letters, but never below 1.
TEST(Suggestions, AllowsAThirdOfTheLengthAndAtLeastOne) {
  EXPECT_THAT(suggestions("abcdef", std::vector<std::string>{"abcdXY"}), ElementsAre("abcdXY"));
  EXPECT_THAT(suggestions("abcdef", std::vector<std::string>{"abcXYZ"}), IsEmpty());
  EXPECT_THAT(suggestions("ab", std::vector<std::string>{"aX"}), ElementsAre("aX"));
  EXPECT_THAT(suggestions("ab", std::vector<std::string>{"XY"}), IsEmpty());
}

TEST(IsValidUtf8, AcceptsEveryLength) {
  EXPECT_TRUE(is_valid_utf8(""));
  EXPECT_TRUE(is_valid_utf8(std::string_view("a\0b", 3)));
  EXPECT_TRUE(is_valid_utf8("\xc2\x80 \xdf\xbf"));
  EXPECT_TRUE(is_valid_utf8("\xe0\xa0\x80 \xed\x9f\xbf \xee\x80\x80 \xef\xbf\xbf"));
  EXPECT_TRUE(is_valid_utf8("\xf0\x90\x80\x80 \xf4\x8f\xbf\xbf"));
}

TEST(IsValidUtf8, NamesTheFirstBadByte) {
  struct Case {
    std::string_view text;
    size_t bad_offset;
  };
  const std::vector<Case> cases = {
      {"ab\x80", 2},            // a continuation without a start
      {"\xc0\xaf", 0},          // overlong
      {"\xc1\xbf", 0},          // overlong
      {"a\xe0\x9f\xbf", 1},     // overlong
      {"\xf0\x8f\xbf\xbf", 0},  // overlong
      {"\xed\xa0\x80", 0},      // surrogate D800
      {"\xf4\x90\x80\x80", 0},  // above 10FFFF
      {"\xf5\x80\x80\x80", 0},  // no such start
      {"\xff", 0},
      {"ok \xe2\x82", 3},       // cut short at the end
      {"ok \xe2\x82 more", 3},  // cut short in the middle
      {"\xf0\x9f\x98", 0},      // three bytes of four
      {"\xc3(", 0},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(::testing::PrintToString(c.text));
    size_t bad_offset = 99;
    EXPECT_FALSE(is_valid_utf8(c.text, &bad_offset));
    EXPECT_EQ(bad_offset, c.bad_offset);
    EXPECT_FALSE(is_valid_utf8(c.text));
  }
}

// Counted by hand from the definition: 128 + 1920 + 61440 + 1048576 sequences of 1 to 4 bytes.
TEST(IsValidUtf8, AcceptsExactlyTheScalarValuesOfTwoBytes) {
  int accepted = 0;
  for (int first = 0; first < 256; ++first) {
    for (int second = 0; second < 256; ++second) {
      const std::string text = {static_cast<char>(first), static_cast<char>(second)};
      if (is_valid_utf8(text)) ++accepted;
    }
  }
  EXPECT_EQ(accepted, 128 * 128 + 1920);  // two ASCII characters, or one of U+0080..U+07FF
}

TEST(IsValidUtf8, AcceptsExactlyTheScalarValuesOfThreeBytes) {
  int accepted = 0;
  for (int first = 0xe0; first < 0xf0; ++first) {
    for (int second = 0; second < 256; ++second) {
      for (int third = 0; third < 256; ++third) {
        const std::string text = {static_cast<char>(first), static_cast<char>(second),
                                  static_cast<char>(third)};
        if (is_valid_utf8(text)) ++accepted;
      }
    }
  }
  EXPECT_EQ(accepted, 0x10000 - 0x800 - 2048);  // U+0800..U+FFFF without the surrogates
}

}  // namespace
}  // namespace nibble
