#include "nibble/tokenizer/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <random>
#include <thread>

#include "nibble/tokenizer/tokenizer_config.h"
#include "tests/tokenizer/tokenizer_files.h"

namespace nibble {
namespace {

using testing::demo_tokenizer;
using ::testing::HasSubstr;
using testing::r1_tokenizer;
using Ids = std::vector<int32_t>;

// The small tokenizer with added tokens in both of Hugging Face's passes: 260 "<t>" is normalized,
// 261 "<|a|>" and 262 "<|a|>b" are special, 263 "><" is neither.
Tokenizer tokenizer_with_added() {
  auto document = nlohmann::json::parse(testing::small_tokenizer_json());
  const auto add = [&](int id, const std::string& content, bool normalized, bool special) {
    document["added_tokens"].push_back(
        {{"id", id}, {"content", content}, {"normalized", normalized}, {"special", special}});
  };
  add(260, "<t>", true, false);
  add(261, "<|a|>", false, true);
  add(262, "<|a|>b", false, true);
  add(263, "><", false, false);
  auto tokenizer = Tokenizer::parse(document.dump(), "t.json");
  EXPECT_TRUE(tokenizer.has_value()) << tokenizer.error().message;
  return *std::move(tokenizer);
}

// Ids from Hugging Face tokenizers 0.23.3 on the same file.
TEST(Tokenizer, FindsAddedTokensInTwoPassesAsHuggingFace) {
  const Tokenizer tokenizer = tokenizer_with_added();
  EXPECT_EQ(tokenizer.encode("hello").value(), (Ids{259}));
  EXPECT_EQ(tokenizer.encode("a<|a|>b<|a|>c").value(), (Ids{97, 262, 261, 99}));
  EXPECT_EQ(tokenizer.encode("<t><t>").value(), (Ids{60, 116, 263, 116, 62}));
  EXPECT_EQ(tokenizer.encode("<t> <t>").value(), (Ids{260, 32, 260}));
  EXPECT_EQ(tokenizer.encode("  <t>").value(), (Ids{32, 32, 260}));
  EXPECT_EQ(tokenizer.encode("<|a|").value(), (Ids{60, 124, 97, 124}));
  EXPECT_EQ(tokenizer.encode("<|a|><|a|>b<t>").value(), (Ids{261, 262, 260}));
  EXPECT_EQ(tokenizer.encode("hellohello 12345").value(), (Ids{259, 259, 32, 49, 50, 51, 52, 53}));
}

TEST(Tokenizer, WithoutParsingAddedTokensTheirTextIsPlainText) {
  const Tokenizer tokenizer = tokenizer_with_added();
  EXPECT_EQ(tokenizer.encode("<t>", {.parse_added_tokens = false}).value(), (Ids{60, 116, 62}));
  const auto ids = r1_tokenizer().encode("<｜User｜>a<think>", {.parse_added_tokens = false});
  ASSERT_TRUE(ids.has_value());
  EXPECT_GT(ids->size(), 3u);
  for (const int32_t id : *ids) {
    EXPECT_LT(id, 128000);
  }
}

// From Hugging Face: U+180E is no space, U+1FAE8 (Unicode 15) is a symbol.
TEST(Tokenizer, SplitsRareCharactersAsHuggingFace) {
  EXPECT_EQ(r1_tokenizer().encode("a\u180eb \u180e c").value(),
            (Ids{67, 115522, 239, 68, 223, 115522, 239, 274}));
  EXPECT_EQ(r1_tokenizer().encode("a\u0085 b").value(), (Ids{67, 129, 230, 291}));
  EXPECT_EQ(r1_tokenizer().encode(" \U0001fae8\U0001fae8!").value(),
            (Ids{7351, 107, 104, 3574, 107, 104, 3}));
}

// What one look-ahead sees ends with its piece: the space before a digit is followed by nothing.
TEST(Tokenizer, ASplitSeesNothingBeyondThePieceOfTheSplitBefore) {
  auto document = nlohmann::json::parse(testing::small_tokenizer_json());
  document["pre_tokenizer"]["pretokenizers"][1]["pattern"]["Regex"] = "hello(?!1)|.";
  const auto tokenizer = Tokenizer::parse(document.dump(), "t.json");
  ASSERT_TRUE(tokenizer.has_value());
  EXPECT_EQ(tokenizer->encode("hello1").value(), (Ids{259, '1'}));
}

TEST(Tokenizer, TextThatIsNotUtf8IsRefusedAtItsFirstBadByte) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"\xff", "byte 0 (value 0xff)"},
      {"abc\xc3", "byte 3 (value 0xc3)"},
      {"<think>\xed\xa0\x80", "byte 7 (value 0xed)"},
      {"\u4e2d\xf5", "byte 3 (value 0xf5)"},
  };
  for (const auto& [text, message] : cases) {
    const auto ids = r1_tokenizer().encode(text);
    ASSERT_FALSE(ids.has_value());
    EXPECT_EQ(ids.error().code, ErrorCode::kInvalidArgument);
    EXPECT_THAT(ids.error().message, HasSubstr(message));
  }
}

TEST(Tokenizer, BosIsAddedOnceAndOnlyOnRequest) {
  const std::string bos = "<｜begin▁of▁sentence｜>";
  EXPECT_EQ(r1_tokenizer().encode("", {.add_bos = true}).value(), Ids{0});
  EXPECT_EQ(r1_tokenizer().encode(bos, {.add_bos = true}).value(), Ids{0});
  EXPECT_EQ(r1_tokenizer().encode(bos + bos, {.add_bos = true}).value(), (Ids{0, 0}));
  EXPECT_EQ(r1_tokenizer().encode("a").value(), Ids{67});
  EXPECT_EQ(r1_tokenizer().encode("a", {.add_bos = true}).value(), (Ids{0, 67}));
  const Tokenizer without = tokenizer_with_added();
  EXPECT_EQ(without.encode("a", {.add_bos = true}).error().code, ErrorCode::kInvalidArgument);
}

TEST(Tokenizer, DecodeLeavesOutSpecialTokensOnRequest) {
  const Tokenizer tokenizer = tokenizer_with_added();
  const Ids ids = {260, 261, 262, 104};
  EXPECT_EQ(tokenizer.decode(ids, true), "<t>h");
  EXPECT_EQ(tokenizer.decode(ids, false), "<t><|a|><|a|>bh");
}

TEST(Tokenizer, DecodeReplacesBrokenUtf8AndSkipsUnknownIds) {
  const Tokenizer tokenizer = tokenizer_with_added();
  EXPECT_EQ(tokenizer.decode(Ids{0xe4, 0xbd, 104, 0xf0, 0x9f, 0x98}, false), "\ufffdh\ufffd");
  EXPECT_EQ(tokenizer.decode(Ids{-1, 104, 264, 1'000'000'000}, false), "h");
  EXPECT_EQ(tokenizer.token_bytes(0xe4), "\xe4");
  EXPECT_EQ(tokenizer.token_bytes(-1), "");
  EXPECT_EQ(tokenizer.token_bytes(264), "");
}

TEST(Tokenizer, DecodingWhatWasEncodedGivesTheText) {
  std::mt19937 rng(11);
  for (int round = 0; round < 300; ++round) {
    std::string text;
    for (auto left = rng() % 40; left > 0; --left) {
      // A code point of one to four bytes, no surrogate.
      constexpr std::array<uint32_t, 5> kBounds = {0, 0x80, 0x800, 0xd800, 0xe000};
      const auto kind = rng() % 4;
      auto c = kBounds[kind] + rng() % (kBounds[kind + 1] - kBounds[kind]);
      if (kind == 3) c = 0x10000 + rng() % 0x100000;
      if (c < 0x80) {
        text += static_cast<char>(c);
      } else if (c < 0x800) {
        text += {static_cast<char>(0xc0 | c >> 6), static_cast<char>(0x80 | (c & 63))};
      } else if (c < 0x10000) {
        text += {static_cast<char>(0xe0 | c >> 12), static_cast<char>(0x80 | (c >> 6 & 63)),
                 static_cast<char>(0x80 | (c & 63))};
      } else {
        text += {static_cast<char>(0xf0 | c >> 18), static_cast<char>(0x80 | (c >> 12 & 63)),
                 static_cast<char>(0x80 | (c >> 6 & 63)), static_cast<char>(0x80 | (c & 63))};
      }
    }
    for (const Tokenizer* tokenizer : {&r1_tokenizer(), &demo_tokenizer()}) {
      const auto ids = tokenizer->encode(text);
      ASSERT_TRUE(ids.has_value()) << ids.error().message;
      EXPECT_EQ(tokenizer->decode(*ids, false), text);
    }
  }
}

// One run of a million letters, and of spaces before a letter: nothing in the way may be quadratic.
TEST(Tokenizer, LongRunsTakeLinearTime) {
  for (const std::string& text :
       {std::string(1'000'000, 'a'), std::string(1'000'000, ' ') + "a",
        std::string(1'000'000, '\n'), std::string(1'000'000, '1'), std::string(1'000'000, '<')}) {
    const auto ids = r1_tokenizer().encode(text);
    ASSERT_TRUE(ids.has_value()) << ids.error().message;
    EXPECT_EQ(r1_tokenizer().decode(*ids, false), text);
  }
}

TEST(Tokenizer, ManyThreadsGetTheSameIds) {
  const auto texts = testing::r1_golden_texts();
  std::vector<std::thread> threads;
  std::vector<int> wrong(4, 0);
  for (size_t t = 0; t < wrong.size(); ++t) {
    threads.emplace_back([&, t] {
      for (size_t i = 0; i < texts.size(); ++i) {
        const auto& golden = texts[(i + 50 * t) % texts.size()];
        if (r1_tokenizer().encode(golden.text) != golden.ids) ++wrong[t];
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, std::vector<int>(4, 0));
}

TEST(Tokenizer, AHostileRegularExpressionIsAnErrorOfEncode) {
  auto document = nlohmann::json::parse(testing::small_tokenizer_json());
  document["pre_tokenizer"]["pretokenizers"][1]["pattern"]["Regex"] = "(?:a+)+[bc]";
  const auto tokenizer = Tokenizer::parse(document.dump(), "t.json");
  ASSERT_TRUE(tokenizer.has_value());
  EXPECT_EQ(tokenizer->encode("aab").value().size(), 3u);
  const auto ids = tokenizer->encode(std::string(64, 'a'));
  ASSERT_FALSE(ids.has_value());
  EXPECT_EQ(ids.error().code, ErrorCode::kUnsupported);
  document["pre_tokenizer"]["pretokenizers"][1]["pattern"]["Regex"] = "(?i:a)";
  const auto refused = Tokenizer::parse(document.dump(), "t.json");
  ASSERT_FALSE(refused.has_value());
  EXPECT_THAT(refused.error().message,
              HasSubstr("t.json: pre_tokenizer: step 1: the group '(?i:' at byte 0"));
}

class TokenizerFolder : public ::testing::Test {
 protected:
  TokenizerFolder() {
    folder_ = std::filesystem::path(::testing::TempDir()) /
              ("nibble_tokenizer_" + std::to_string(::getpid()));
    std::filesystem::create_directories(folder_);
  }
  ~TokenizerFolder() override { std::filesystem::remove_all(folder_); }

  void write(const std::string& name, const std::string& text) {
    std::ofstream(folder_ / name) << text;
  }
  std::filesystem::path folder_;
};

TEST_F(TokenizerFolder, WithoutATokenizerJsonIsNotFound) {
  const auto tokenizer = Tokenizer::load(folder_);
  ASSERT_FALSE(tokenizer.has_value());
  EXPECT_EQ(tokenizer.error().code, ErrorCode::kNotFound);
  EXPECT_THAT(tokenizer.error().message, HasSubstr("tokenizer.json"));
}

TEST_F(TokenizerFolder, WithoutATokenizerConfigHasNeitherBosNorEos) {
  write("tokenizer.json", testing::small_tokenizer_json());
  const auto tokenizer = Tokenizer::load(folder_);
  ASSERT_TRUE(tokenizer.has_value());
  EXPECT_EQ(tokenizer->bos_id(), std::nullopt);
  EXPECT_EQ(tokenizer->eos_id(), std::nullopt);
  EXPECT_FALSE(tokenizer->add_bos_token());
}

TEST_F(TokenizerFolder, ABosThatIsNoTokenIsCorrupt) {
  write("tokenizer.json", testing::small_tokenizer_json());
  write("tokenizer_config.json", R"({"bos_token": "<s>"})");
  const auto tokenizer = Tokenizer::load(folder_);
  ASSERT_FALSE(tokenizer.has_value());
  EXPECT_EQ(tokenizer.error().code, ErrorCode::kCorrupt);
  EXPECT_THAT(tokenizer.error().message, HasSubstr("bos_token '<s>' is not a token"));
}

TEST(TokenizerConfig, ReadsTokensAsTextsAndAsObjects) {
  const auto config = parse_tokenizer_config(
      R"({"bos_token": {"__type": "AddedToken", "content": "<s>"}, "eos_token": "</s>",
          "add_bos_token": true, "chat_template": "..."})",
      "c.json");
  ASSERT_TRUE(config.has_value());
  EXPECT_EQ(config->bos_token, "<s>");
  EXPECT_EQ(config->eos_token, "</s>");
  EXPECT_TRUE(config->add_bos_token);
}

TEST(TokenizerConfig, AnAbsentAddBosTokenFollowsTheClass) {
  const auto add_bos = [](std::string_view text) {
    return parse_tokenizer_config(text, "c.json").value().add_bos_token;
  };
  EXPECT_TRUE(add_bos(R"({"bos_token": "a", "tokenizer_class": "LlamaTokenizerFast"})"));
  EXPECT_FALSE(add_bos(
      R"({"bos_token": "a", "tokenizer_class": "LlamaTokenizerFast", "add_bos_token": false})"));
  EXPECT_FALSE(add_bos(R"({"bos_token": "a", "tokenizer_class": "PreTrainedTokenizerFast"})"));
  EXPECT_FALSE(add_bos(R"({"tokenizer_class": "LlamaTokenizerFast"})"));
}

TEST(TokenizerConfig, WhatDoesNotFitIsRefused) {
  const std::vector<std::tuple<std::string, ErrorCode, std::string>> cases = {
      {"{", ErrorCode::kCorrupt, "c.json is not JSON"},
      {"[]", ErrorCode::kCorrupt, "expected an object"},
      {R"({"bos_token": 1})", ErrorCode::kCorrupt, "bos_token is 1"},
      {R"({"eos_token": {}})", ErrorCode::kCorrupt, "eos_token: content is null"},
      {R"({"add_bos_token": "yes"})", ErrorCode::kCorrupt, "add_bos_token is \"yes\""},
      {R"({"add_bos_token": true})", ErrorCode::kCorrupt, "there is no bos_token"},
      {R"({"add_eos_token": true})", ErrorCode::kUnsupported, "add_eos_token is true"},
  };
  for (const auto& [text, code, message] : cases) {
    const auto config = parse_tokenizer_config(text, "c.json");
    ASSERT_FALSE(config.has_value()) << text;
    EXPECT_EQ(config.error().code, code);
    EXPECT_THAT(config.error().message, HasSubstr(message));
  }
}

}  // namespace
}  // namespace nibble
