// JSON to template values and back, as Python's json module has it.
#pragma once

#include <string>
#include <string_view>

#include "nibble/base/result.h"
#include "nibble/tokenizer/jinja_limits.h"
#include "nibble/tokenizer/jinja_value.h"

namespace nibble::jinja {

// The value of a JSON text. Mappings keep their order; of equal keys the last value wins.
//
// Errors: kInvalidArgument naming the byte for malformed JSON or UTF-8, for nesting deeper than
// kMaxValueDepth / 2, and for integers beyond 64 bits.
Result<Value> parse_json(std::string_view text);

struct JsonStyle {
  bool ensure_ascii = false;  // \uXXXX for what is not ASCII
  bool sort_keys = false;
  bool multiline = false;  // one element a line, each level indented by `indent`
  std::string indent;
};

// json.dumps: ", " and ": " between (multiline: "," and ": "). Hugging Face's tojson is the default
// style. Errors: kInvalidArgument for what JSON has no form for, such as an undefined value.
Result<std::string> to_json(const Value& value, const JsonStyle& style, Budget& budget);

// "text" as a JSON string with its quotes.
std::string json_quoted(std::string_view text, bool ensure_ascii = false);

}  // namespace nibble::jinja
