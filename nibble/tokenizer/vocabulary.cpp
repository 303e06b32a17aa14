#include "nibble/tokenizer/vocabulary.h"

#include <utility>

#include "nibble/tokenizer/byte_level.h"

namespace nibble {

Vocabulary::Vocabulary(std::vector<std::string> texts) {
  tokens_.reserve(texts.size());
  by_text_.reserve(texts.size());
  for (std::string& text : texts) {
    auto bytes = alphabet_to_bytes(text);
    if (!bytes) bytes = text;
    const auto id = static_cast<int32_t>(tokens_.size());
    tokens_.push_back({std::move(text), *std::move(bytes)});
    if (!tokens_.back().text.empty()) by_text_.emplace(tokens_.back().text, id);
  }
}

std::string_view Vocabulary::text(int32_t id) const {
  if (id < 0 || id >= size()) return {};
  return tokens_[static_cast<size_t>(id)].text;
}

std::string_view Vocabulary::bytes(int32_t id) const {
  if (id < 0 || id >= size()) return {};
  return tokens_[static_cast<size_t>(id)].bytes;
}

std::optional<int32_t> Vocabulary::find(std::string_view text) const {
  const auto found = by_text_.find(text);
  if (found == by_text_.end()) return std::nullopt;
  return found->second;
}

}  // namespace nibble
