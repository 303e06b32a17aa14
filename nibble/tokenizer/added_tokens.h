// Finding added tokens ("<think>", "<｜User｜>") in text before it is tokenized.
#pragma once

#include <bitset>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace nibble {

// One entry of "added_tokens" in tokenizer.json.
struct AddedToken {
  int32_t id;
  std::string content;
  bool special;     // left out of decoded text on request
  bool normalized;  // looked for after the tokens that aren't, in the text between those
};

// Looks for a set of texts at once: leftmost first, longest among those that begin together.
class AddedTokenMatcher {
 public:
  AddedTokenMatcher() = default;

  // Contents are distinct and not empty.
  explicit AddedTokenMatcher(std::span<const AddedToken> tokens);

  struct Match {
    size_t begin;
    size_t end;  // == begin when nothing was found
    int32_t id;
  };

  // The first match that begins at byte `start` of `text` or later.
  Match find(std::string_view text, size_t start) const;

 private:
  struct Entry {
    std::string content;
    int32_t id;
  };
  std::vector<Entry> entries_;  // sorted by content, so that those with a common beginning adjoin
  std::bitset<256> first_bytes_;
};

}  // namespace nibble
