// Token ids to text while they are being generated.
#pragma once

#include <cstdint>
#include <string>

#include "nibble/tokenizer/tokenizer.h"
#include "nibble/tokenizer/utf8_stream.h"

namespace nibble {

// Gives text as soon as it is whole: never half a character. All pushes and the flush in a row are
// what Tokenizer::decode gives for the same ids. One for each sequence; not thread-safe.
class Detokenizer {
 public:
  // `tokenizer` has to outlive this.
  explicit Detokenizer(const Tokenizer& tokenizer, bool skip_special_tokens = false)
      : tokenizer_(&tokenizer), skip_special_tokens_(skip_special_tokens) {}

  // The text that `id` completes, valid UTF-8; empty while a character is unfinished.
  std::string push(int32_t id);

  // U+FFFD when the tokens ended inside a character, otherwise nothing. Begins anew.
  std::string flush();

 private:
  const Tokenizer* tokenizer_;
  bool skip_special_tokens_;
  Utf8Stream stream_;
};

}  // namespace nibble
