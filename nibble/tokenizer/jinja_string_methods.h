// What methods and filters share.
#pragma once

#include <string>
#include <string_view>

#include "nibble/base/result.h"
#include "nibble/tokenizer/jinja_limits.h"
#include "nibble/tokenizer/jinja_value.h"

namespace nibble::jinja {

// str.split(separator, max_splits) as a list; a null separator splits at runs of whitespace, and a
// negative max_splits everywhere. A given separator is not empty.
Result<Value> split_text(std::string_view text, const std::string* separator, int64_t max_splits,
                         Budget& budget);

// str.replace(old, with, count); a negative count replaces all.
Result<Value> replace_text(std::string_view text, std::string_view old, std::string_view with,
                           int64_t count, Budget& budget);

// (key, value) tuples, as a kView or kGenerator.
Result<Value> dict_items(const Dict& dict, Kind kind, Budget& budget);

}  // namespace nibble::jinja
