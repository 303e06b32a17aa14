// The tokenizers that the tests of this folder share.
#pragma once

#include <string>
#include <vector>

#include "nibble/tokenizer/tokenizer.h"

namespace nibble::testing {

// The text of tests/golden/r1_tokenizer.json.gz.
std::string r1_tokenizer_json();

// DeepSeek-R1's real tokenizer, and the demo checkpoint's; loaded once. Aborts when they don't
// load.
const Tokenizer& r1_tokenizer();
const Tokenizer& demo_tokenizer();

// One text with its ids and its decoded text as Hugging Face tokenizers has them.
struct GoldenText {
  std::string text;
  std::vector<int32_t> ids;
  std::string decoded;
};
std::vector<GoldenText> r1_golden_texts();

// A tokenizer.json in DeepSeek's form with the 256 byte tokens (ids 0..255 in byte order) and the
// merges h+e, l+l, he+ll, hell+o (ids 256..259), to be changed and parsed.
std::string small_tokenizer_json();

}  // namespace nibble::testing
