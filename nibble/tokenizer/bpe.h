// Byte pair encoding of one word: bytes to token ids by merging neighbours, best rank first.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

namespace nibble {

// `left` and `right` side by side become `result`. Ids of the vocabulary.
struct BpeMerge {
  int32_t left;
  int32_t right;
  int32_t result;
};

class Bpe {
 public:
  // byte_ids: the id of the token that is that one byte; merges: in order of rank, best first. Of
  // two merges of one pair the later counts, as in Hugging Face tokenizers.
  Bpe(const std::array<int32_t, 256>& byte_ids, std::span<const BpeMerge> merges);

  // Appends the ids of `word` to `out`: as long as two neighbours have a merge, the one of best
  // rank, leftmost among equals, is applied. O(n log n) for n bytes, n < 2^31.
  void encode(std::string_view word, std::vector<int32_t>& out) const;

 private:
  // An open-addressing table of pair -> rank. Half empty at least, so a probe ends soon.
  struct Slot {
    uint64_t pair;
    int32_t rank;
  };
  static constexpr int32_t kNoRank = INT32_MAX;

  int32_t rank_of(int32_t left, int32_t right) const;
  void encode_short(std::string_view word, std::vector<int32_t>& out) const;
  void encode_long(std::string_view word, std::vector<int32_t>& out) const;

  std::array<int32_t, 256> byte_ids_;
  std::vector<int32_t> results_;  // by rank
  std::vector<Slot> slots_;
  int shift_ = 0;  // 64 - log2(slots_.size())
};

}  // namespace nibble
