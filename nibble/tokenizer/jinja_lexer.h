// Template text to tokens, with Jinja's whitespace control. Follows Jinja2's lexer.py with
// trim_blocks and lstrip_blocks on, which is how Hugging Face renders chat templates.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "nibble/base/result.h"

namespace nibble::jinja {

enum class TokenKind {
  kText,           // what stands outside of tags
  kVariableBegin,  // {{
  kVariableEnd,
  kBlockBegin,  // {%
  kBlockEnd,
  kName,
  kString,  // text is the unescaped value
  kInteger,
  kFloat,
  kOperator,
  kEnd,  // of the template; always the last token
};

struct Token {
  TokenKind kind;
  int line;  // from 1
  std::string text;
};

// Newlines become "\n", and one newline at the end of the template is dropped.
// Errors: kInvalidArgument "line 3: ..." for malformed text, kUnsupported for \N{...} in a string.
Result<std::vector<Token>> tokenize(std::string_view source);

// "'endif'", "end of template": for messages.
std::string describe(const Token& token);

}  // namespace nibble::jinja
