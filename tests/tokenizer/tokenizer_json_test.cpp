// What a tokenizer.json may say and what is refused, by name.
#include "nibble/tokenizer/tokenizer_json.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <nlohmann/json.hpp>

#include "tests/tokenizer/tokenizer_files.h"

namespace nibble {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;
using testing::small_tokenizer_json;
using Change = std::function<void(json&)>;

Result<TokenizerJson> parse_changed(const Change& change) {
  json document = json::parse(small_tokenizer_json());
  change(document);
  return parse_tokenizer_json(document.dump(), "t.json");
}

struct Refusal {
  Change change;
  ErrorCode code;
  std::string message;
};

void expect_refusals(const std::vector<Refusal>& refusals) {
  for (const Refusal& refusal : refusals) {
    SCOPED_TRACE(refusal.message);
    const auto parsed = parse_changed(refusal.change);
    ASSERT_FALSE(parsed.has_value());
    EXPECT_EQ(parsed.error().code, refusal.code);
    EXPECT_THAT(parsed.error().message, HasSubstr("t.json: "));
    EXPECT_THAT(parsed.error().message, HasSubstr(refusal.message));
  }
}

constexpr ErrorCode kCorruptFile = ErrorCode::kCorrupt;
constexpr ErrorCode kUnsupportedFile = ErrorCode::kUnsupported;

json added(const std::string& content, int id) {
  return {{"id", id},        {"content", content},  {"single_word", false}, {"lstrip", false},
          {"rstrip", false}, {"normalized", false}, {"special", true}};
}

TEST(TokenizerJson, ReadsWhatTheFileSays) {
  const auto parsed = parse_changed([](json& d) {
    d["added_tokens"] = {added("<bos>", 300), added("hello", 259)};
    d["normalizer"] = {{"type", "Sequence"}, {"normalizers", json::array()}};
    d["post_processor"] = {{"type", "ByteLevel"}, {"trim_offsets", false}};
    d["model"]["merges"] = {"#version: 0.2", json::array({"h", "e"}), "l l"};
  });
  ASSERT_TRUE(parsed.has_value()) << parsed.error().message;
  EXPECT_EQ(parsed->vocabulary.size(), 301);
  EXPECT_EQ(parsed->vocabulary.find("<bos>"), 300);
  EXPECT_EQ(parsed->vocabulary.text(299), "");
  EXPECT_EQ(parsed->vocabulary.bytes(32), " ");
  EXPECT_EQ(parsed->byte_ids[0xff], 0xff);
  ASSERT_EQ(parsed->merges.size(), 2u);
  EXPECT_EQ(parsed->merges[0].left, 'h');
  EXPECT_EQ(parsed->merges[0].right, 'e');
  EXPECT_EQ(parsed->merges[0].result, 256);
  EXPECT_EQ(parsed->merges[1].result, 257);
  ASSERT_EQ(parsed->added_tokens.size(), 2u);
  EXPECT_TRUE(parsed->added_tokens[0].special);
  EXPECT_EQ(parsed->split_patterns, (std::vector<std::string>{"\\p{N}{1,3}", " ?\\p{L}+|\\s+"}));
}

TEST(TokenizerJson, TextThatIsNoJsonIsCorruptWithItsPlace) {
  for (const std::string_view text : {"", "{", "{\"a\": \"\xff\"}", "[1,]", "nul", "{} x"}) {
    const auto parsed = parse_tokenizer_json(text, "t.json");
    ASSERT_FALSE(parsed.has_value()) << text;
    EXPECT_EQ(parsed.error().code, ErrorCode::kCorrupt);
    EXPECT_THAT(parsed.error().message, HasSubstr("t.json is not JSON: parse error at line"));
  }
}

TEST(TokenizerJson, AMillionOpenBracketsDoNotOverflowTheStack) {
  EXPECT_FALSE(parse_tokenizer_json(std::string(1'000'000, '['), "t.json").has_value());
  const std::string deep = std::string(100'000, '[') + std::string(100'000, ']');
  EXPECT_FALSE(parse_tokenizer_json(deep, "t.json").has_value());
  EXPECT_FALSE(parse_tokenizer_json("{\"model\":" + deep + "}", "t.json").has_value());
  EXPECT_FALSE(parse_tokenizer_json("{\"truncation\":" + deep + "}", "t.json").has_value());
}

TEST(TokenizerJson, DocumentsOfAnotherShapeAreRefused) {
  expect_refusals({
      {[](json& d) { d = json::array(); }, kCorruptFile, "is an array of 0 entries"},
      {[](json& d) {
         d["truncation"] = {{"max_length", 512}};
       },
       kUnsupportedFile, "truncation is an object of 1 entries; only null"},
      {[](json& d) { d["padding"] = "right"; }, kUnsupportedFile, "padding is \"right\""},
      {[](json& d) {
         d["normalizer"] = {{"type", "NFC"}};
       },
       kUnsupportedFile, "normalizer is of type \"NFC\"; only null and an empty Sequence"},
      {[](json& d) {
         d["normalizer"] = {{"type", "Sequence"}, {"normalizers", {{{"type", "NFC"}}}}};
       },
       kUnsupportedFile, "normalizer is a Sequence of an array of 1 entries"},
      {[](json& d) { d["decoder"] = nullptr; }, kUnsupportedFile, "decoder is of type null"},
      {[](json& d) {
         d["decoder"] = {{"type", "Metaspace"}};
       },
       kUnsupportedFile, "decoder is of type \"Metaspace\"; only ByteLevel"},
      {[](json& d) {
         d["post_processor"] = {{"type", "TemplateProcessing"}};
       },
       kUnsupportedFile, "post_processor is of type \"TemplateProcessing\""},
  });
}

TEST(TokenizerJson, OtherPreTokenizersAreRefused) {
  const auto steps = [](json& d) -> json& { return d["pre_tokenizer"]["pretokenizers"]; };
  expect_refusals({
      {[](json& d) { d.erase("pre_tokenizer"); }, kUnsupportedFile, "pre_tokenizer: type is null"},
      {[](json& d) {
         d["pre_tokenizer"] = {{"type", "Whitespace"}};
       },
       kUnsupportedFile, "pre_tokenizer: type is \"Whitespace\"; only a Sequence"},
      {[&](json& d) { steps(d) = json::array(); }, kCorruptFile, "pretokenizers is an array of 0"},
      {[&](json& d) { steps(d) = 7; }, kCorruptFile, "pretokenizers is 7"},
      {[&](json& d) { steps(d) = json(18, steps(d)[0]); }, kUnsupportedFile, "18 steps"},
      {[&](json& d) {
         steps(d)[0] = {{"type", "Digits"}};
       },
       kUnsupportedFile, "step 0 is of type \"Digits\"; here only Split is supported"},
      {[&](json& d) { steps(d).erase(2); }, kUnsupportedFile,
       "step 1 is of type \"Split\"; here only ByteLevel is supported"},
      {[&](json& d) {
         steps(d)[0]["pattern"] = {{"String", " "}};
       },
       kUnsupportedFile, "step 0: pattern is not {\"Regex\": text}"},
      {[&](json& d) { steps(d)[0]["pattern"] = "a"; }, kUnsupportedFile, "pattern is not"},
      {[&](json& d) { steps(d)[1]["behavior"] = "Removed"; }, kUnsupportedFile,
       "step 1: behavior is \"Removed\"; only \"Isolated\""},
      {[&](json& d) { steps(d)[1]["invert"] = true; }, kUnsupportedFile, "invert is true"},
      {[&](json& d) { steps(d)[1]["invert"] = 1; }, kCorruptFile, "invert is 1"},
      {[&](json& d) { steps(d)[2]["add_prefix_space"] = true; }, kUnsupportedFile,
       "add_prefix_space is true; only false"},
      {[&](json& d) { steps(d)[2].erase("use_regex"); }, kUnsupportedFile, "use_regex is true"},
  });
}

TEST(TokenizerJson, OtherModelsAreRefused) {
  expect_refusals({
      {[](json& d) { d.erase("model"); }, kUnsupportedFile, "model: type is null; only BPE"},
      {[](json& d) { d["model"]["type"] = "Unigram"; }, kUnsupportedFile, "type is \"Unigram\""},
      {[](json& d) { d["model"]["dropout"] = 0.1; }, kUnsupportedFile, "dropout is 0.1"},
      {[](json& d) { d["model"]["unk_token"] = "<unk>"; }, kUnsupportedFile,
       "unk_token is \"<unk>\"; only null"},
      {[](json& d) { d["model"]["byte_fallback"] = true; }, kUnsupportedFile,
       "byte_fallback is true; only false"},
      {[](json& d) { d["model"]["ignore_merges"] = true; }, kUnsupportedFile,
       "ignore_merges is true; only false"},
      {[](json& d) { d["model"]["end_of_word_suffix"] = "</w>"; }, kUnsupportedFile,
       "end_of_word_suffix is \"</w>\""},
      {[](json& d) { d["model"]["continuing_subword_prefix"] = "##"; }, kUnsupportedFile,
       "continuing_subword_prefix is \"##\""},
      {[](json& d) { d["model"]["vocab"].erase("a"); }, kUnsupportedFile,
       "vocab has no token \"a\" for byte 0x61"},
  });
}

TEST(TokenizerJson, VocabulariesThatContradictThemselvesAreCorrupt) {
  expect_refusals({
      {[](json& d) { d["model"]["vocab"] = json::object(); }, kCorruptFile, "vocab is an object"},
      {[](json& d) {
         d["model"]["vocab"] = {1, 2};
       },
       kCorruptFile, "vocab is an array"},
      {[](json& d) { d["model"]["vocab"]["x1"] = -1; }, kCorruptFile,
       "the id of \"x1\" is -1, expected a whole number below 1048576"},
      {[](json& d) { d["model"]["vocab"]["x1"] = 1048576; }, kCorruptFile, "is 1048576"},
      {[](json& d) { d["model"]["vocab"]["x1"] = 18446744073709551615u; }, kCorruptFile,
       "is 18446744073709551615"},
      {[](json& d) { d["model"]["vocab"]["x1"] = 1.5; }, kCorruptFile, "is 1.5"},
      {[](json& d) { d["model"]["vocab"]["x1"] = "1"; }, kCorruptFile, "is \"1\""},
      {[](json& d) { d["model"]["vocab"]["x1"] = 97; }, kCorruptFile, "id 97 is both"},
      {[](json& d) { d["model"]["vocab"][""] = 400; }, kCorruptFile, "id 400 is an empty text"},
  });
}

TEST(TokenizerJson, MergesOutsideTheVocabularyAreCorrupt) {
  expect_refusals({
      {[](json& d) { d["model"]["merges"] = nullptr; }, kCorruptFile, "merges is null"},
      {[](json& d) {
         d["model"]["merges"] = {"h e", "a"};
       },
       kCorruptFile, "merges entry 1: is \"a\", expected"},
      {[](json& d) { d["model"]["merges"] = {"a b c"}; }, kCorruptFile, "merges entry 0: is"},
      {[](json& d) {
         d["model"]["merges"] = json::array({json::array({"a", 1})});
       },
       kCorruptFile, "merges entry 0: is"},
      {[](json& d) {
         d["model"]["merges"] = json::array({json::array({"a", "b", "c"})});
       },
       kCorruptFile, "an array of 3 entries"},
      {[](json& d) { d["model"]["merges"] = {"zz e"}; }, kCorruptFile,
       "merges entry 0: \"zz\" is not in vocab"},
      {[](json& d) { d["model"]["merges"] = {"a b"}; }, kCorruptFile, "\"ab\" is not in vocab"},
  });
}

TEST(TokenizerJson, AddedTokensThatWeDoNotSupportOrThatContradictAreRefused) {
  const auto with = [](const std::string& key, const json& value) {
    return [key, value](json& d) {
      d["added_tokens"] = json::array({added("<x>", 300)});
      d["added_tokens"][0][key] = value;
    };
  };
  expect_refusals({
      {with("lstrip", true), kUnsupportedFile, "entry 0: \"<x>\": lstrip is true; only false"},
      {with("rstrip", true), kUnsupportedFile, "rstrip is true"},
      {with("single_word", true), kUnsupportedFile, "single_word is true"},
      {with("special", "yes"), kCorruptFile, "special is \"yes\""},
      {with("content", ""), kCorruptFile, "content is empty"},
      {with("content", 5), kCorruptFile, "content is 5, expected a text"},
      {with("content", std::string(5000, 'x')), kUnsupportedFile, "content has 5000 bytes"},
      {with("content", "hello"), kCorruptFile, "\"hello\" has id 300, but 259 in model.vocab"},
      {with("id", 97), kCorruptFile, "id 97 is both \"a\" and \"<x>\""},
      {with("id", nullptr), kCorruptFile, "id: is null"},
      {with("id", 1 << 20), kCorruptFile, "expected a whole number below 1048576"},
      {[](json& d) {
         d["added_tokens"] = {added("<x>", 300), added("<x>", 301)};
       },
       kCorruptFile, "entry 1: \"<x>\" is there twice"},
      {[](json& d) {
         d["added_tokens"] = {added("<x>", 300), added("<y>", 300)};
       },
       kCorruptFile, "id 300 is both"},
      {[](json& d) { d["added_tokens"] = {1}; }, kCorruptFile, "entry 0: is 1, expected an object"},
      {[](json& d) { d["added_tokens"] = "x"; }, kCorruptFile, "added_tokens: is \"x\""},
  });
}

}  // namespace
}  // namespace nibble
