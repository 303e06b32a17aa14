// A set of token ids: which tokens may come next.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace nibble {

// One bit for each id below vocab_size; bits beyond it stay 0.
class TokenMask {
 public:
  TokenMask() = default;
  explicit TokenMask(int64_t vocab_size)
      : vocab_size_(vocab_size), words_(static_cast<size_t>((vocab_size + 63) / 64)) {}

  int64_t vocab_size() const { return vocab_size_; }
  bool allows(int64_t id) const {
    return id >= 0 && id < vocab_size_ &&
           (words_[static_cast<size_t>(id / 64)] >> (id % 64) & 1) != 0;
  }
  // 0 <= id < vocab_size.
  void allow(int64_t id) { words_[static_cast<size_t>(id / 64)] |= uint64_t{1} << (id % 64); }
  void clear() { words_.assign(words_.size(), 0); }
  // Allows what `other`, of the same vocab_size, allows too.
  void merge(const TokenMask& other) {
    for (size_t i = 0; i < words_.size(); ++i) words_[i] |= other.words_[i];
  }
  int64_t count() const {
    int64_t total = 0;
    for (const uint64_t word : words_) total += __builtin_popcountll(word);
    return total;
  }
  // Bit id % 64 of word id / 64 is id's.
  const std::vector<uint64_t>& words() const { return words_; }

  friend bool operator==(const TokenMask&, const TokenMask&) = default;

 private:
  int64_t vocab_size_ = 0;
  std::vector<uint64_t> words_;
};

}  // namespace nibble
