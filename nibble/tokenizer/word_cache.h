// The ids of words met before. Text repeats its words, and a look-up costs a small part of a merge.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace nibble {

// Bounded: about 2 MiB when full. A word looks for its place among kWays neighbours only, so text
// that was made to collide costs a miss, not a search. Not thread-safe; each thread has its own.
class WordCache {
 public:
  // The ids stored for `word`; valid until the next insert. False when it is not there.
  bool find(std::string_view word, std::span<const int32_t>* ids) const;

  // Does nothing for a word too long to be met often.
  void insert(std::string_view word, std::span<const int32_t> ids);

 private:
  struct Slot {
    uint64_t hash = 0;
    uint32_t word_begin = 0;  // in words_
    uint32_t ids_begin = 0;   // in ids_
    uint16_t word_size = 0;   // 0: free
    uint16_t num_ids = 0;
  };
  std::vector<Slot> slots_;  // allocated at the first insert
  std::string words_;
  std::vector<int32_t> ids_;
};

}  // namespace nibble
