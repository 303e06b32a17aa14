// Grammars in GBNF, llama.cpp's form of BNF.
#pragma once

#include <string_view>

#include "nibble/base/result.h"
#include "nibble/grammar/grammar.h"

namespace nibble {

// The language of the rule `root`.
//
//   name ::= "text" [a-z0-9] [^"\\] . other-name (a | b) x* x+ x? x{m} x{m,} x{m,n}   # a comment
//
// A rule ends with its line, but inside parentheses and around '|'. Characters are Unicode's, '.'
// any of them; escapes are \n \r \t \xHH \uHHHH \UHHHHHHHH and \ before punctuation. Names are of
// letters, digits, '-' and '_'.
//
// Errors: kInvalidArgument for what is malformed, with its line; for a rule without definition or
// with two; for a grammar that nothing matches, or with a rule that can begin with itself (write
// a ::= b a? instead of a ::= a? b). kUnsupported naming matches of whole tokens (<...>, !<...>).
// Source: llama.cpp, grammars/README.md and src/llama-grammar.cpp.
Result<Grammar> gbnf_grammar(std::string_view text);

}  // namespace nibble
