// Reading tokenizer.json, Hugging Face tokenizers' file. Everything in it is taken for hostile.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/base/result.h"
#include "nibble/tokenizer/added_tokens.h"
#include "nibble/tokenizer/bpe.h"
#include "nibble/tokenizer/vocabulary.h"

namespace nibble {

// What the file says, checked: every id below is one of the vocabulary's.
struct TokenizerJson {
  Vocabulary vocabulary;                // the model's tokens and the added ones
  std::array<int32_t, 256> byte_ids{};  // -1 for a byte that is in no UTF-8 text and has no token
  std::vector<BpeMerge> merges;         // best first
  std::vector<AddedToken> added_tokens;
  std::vector<std::string> split_patterns;  // regular expressions, applied one within the other
};

// Supported is what DeepSeek's files use: a BPE model over the byte-level alphabet, no normalizer
// (null or an empty Sequence), a pre_tokenizer of Splits (Regex, Isolated, not inverted) and a
// ByteLevel without regex and prefix space, a ByteLevel decoder, no post_processor but ByteLevel.
//
// `where` names the file in messages.
// Errors: kUnsupported naming the setting and what would work; kCorrupt for malformed JSON and for
// entries that contradict each other.
Result<TokenizerJson> parse_tokenizer_json(std::string_view text, std::string_view where);

}  // namespace nibble
