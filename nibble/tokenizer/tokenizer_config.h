// Reading tokenizer_config.json: which tokens begin and end a sequence.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "nibble/base/result.h"

namespace nibble {

struct TokenizerConfig {
  std::optional<std::string> bos_token;  // as text; nothing when absent or null
  std::optional<std::string> eos_token;
  // When absent, true for LlamaTokenizer and LlamaTokenizerFast (DeepSeek's class), as in Hugging
  // Face transformers, and false for others.
  bool add_bos_token = false;
};

// Tokens may be texts or objects with "content". Other fields, chat_template among them, are left
// to others.
// Errors: kCorrupt for malformed JSON and wrong types; kUnsupported for add_eos_token true.
Result<TokenizerConfig> parse_tokenizer_config(std::string_view text, std::string_view where);

}  // namespace nibble
