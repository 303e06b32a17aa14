#include "nibble/tokenizer/word_cache.h"

#include <cstring>

namespace nibble {
namespace {

constexpr size_t kSlots = 32768;  // a power of two
constexpr size_t kWays = 8;
constexpr size_t kMaxWordBytes = 64;
constexpr size_t kMaxStoredBytes = size_t{512} << 10;

uint64_t hash_of(std::string_view word) {
  // Eight bytes a step through a 64 x 64 -> 128 bit product, both halves folded together.
  const auto mix = [](uint64_t a, uint64_t b) {
    __extension__ using Wide = unsigned __int128;
    const Wide product = static_cast<Wide>(a) * b;
    return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
  };
  uint64_t hash = 0x9e3779b97f4a7c15u ^ word.size();
  size_t i = 0;
  for (; i + 8 <= word.size(); i += 8) {
    uint64_t chunk = 0;
    std::memcpy(&chunk, word.data() + i, 8);
    hash = mix(hash ^ chunk, 0xd6e8feb86659fd93u);
  }
  uint64_t rest = 0;
  for (; i < word.size(); ++i) rest = rest << 8 | static_cast<uint8_t>(word[i]);
  return mix(hash ^ rest, 0xa0761d6478bd642fu);
}

}  // namespace

bool WordCache::find(std::string_view word, std::span<const int32_t>* ids) const {
  if (slots_.empty() || word.size() > kMaxWordBytes) return false;
  const uint64_t hash = hash_of(word);
  for (size_t way = 0; way < kWays; ++way) {
    const Slot& slot = slots_[(hash + way) & (kSlots - 1)];
    if (slot.word_size == 0) return false;
    if (slot.hash == hash && slot.word_size == word.size() &&
        std::memcmp(words_.data() + slot.word_begin, word.data(), word.size()) == 0) {
      *ids = {ids_.data() + slot.ids_begin, slot.num_ids};
      return true;
    }
  }
  return false;
}

void WordCache::insert(std::string_view word, std::span<const int32_t> ids) {
  if (word.empty() || word.size() > kMaxWordBytes) return;
  if (slots_.empty() || words_.size() + word.size() > kMaxStoredBytes) {
    slots_.assign(kSlots, Slot{});
    words_.clear();
    ids_.clear();
  }
  const uint64_t hash = hash_of(word);
  size_t place = hash & (kSlots - 1);  // when all ways are taken the first one gives way
  for (size_t way = 0; way < kWays; ++way) {
    const size_t candidate = (hash + way) & (kSlots - 1);
    if (slots_[candidate].word_size == 0) {
      place = candidate;
      break;
    }
  }
  slots_[place] = {hash, static_cast<uint32_t>(words_.size()), static_cast<uint32_t>(ids_.size()),
                   static_cast<uint16_t>(word.size()), static_cast<uint16_t>(ids.size())};
  words_ += word;
  ids_.insert(ids_.end(), ids.begin(), ids.end());
}

}  // namespace nibble
