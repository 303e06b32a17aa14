// Token ids, their text in tokenizer.json and the bytes they stand for.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace nibble {

class Vocabulary {
 public:
  // Ids are below this, so that a file of a few bytes can't ask for gigabytes.
  static constexpr int32_t kMaxSize = 1 << 20;

  Vocabulary() = default;
  Vocabulary(Vocabulary&&) = default;
  Vocabulary& operator=(Vocabulary&&) = default;
  Vocabulary(const Vocabulary&) = delete;  // by_text_ points into tokens_
  Vocabulary& operator=(const Vocabulary&) = delete;

  // Takes tokens by id; an empty text marks an id without a token. Texts are distinct.
  explicit Vocabulary(std::vector<std::string> texts);

  // One more than the highest id.
  int32_t size() const { return static_cast<int32_t>(tokens_.size()); }

  // As written in the file: in the byte-level alphabet, or plain for an added token. Empty for an
  // id without a token.
  std::string_view text(int32_t id) const;

  // What the token adds to a decoded text: its text read in the byte-level alphabet, or its text
  // itself when a character of it isn't of that alphabet. Added tokens are read the same way, as
  // in Hugging Face's ByteLevel decoder.
  std::string_view bytes(int32_t id) const;

  std::optional<int32_t> find(std::string_view text) const;

 private:
  struct Token {
    std::string text;
    std::string bytes;
  };
  std::vector<Token> tokens_;
  std::unordered_map<std::string_view, int32_t> by_text_;
};

}  // namespace nibble
