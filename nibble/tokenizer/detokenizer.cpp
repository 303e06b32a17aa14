#include "nibble/tokenizer/detokenizer.h"

namespace nibble {

std::string Detokenizer::push(int32_t id) {
  std::string text;
  if (skip_special_tokens_ && tokenizer_->is_special(id)) return text;
  stream_.push(tokenizer_->token_bytes(id), text);
  return text;
}

std::string Detokenizer::flush() {
  std::string text;
  stream_.flush(text);
  return text;
}

}  // namespace nibble
