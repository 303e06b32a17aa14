#include "nibble/tokenizer/bpe.h"

#include <algorithm>
#include <bit>
#include <functional>
#include <queue>

namespace nibble {
namespace {

// Up to here scanning a small array for the best rank beats keeping a queue.
constexpr size_t kShortWord = 48;

constexpr uint64_t kNoPair = ~uint64_t{0};  // ids are never negative, so no pair looks like this

uint64_t pair_key(int32_t left, int32_t right) {
  return uint64_t{static_cast<uint32_t>(left)} << 32 | static_cast<uint32_t>(right);
}

// Fibonacci hashing: the upper bits of the product depend on all bits of both ids.
size_t home_slot(uint64_t pair, int shift) {
  return static_cast<size_t>((pair ^ pair >> 29) * 0x9e3779b97f4a7c15u >> shift);
}

}  // namespace

Bpe::Bpe(const std::array<int32_t, 256>& byte_ids, std::span<const BpeMerge> merges)
    : byte_ids_(byte_ids) {
  const size_t size = std::bit_ceil(std::max<size_t>(merges.size() * 2, 16));
  shift_ = 64 - std::countr_zero(size);
  slots_.assign(size, Slot{kNoPair, kNoRank});
  results_.reserve(merges.size());
  for (const BpeMerge& merge : merges) {
    const uint64_t pair = pair_key(merge.left, merge.right);
    size_t slot = home_slot(pair, shift_);
    while (slots_[slot].pair != kNoPair && slots_[slot].pair != pair) {
      slot = (slot + 1) & (size - 1);
    }
    slots_[slot] = {pair, static_cast<int32_t>(results_.size())};
    results_.push_back(merge.result);
  }
}

int32_t Bpe::rank_of(int32_t left, int32_t right) const {
  const uint64_t pair = pair_key(left, right);
  size_t slot = home_slot(pair, shift_);
  while (slots_[slot].pair != pair) {
    if (slots_[slot].pair == kNoPair) return kNoRank;
    slot = (slot + 1) & (slots_.size() - 1);
  }
  return slots_[slot].rank;
}

void Bpe::encode(std::string_view word, std::vector<int32_t>& out) const {
  if (word.size() <= kShortWord) {
    encode_short(word, out);
  } else {
    encode_long(word, out);
  }
}

void Bpe::encode_short(std::string_view word, std::vector<int32_t>& out) const {
  std::array<int32_t, kShortWord> ids;
  std::array<int32_t, kShortWord> ranks;  // of the pair (i, i + 1); kNoRank for the last
  size_t n = word.size();
  for (size_t i = 0; i < n; ++i) ids[i] = byte_ids_[static_cast<uint8_t>(word[i])];
  for (size_t i = 0; i < n; ++i) ranks[i] = i + 1 < n ? rank_of(ids[i], ids[i + 1]) : kNoRank;
  while (n > 1) {
    const auto best = static_cast<size_t>(
        std::min_element(ranks.begin(), ranks.begin() + static_cast<ptrdiff_t>(n)) - ranks.begin());
    if (ranks[best] == kNoRank) break;
    ids[best] = results_[static_cast<size_t>(ranks[best])];
    std::copy(ids.begin() + static_cast<ptrdiff_t>(best) + 2,
              ids.begin() + static_cast<ptrdiff_t>(n),
              ids.begin() + static_cast<ptrdiff_t>(best) + 1);
    std::copy(ranks.begin() + static_cast<ptrdiff_t>(best) + 1,
              ranks.begin() + static_cast<ptrdiff_t>(n),
              ranks.begin() + static_cast<ptrdiff_t>(best));
    --n;
    ranks[best] = best + 1 < n ? rank_of(ids[best], ids[best + 1]) : kNoRank;
    if (best > 0) ranks[best - 1] = rank_of(ids[best - 1], ids[best]);
  }
  out.insert(out.end(), ids.begin(), ids.begin() + static_cast<ptrdiff_t>(n));
}

// A list of symbols and a queue of (rank, position of the left symbol). An entry whose pair has
// changed meanwhile is passed over: its rank is no longer that of the pair at its position.
void Bpe::encode_long(std::string_view word, std::vector<int32_t>& out) const {
  struct Symbol {
    int32_t id;  // -1: merged into its left neighbour
    uint32_t previous;
    uint32_t next;
  };
  constexpr uint32_t kNone = UINT32_MAX;
  const auto n = static_cast<uint32_t>(word.size());
  std::vector<Symbol> symbols(n);
  for (uint32_t i = 0; i < n; ++i) {
    symbols[i] = {byte_ids_[static_cast<uint8_t>(word[i])], i == 0 ? kNone : i - 1,
                  i + 1 == n ? kNone : i + 1};
  }
  const auto rank_at = [&](uint32_t i) {
    const uint32_t next = symbols[i].next;
    return next == kNone ? kNoRank : rank_of(symbols[i].id, symbols[next].id);
  };

  std::vector<uint64_t> entries;  // rank << 32 | position
  entries.reserve(n);
  for (uint32_t i = 0; i < n; ++i) {
    if (const int32_t rank = rank_at(i); rank != kNoRank) {
      entries.push_back(static_cast<uint64_t>(rank) << 32 | i);
    }
  }
  std::priority_queue queue(std::greater<uint64_t>(), std::move(entries));
  const auto push = [&](uint32_t i) {
    if (const int32_t rank = rank_at(i); rank != kNoRank) {
      queue.push(static_cast<uint64_t>(rank) << 32 | i);
    }
  };
  while (!queue.empty()) {
    const uint64_t entry = queue.top();
    queue.pop();
    const auto i = static_cast<uint32_t>(entry);
    const auto rank = static_cast<int32_t>(entry >> 32);
    if (symbols[i].id < 0 || rank_at(i) != rank) continue;
    const uint32_t gone = symbols[i].next;
    symbols[i].id = results_[static_cast<size_t>(rank)];
    symbols[i].next = symbols[gone].next;
    symbols[gone].id = -1;
    if (symbols[i].next != kNone) symbols[symbols[i].next].previous = i;
    push(i);
    if (symbols[i].previous != kNone) push(symbols[i].previous);
  }
  for (uint32_t i = 0; i != kNone; i = symbols[i].next) out.push_back(symbols[i].id);
}

}  // namespace nibble
