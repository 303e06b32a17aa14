#include "nibble/tokenizer/utf8_stream.h"

#include <gtest/gtest.h>

#include "nibble/base/text.h"

namespace nibble {
namespace {

std::string lossy(std::string_view bytes) {
  std::string text;
  Utf8Stream stream;
  stream.push(bytes, text);
  stream.flush(text);
  return text;
}

const std::string kBad = "\ufffd";

// The Unicode Standard, tables 3-8 to 3-11: U+FFFD for each maximal subpart.
TEST(Utf8Stream, ReplacesMaximalSubpartsAsTheUnicodeStandardShows) {
  EXPECT_EQ(lossy("\xc0\xaf\xe0\x80\xbf\xf0\x81\x82\x41"),
            kBad + kBad + kBad + kBad + kBad + kBad + kBad + kBad + "A");
  EXPECT_EQ(lossy("\xed\xa0\x80\xed\xbf\xbf\xed\xaf\x41"),
            kBad + kBad + kBad + kBad + kBad + kBad + kBad + kBad + "A");
  EXPECT_EQ(lossy("\xf4\x91\x92\x93\xff\x41\x80\xbf\x42"),
            kBad + kBad + kBad + kBad + kBad + "A" + kBad + kBad + "B");
  EXPECT_EQ(lossy("\xe1\x80\xe2\xf0\x91\x92\xf1\xbf\x41"), kBad + kBad + kBad + kBad + "A");
}

TEST(Utf8Stream, LeavesValidTextAlone) {
  const std::string text =
      std::string("a\0\u007f\u0080\u07ff\u0800\ud7ff\ue000\uffff", 20) + "\U00010000\U0010ffff";
  EXPECT_EQ(lossy(text), text);
  EXPECT_EQ(lossy(""), "");
}

// Every sequence of four bytes from those where the rules change, cut at every place.
TEST(Utf8Stream, TheDivisionIntoPushesDoesNotMatter) {
  const std::string interesting =
      "A\x80\x8f\x90\x9f\xa0\xbf\xc1\xc2\xdf\xe0\xe1\xed\xee\xf0\xf1\xf4\xf5";
  for (size_t n = 0;
       n < interesting.size() * interesting.size() * interesting.size() * interesting.size(); ++n) {
    std::string bytes;
    for (size_t rest = n, i = 0; i < 4; ++i, rest /= interesting.size()) {
      bytes += interesting[rest % interesting.size()];
    }
    const std::string want = lossy(bytes);
    ASSERT_TRUE(is_valid_utf8(want));
    std::string got;
    Utf8Stream stream;
    for (const char c : bytes) {
      const size_t before = got.size();
      stream.push({&c, 1}, got);
      ASSERT_TRUE(is_valid_utf8(std::string_view(got).substr(before)));
    }
    stream.flush(got);
    ASSERT_EQ(got, want);
  }
}

TEST(Utf8Stream, KeepsAnUnfinishedCharacterBackAndFlushesItOnce) {
  std::string text;
  Utf8Stream stream;
  stream.push("\xf0\x9f\x98", text);
  EXPECT_EQ(text, "");
  stream.flush(text);
  EXPECT_EQ(text, kBad);
  stream.flush(text);
  EXPECT_EQ(text, kBad);
  stream.push("\x80", text);
  EXPECT_EQ(text, kBad + kBad);
}

}  // namespace
}  // namespace nibble
