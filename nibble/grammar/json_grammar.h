// The parts of JSON as grammar rules, in the form that structured output writes them:
//
//   whitespace  behind '{', '[' and ',' and before '}' and ']': nothing, a space, or a newline with
//               up to 40 spaces; behind ':' nothing or a space; nowhere else
//   strings     in UTF-8; any escape that JSON knows, but no lone surrogates
//   numbers     at most 18 digits in front of the point, 18 behind it and 2 in the exponent, so
//   that
//               every parser reads them and no model gets lost in zeros; no integer -0
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/base/result.h"
#include "nibble/grammar/grammar.h"

namespace nibble {

inline constexpr int kMaxIntegerDigits = 18;

// Adds each rule to the builder when it is first asked for.
class JsonRules {
 public:
  explicit JsonRules(GrammarBuilder& builder) : builder_(builder) {}

  int32_t whitespace(int32_t next);  // behind '{', '[', ',' and before '}', ']'
  int32_t colon(int32_t next);       // ':' and the space behind it
  int32_t string(int32_t next);      // with its quotes
  int32_t string(int64_t min_length, int64_t max_length, int32_t next);  // in characters
  int32_t integer(int32_t next);
  int32_t number(int32_t next);
  int32_t value(int32_t next);   // anything
  int32_t object(int32_t next);  // any object
  int32_t array(int32_t next);   // any array

  // min..max, both included. Errors: none; min > max matches nothing. Bounds beyond 18 digits are
  // those of 18 digits.
  int32_t integer_in(int64_t min, int64_t max, int32_t next);

  // item, then with (',' whitespace item) between, min to max of them, in brackets. `item` is a
  // rule.
  int32_t array_of(int32_t item, int64_t min, int64_t max, int32_t next);

  // A key with its quotes, without escapes, other than `names`.
  int32_t key_other_than(std::vector<std::string> names, int32_t next);

 private:
  int32_t character(int32_t next);   // one of a string
  int32_t characters(int32_t next);  // any number of them
  int32_t digits(int min, int max, int32_t next);
  int32_t magnitudes(int64_t min, int64_t max, int32_t next);
  int32_t key_tail(std::span<const std::string> names, size_t depth, int32_t plain_tail,
                   int32_t next);
  template <typename Define>
  int32_t rule(int32_t& id, Define define);

  GrammarBuilder& builder_;
  int32_t whitespace_ = -1;
  int32_t colon_ = -1;
  int32_t string_ = -1;
  int32_t character_ = -1;
  int32_t integer_ = -1;
  int32_t number_ = -1;
  int32_t value_ = -1;
  int32_t object_ = -1;
  int32_t array_ = -1;
};

}  // namespace nibble
