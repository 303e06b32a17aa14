// Hugging Face's own answers: DeepSeek-R1's tokenizer on 235 texts, the demo's on its reference.
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>

#include "tests/tokenizer/tokenizer_files.h"

namespace nibble {
namespace {

using testing::demo_tokenizer;
using testing::GoldenText;
using testing::r1_tokenizer;

TEST(GoldenTokenizer, EncodesEveryTextOfTheR1VectorsAsHuggingFace) {
  const auto texts = testing::r1_golden_texts();
  ASSERT_EQ(texts.size(), 235u);
  for (const GoldenText& golden : texts) {
    const auto ids = r1_tokenizer().encode(golden.text);
    ASSERT_TRUE(ids.has_value()) << ids.error().message;
    EXPECT_EQ(*ids, golden.ids) << golden.text;
  }
}

TEST(GoldenTokenizer, DecodesEveryTextOfTheR1VectorsAsHuggingFace) {
  for (const GoldenText& golden : testing::r1_golden_texts()) {
    EXPECT_EQ(r1_tokenizer().decode(golden.ids, false), golden.decoded);
  }
}

// ids of the reference begin with BOS (0), which add_bos_token of the demo's files asks for. The
// last entry's are the first 900 of a longer text.
TEST(GoldenTokenizer, EncodesTheDemoReferenceWithItsBos) {
  std::ifstream file(NIBBLE_SOURCE_DIR "/tests/golden/demo/reference.json");
  const auto reference = nlohmann::json::parse(file);
  ASSERT_EQ(reference.size(), 8u);
  ASSERT_TRUE(demo_tokenizer().add_bos_token());
  for (const auto& entry : reference) {
    const auto text = entry.at("text").get<std::string>();
    const auto want = entry.at("ids").get<std::vector<int32_t>>();
    auto ids = demo_tokenizer().encode(text, {.add_bos = true});
    ASSERT_TRUE(ids.has_value()) << ids.error().message;
    EXPECT_EQ(demo_tokenizer().decode(*ids, false), "<｜begin▁of▁sentence｜>" + text);
    if (want.size() == 900) ids->resize(std::min<size_t>(ids->size(), 900));
    EXPECT_EQ(*ids, want) << text;
  }
}

TEST(GoldenTokenizer, DecodesTheDemoReferencesGreedyIds) {
  std::ifstream file(NIBBLE_SOURCE_DIR "/tests/golden/demo/reference.json");
  for (const auto& entry : nlohmann::json::parse(file)) {
    EXPECT_EQ(demo_tokenizer().decode(entry.at("greedy").get<std::vector<int32_t>>(), false),
              entry.at("greedy_text").get<std::string>());
  }
}

// The table of DeepSeek's own special ids.
TEST(GoldenTokenizer, R1HasDeepSeeksTokensAtTheirIds) {
  const Tokenizer& r1 = r1_tokenizer();
  EXPECT_EQ(r1.vocab_size(), 128815);
  EXPECT_EQ(r1.bos_id(), 0);
  EXPECT_EQ(r1.eos_id(), 1);
  EXPECT_EQ(r1.token_id("<｜▁pad▁｜>"), 2);
  EXPECT_EQ(r1.token_id("<think>"), 128798);
  EXPECT_EQ(r1.token_id("</think>"), 128799);
  EXPECT_EQ(r1.token_id("<｜User｜>"), 128803);
  EXPECT_EQ(r1.token_id("<｜Assistant｜>"), 128804);
  EXPECT_EQ(r1.token_id("<|EOT|>"), 128805);
  EXPECT_EQ(r1.token_id("<｜tool▁sep｜>"), 128814);
  EXPECT_TRUE(r1.is_special(0));
  EXPECT_FALSE(r1.is_special(128798));
  EXPECT_EQ(r1.added_tokens().size(), 818u);
}

}  // namespace
}  // namespace nibble
