// Regular expressions as grammars: the subset that is regular and means the same everywhere.
#pragma once

#include <string_view>

#include "nibble/base/result.h"
#include "nibble/grammar/grammar.h"

namespace nibble {

enum class RegexTarget {
  kText,        // the whole output, in UTF-8
  kJsonString,  // the value of a JSON string; the nodes write it escaped, without its quotes
};

// Text that `pattern` describes, then next.
//
//   kText        the whole text matches the pattern
//   kJsonString  a part of it does, as JSON schema defines: without ^ anything may stand in front,
//                without $ behind
//
// Understood: characters, ., [...], \d \w \s \D \W \S (ASCII), \t \n \r \f \v \0 \xHH \uHHHH,
// \ before punctuation, (...), (?:...), |, * + ? {m} {m,} {m,n}, also in their lazy forms, and ^ $
// at the two ends of a top-level alternative. '.' leaves out the line ends, as in ECMA-262.
//
// Errors: kInvalidArgument for a malformed pattern, with the byte; kUnsupported naming a back
// reference, a look-around, a word border, \p or an anchor in another place.
Result<int32_t> regex_node(GrammarBuilder& builder, std::string_view pattern, RegexTarget target,
                           int32_t next);

}  // namespace nibble
