#include "nibble/tokenizer/bpe.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <string>

namespace nibble {
namespace {

std::array<int32_t, 256> identity_bytes() {
  std::array<int32_t, 256> ids{};
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int32_t>(i);
  return ids;
}

std::vector<int32_t> encode_with(const std::vector<BpeMerge>& merges, std::string_view word) {
  std::vector<int32_t> ids;
  Bpe(identity_bytes(), merges).encode(word, ids);
  return ids;
}

using Ids = std::vector<int32_t>;

TEST(Bpe, WithoutMergesEveryByteIsAToken) {
  EXPECT_EQ(encode_with({}, "a\xff"), (Ids{'a', 0xff}));
  EXPECT_EQ(encode_with({}, ""), Ids());
}

// ab before bc: in "abc" the first wins although both are possible.
TEST(Bpe, TheBestRankIsMergedFirst) {
  EXPECT_EQ(encode_with({{'a', 'b', 300}, {'b', 'c', 301}}, "abc"), (Ids{300, 'c'}));
  EXPECT_EQ(encode_with({{'b', 'c', 301}, {'a', 'b', 300}}, "abc"), (Ids{'a', 301}));
}

TEST(Bpe, AmongEqualsTheLeftmostIsMergedFirst) {
  EXPECT_EQ(encode_with({{'a', 'a', 300}}, "aaa"), (Ids{300, 'a'}));
  EXPECT_EQ(encode_with({{'a', 'a', 300}}, "aaaaa"), (Ids{300, 300, 'a'}));
}

TEST(Bpe, MergedTokensMergeFurther) {
  EXPECT_EQ(
      encode_with({{'l', 'l', 300}, {'h', 'e', 301}, {301, 300, 302}, {302, 'o', 303}}, "hello"),
      Ids{303});
}

TEST(Bpe, TheLaterOfTwoMergesOfOnePairCounts) {
  EXPECT_EQ(encode_with({{'a', 'b', 300}, {'b', 'c', 301}, {'a', 'b', 302}}, "abc"),
            (Ids{'a', 301}));
}

// The definition, written to be read: as long as there is a pair with a merge, apply the best one.
Ids reference_bpe(const std::vector<BpeMerge>& merges, std::string_view word) {
  Ids ids;
  for (const char c : word) ids.push_back(static_cast<uint8_t>(c));
  for (;;) {
    size_t best_rank = merges.size();
    size_t best_place = 0;
    for (size_t i = 0; i + 1 < ids.size(); ++i) {
      for (size_t rank = 0; rank < best_rank; ++rank) {
        if (merges[rank].left == ids[i] && merges[rank].right == ids[i + 1]) {
          best_rank = rank;
          best_place = i;
        }
      }
    }
    if (best_rank == merges.size()) return ids;
    ids[best_place] = merges[best_rank].result;
    ids.erase(ids.begin() + static_cast<ptrdiff_t>(best_place) + 1);
  }
}

TEST(Bpe, ShortAndLongWordsFollowTheDefinition) {
  std::mt19937 rng(3);
  for (int round = 0; round < 40; ++round) {
    // Random merges over the letters a, b, c and what came before.
    std::vector<BpeMerge> merges;
    std::vector<int32_t> symbols = {'a', 'b', 'c'};
    for (int32_t id = 256; id < 276; ++id) {
      const BpeMerge merge{symbols[rng() % symbols.size()], symbols[rng() % symbols.size()], id};
      merges.push_back(merge);
      symbols.push_back(id);
    }
    std::shuffle(merges.begin(), merges.end(), rng);
    // Only the last of two merges of a pair exists for the reference.
    for (size_t i = 0; i < merges.size(); ++i) {
      for (size_t k = i + 1; k < merges.size(); ++k) {
        if (merges[i].left == merges[k].left && merges[i].right == merges[k].right) {
          merges[i] = {-1, -1, 0};
        }
      }
    }
    std::vector<BpeMerge> distinct;
    for (const BpeMerge& merge : merges) {
      if (merge.left >= 0) distinct.push_back(merge);
    }
    const Bpe bpe(identity_bytes(), distinct);
    for (const size_t length : {1u, 2u, 7u, 47u, 48u, 49u, 50u, 130u}) {
      std::string word;
      for (size_t i = 0; i < length; ++i) word += static_cast<char>('a' + rng() % 3);
      Ids ids;
      bpe.encode(word, ids);
      EXPECT_EQ(ids, reference_bpe(distinct, word)) << word;
    }
  }
}

// 2^20 letters and merges that double: each power of two down to one token. Quadratic work would
// take minutes.
TEST(Bpe, AMillionEqualLettersTakeNoQuadraticTime) {
  std::vector<BpeMerge> merges = {{'a', 'a', 300}};
  for (int32_t id = 300; id < 306; ++id) merges.push_back({id, id, id + 1});
  const Ids ids = encode_with(merges, std::string((1 << 20) + 1, 'a'));
  // 2^20 / 2^7 tokens of 128 letters, and one letter over.
  ASSERT_EQ(ids.size(), (1u << 13) + 1);
  EXPECT_EQ(ids.front(), 306);
  EXPECT_EQ(ids.back(), 'a');
}

}  // namespace
}  // namespace nibble
