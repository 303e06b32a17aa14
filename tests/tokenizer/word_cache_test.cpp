#include "nibble/tokenizer/word_cache.h"

#include <gtest/gtest.h>

namespace nibble {
namespace {

TEST(WordCache, GivesBackWhatWasStoredAndNothingElse) {
  WordCache cache;
  std::span<const int32_t> ids;
  EXPECT_FALSE(cache.find("a", &ids));
  cache.insert("a", std::vector<int32_t>{1});
  cache.insert(std::string_view("a\0", 2), std::vector<int32_t>{1, 2});
  ASSERT_TRUE(cache.find("a", &ids));
  EXPECT_EQ(std::vector<int32_t>(ids.begin(), ids.end()), (std::vector<int32_t>{1}));
  ASSERT_TRUE(cache.find(std::string_view("a\0", 2), &ids));
  EXPECT_EQ(std::vector<int32_t>(ids.begin(), ids.end()), (std::vector<int32_t>{1, 2}));
  EXPECT_FALSE(cache.find("b", &ids));
}

// 200,000 words are more than it keeps: an entry may be gone, but never wrong.
TEST(WordCache, StaysRightWhenItOverflows) {
  WordCache cache;
  std::span<const int32_t> ids;
  int found = 0;
  for (int32_t i = 0; i < 200'000; ++i) {
    cache.insert(std::to_string(i), std::vector<int32_t>{i, -i});
    ASSERT_TRUE(cache.find(std::to_string(i), &ids));
    ASSERT_EQ(ids[0], i);
    const int32_t earlier = i / 2;
    if (cache.find(std::to_string(earlier), &ids)) {
      ++found;
      ASSERT_EQ(ids[0], earlier);
      ASSERT_EQ(ids[1], -earlier);
    }
  }
  EXPECT_GT(found, 1000);
}

TEST(WordCache, DoesNotKeepLongWords) {
  WordCache cache;
  std::span<const int32_t> ids;
  cache.insert(std::string(1000, 'a'), std::vector<int32_t>(500, 7));
  EXPECT_FALSE(cache.find(std::string(1000, 'a'), &ids));
}

}  // namespace
}  // namespace nibble
