#include "nibble/tokenizer/added_tokens.h"

#include <algorithm>

namespace nibble {

AddedTokenMatcher::AddedTokenMatcher(std::span<const AddedToken> tokens) {
  for (const AddedToken& token : tokens) {
    entries_.push_back({token.content, token.id});
    first_bytes_.set(static_cast<uint8_t>(token.content[0]));
  }
  std::sort(entries_.begin(), entries_.end(),
            [](const Entry& a, const Entry& b) { return a.content < b.content; });
}

AddedTokenMatcher::Match AddedTokenMatcher::find(std::string_view text, size_t start) const {
  for (size_t i = start; i < text.size(); ++i) {
    if (!first_bytes_[static_cast<uint8_t>(text[i])]) continue;
    // The entries that agree with the text so far, narrowed byte by byte. An entry as long as what
    // was compared sorts before the longer ones with the same beginning.
    auto low = entries_.begin();
    auto high = entries_.end();
    Match longest{i, i, 0};
    for (size_t length = 0; low != high; ++length) {
      if (low->content.size() == length) {
        longest = {i, i + length, low->id};
        ++low;
      }
      if (i + length >= text.size()) break;
      const auto byte = static_cast<uint8_t>(text[i + length]);
      low = std::partition_point(low, high, [&](const Entry& entry) {
        return static_cast<uint8_t>(entry.content[length]) < byte;
      });
      high = std::partition_point(low, high, [&](const Entry& entry) {
        return static_cast<uint8_t>(entry.content[length]) == byte;
      });
    }
    if (longest.end > i) return longest;
  }
  return {text.size(), text.size(), 0};
}

}  // namespace nibble
