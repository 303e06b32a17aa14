#include "tests/tokenizer/tokenizer_files.h"

#include <zlib.h>

#include <array>
#include <fstream>
#include <nlohmann/json.hpp>

#include "nibble/base/check.h"
#include "nibble/tokenizer/byte_level.h"

namespace nibble::testing {

using nlohmann::json;

std::string r1_tokenizer_json() {
  gzFile file = gzopen(NIBBLE_SOURCE_DIR "/tests/golden/r1_tokenizer.json.gz", "rb");
  NIBBLE_CHECK(file != nullptr);
  std::string text;
  std::vector<char> buffer(1 << 16);
  int count = 0;
  while ((count = gzread(file, buffer.data(), static_cast<unsigned>(buffer.size()))) > 0) {
    text.append(buffer.data(), static_cast<size_t>(count));
  }
  NIBBLE_CHECK(count == 0);
  gzclose(file);
  return text;
}

const Tokenizer& r1_tokenizer() {
  static const Tokenizer kTokenizer = [] {
    // What DeepSeek-R1's tokenizer_config.json says.
    constexpr std::string_view kConfig =
        R"({"add_bos_token": true, "bos_token": {"content": "<｜begin▁of▁sentence｜>"},
            "eos_token": {"content": "<｜end▁of▁sentence｜>"}})";
    auto tokenizer = Tokenizer::parse(r1_tokenizer_json(), "r1_tokenizer.json");
    NIBBLE_CHECK(tokenizer.has_value());
    auto with_config = std::move(*tokenizer).with_config(kConfig, "tokenizer_config.json");
    NIBBLE_CHECK(with_config.has_value());
    return *std::move(with_config);
  }();
  return kTokenizer;
}

const Tokenizer& demo_tokenizer() {
  static const Tokenizer kTokenizer = [] {
    auto tokenizer = Tokenizer::load(NIBBLE_SOURCE_DIR "/models/demo");
    NIBBLE_CHECK(tokenizer.has_value());
    return *std::move(tokenizer);
  }();
  return kTokenizer;
}

std::vector<GoldenText> r1_golden_texts() {
  std::ifstream file(NIBBLE_SOURCE_DIR "/tests/golden/r1_tokenizer_vectors.json");
  std::vector<GoldenText> texts;
  for (const json& entry : json::parse(file)) {
    texts.push_back({entry.at("text").get<std::string>(),
                     entry.at("ids").get<std::vector<int32_t>>(),
                     entry.at("decoded").get<std::string>()});
  }
  return texts;
}

std::string small_tokenizer_json() {
  json vocab = json::object();
  for (int byte = 0; byte < 256; ++byte) {
    vocab[byte_to_alphabet(static_cast<uint8_t>(byte))] = byte;
  }
  vocab["he"] = 256;
  vocab["ll"] = 257;
  vocab["hell"] = 258;
  vocab["hello"] = 259;
  json document = json::parse(R"json({
    "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
    "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
      {"type": "Split", "pattern": {"Regex": "\\p{N}{1,3}"}, "behavior": "Isolated", "invert": false},
      {"type": "Split", "pattern": {"Regex": " ?\\p{L}+|\\s+"}, "behavior": "Isolated",
       "invert": false},
      {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}]},
    "post_processor": null, "decoder": {"type": "ByteLevel"},
    "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
              "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
              "ignore_merges": false, "merges": ["h e", "l l", "he ll", "hell o"]}})json");
  document["model"]["vocab"] = std::move(vocab);
  return document.dump();
}

}  // namespace nibble::testing
