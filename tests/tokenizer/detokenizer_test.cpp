#include "nibble/tokenizer/detokenizer.h"

#include <gtest/gtest.h>

#include <random>

#include "nibble/base/text.h"
#include "tests/tokenizer/tokenizer_files.h"

namespace nibble {
namespace {

using testing::demo_tokenizer;
using testing::r1_tokenizer;

// R1 has no token for U+1F600: one stands for its first three bytes, one for the last.
TEST(Detokenizer, HoldsACharacterBackUntilItIsWhole) {
  const auto ids = r1_tokenizer().encode("a\U0001f600").value();
  ASSERT_EQ(ids.size(), 3u);
  Detokenizer detokenizer(r1_tokenizer());
  EXPECT_EQ(detokenizer.push(ids[0]), "a");
  EXPECT_EQ(detokenizer.push(ids[1]), "");
  EXPECT_EQ(detokenizer.push(ids[2]), "\U0001f600");
  EXPECT_EQ(detokenizer.flush(), "");
}

TEST(Detokenizer, FlushesADanglingPartAsOneReplacementCharacter) {
  const auto ids = r1_tokenizer().encode("\U0001f600").value();
  Detokenizer detokenizer(r1_tokenizer());
  EXPECT_EQ(detokenizer.push(ids[0]), "");
  EXPECT_EQ(detokenizer.flush(), "\ufffd");
  EXPECT_EQ(detokenizer.flush(), "");
}

TEST(Detokenizer, APartThatBreaksOffComesWithTheNextText) {
  const auto ids = r1_tokenizer().encode("\U0001f600").value();
  const auto letter = r1_tokenizer().encode("a").value();
  Detokenizer detokenizer(r1_tokenizer());
  EXPECT_EQ(detokenizer.push(ids[0]), "");
  EXPECT_EQ(detokenizer.push(letter[0]), "\ufffda");
}

TEST(Detokenizer, LeavesOutSpecialTokensEvenInsideACharacter) {
  const auto ids = r1_tokenizer().encode("\U0001f600").value();
  Detokenizer detokenizer(r1_tokenizer(), true);
  EXPECT_EQ(detokenizer.push(0), "");
  EXPECT_EQ(detokenizer.push(ids[0]), "");
  EXPECT_EQ(detokenizer.push(1), "");
  EXPECT_EQ(detokenizer.push(ids[1]), "\U0001f600");
  EXPECT_EQ(detokenizer.push(r1_tokenizer().token_id("<think>").value()), "<think>");
}

void expect_pieces_make_the_text(const Tokenizer& tokenizer, const std::vector<int32_t>& ids,
                                 bool skip_special_tokens) {
  Detokenizer detokenizer(tokenizer, skip_special_tokens);
  std::string text;
  for (size_t i = 0; i < ids.size(); ++i) {
    const std::string piece = detokenizer.push(ids[i]);
    ASSERT_TRUE(is_valid_utf8(piece));
    text += piece;
    // Stopping here and flushing gives what decoding the ids so far does.
    Detokenizer stopped = detokenizer;
    const std::string rest = stopped.flush();
    ASSERT_TRUE(is_valid_utf8(rest));
    ASSERT_EQ(text + rest, tokenizer.decode(std::span(ids).first(i + 1), skip_special_tokens));
  }
}

TEST(Detokenizer, PiecesOfTheGoldenTextsMakeTheTextAtEveryStop) {
  for (const auto& golden : testing::r1_golden_texts()) {
    expect_pieces_make_the_text(r1_tokenizer(), golden.ids, false);
    expect_pieces_make_the_text(r1_tokenizer(), golden.ids, true);
  }
}

// Random ids are mostly broken UTF-8, as a model may generate it.
TEST(Detokenizer, PiecesOfRandomIdsMakeTheTextAtEveryStop) {
  std::mt19937 rng(5);
  for (int round = 0; round < 200; ++round) {
    std::vector<int32_t> ids(rng() % 60);
    for (int32_t& id : ids) {
      // The lower ids hold the single bytes; a few are outside the vocabulary.
      const int limit = rng() % 2 == 0 ? 300 : 4200;
      id = static_cast<int32_t>(rng()) & 0x7fffffff;
      id %= limit;
    }
    expect_pieces_make_the_text(demo_tokenizer(), ids, round % 2 == 0);
  }
}

}  // namespace
}  // namespace nibble
