// Telling a message's text from the template's: added tokens that a user, tool or system text
// spells are marked before rendering, and are encoded as plain text afterwards.
//
// A mark is a private-use character (U+F8FF when nothing uses it) after the first character of the
// spelling. It moves with the text through whatever the template does.
#pragma once

#include <string>
#include <string_view>

#include "nibble/base/result.h"
#include "nibble/tokenizer/added_tokens.h"
#include "nibble/tokenizer/jinja_value.h"

namespace nibble {

class ChatMarker {
 public:
  // Nothing is ever marked: a template's output is taken as it is.
  ChatMarker() = default;

  // Marks the spellings that `matcher` finds, which outlives this, with a character that neither
  // `variables` nor `source` holds. Errors: kInvalidArgument when they hold all 6400 of them.
  static Result<ChatMarker> choose(const AddedTokenMatcher& matcher, const jinja::Dict& variables,
                                   std::string_view source);

  // `text` with every spelling marked, also of those that overlap.
  std::string mark(std::string_view text) const;

  // A value with all strings in it marked, keys as well.
  jinja::Value mark(const jinja::Value& value) const;

  // `text` without marks.
  std::string unmark(std::string_view text) const;

  // Whether a spelling that ends at text[end] is marked behind: so is one of a single character.
  bool marks(std::string_view text, size_t end) const {
    return matcher_ != nullptr && text.substr(end).starts_with(mark_);
  }

 private:
  const AddedTokenMatcher* matcher_ = nullptr;
  std::string mark_;
};

}  // namespace nibble
