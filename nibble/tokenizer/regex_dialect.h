// The regular expressions of tokenizer.json are written for Oniguruma (Ruby syntax); ours run on
// PCRE2. The two agree on a core; this file admits that core and refuses the rest by name, so that
// no pattern can silently mean something else.
#pragma once

#include <string>
#include <string_view>

#include "nibble/base/result.h"

namespace nibble {

// `pattern`, valid UTF-8, in PCRE2's syntax for PCRE2_UTF | PCRE2_UCP, newline LF.
//
// Admitted: literal characters; `.`; alternation; the groups (...) (?:...) (?=...) (?!...) (?<=...)
// (?<!...); the repeats * + ? (also lazy `?`, possessive `+`) and {n} {n,} {n,m}; classes [...] and
// [^...] of characters, ranges and escapes; the escapes \p{X} and \P{X} for X one of L, M, N, P, S
// and Z, \s \S, \r \n \t \f, \xHH, \x{H...}, \uHHHH and a backslash before punctuation. \P{X} and
// \S may not stand in a class.
//
// \s is spelled out as Unicode's White_Space, which is Oniguruma's meaning; PCRE2's has U+180E too.
// \p{X} is that of Unicode 16 (see unicode_additions.h).
//
// Errors: kUnsupported naming the construct and its byte offset in the pattern.
Result<std::string> to_pcre2(std::string_view pattern);

}  // namespace nibble
