#include "nibble/engine/block_pool.h"

#include <gtest/gtest.h>

#include <numeric>
#include <random>

namespace nibble {
namespace {

std::vector<int32_t> block_tokens(int32_t first) {
  std::vector<int32_t> tokens(4);
  std::iota(tokens.begin(), tokens.end(), first);
  return tokens;
}

TEST(BlockPool, LendsEveryBlockOnceAndThenNone) {
  BlockPool pool(3, 4);
  std::vector<bool> seen(3);
  for (int i = 0; i < 3; ++i) {
    const auto block = pool.take();
    ASSERT_TRUE(block.has_value());
    EXPECT_FALSE(seen[static_cast<size_t>(*block)]);
    seen[static_cast<size_t>(*block)] = true;
  }
  EXPECT_FALSE(pool.take().has_value());
  pool.release(1);
  EXPECT_EQ(pool.take(), 1);
}

TEST(BlockPool, APublishedBlockIsFoundByItsTokensItsParentAndItsForm) {
  BlockPool pool(4, 4);
  const int64_t root = pool.root("");
  const int32_t first = *pool.take();
  pool.publish(first, root, block_tokens(10), 4);
  EXPECT_EQ(pool.find(root, block_tokens(10), 4), first);
  EXPECT_FALSE(pool.find(root, block_tokens(11), 4).has_value());
  EXPECT_FALSE(pool.find(root, block_tokens(10), 3).has_value());
  EXPECT_FALSE(pool.find(pool.root("other tenant"), block_tokens(10), 4).has_value());
  const int32_t second = *pool.take();
  pool.publish(second, pool.identity(first), block_tokens(20), 4);
  EXPECT_EQ(pool.find(pool.identity(first), block_tokens(20), 4), second);
  EXPECT_FALSE(pool.find(root, block_tokens(20), 4).has_value());
}

TEST(BlockPool, SaltsBehindWhichNothingIsPublishedAreForgotten) {
  BlockPool pool(4, 4);
  const int64_t kept = pool.root("tenant");
  const int32_t block = *pool.take();
  pool.publish(block, kept, block_tokens(10), 4);
  for (int i = 0; i < 10'000; ++i) (void)pool.root(std::to_string(i));
  EXPECT_LE(pool.num_roots(), 100u);
  EXPECT_EQ(pool.root("tenant"), kept);
  EXPECT_EQ(pool.find(kept, block_tokens(10), 4), block);
}

TEST(BlockPool, AFreedBlockIsFoundUntilItsRoomIsNeededLeastRecentlyFreedFirst) {
  BlockPool pool(3, 4);
  const int64_t root = pool.root("");
  for (int32_t i = 0; i < 3; ++i) pool.publish(*pool.take(), root, block_tokens(10 * i), 4);
  pool.release(1);
  pool.release(0);
  pool.release(2);
  EXPECT_EQ(pool.num_cached(), 3);
  EXPECT_EQ(pool.take(), 1);
  EXPECT_FALSE(pool.find(root, block_tokens(10), 4).has_value());
  EXPECT_EQ(pool.find(root, block_tokens(0), 4), 0);
  pool.share(0);
  EXPECT_EQ(pool.take(), 2);
  EXPECT_FALSE(pool.take().has_value());
  EXPECT_EQ(pool.num_users(0), 1);
}

TEST(BlockPool, BlocksNobodyCanFindAreTakenFirst) {
  BlockPool pool(2, 4);
  pool.publish(*pool.take(), pool.root(""), block_tokens(1), 4);
  EXPECT_EQ(pool.take(), 1);
  pool.release(0);
  pool.release(1);
  EXPECT_EQ(pool.take(), 1);
  EXPECT_EQ(pool.take(), 0);
}

TEST(BlockPool, TheSameContentIsPublishedOnce) {
  BlockPool pool(2, 4);
  const int64_t root = pool.root("");
  const int32_t first = *pool.take();
  const int32_t second = *pool.take();
  pool.publish(first, root, block_tokens(1), 4);
  pool.publish(second, root, block_tokens(1), 4);
  EXPECT_EQ(pool.find(root, block_tokens(1), 4), first);
  EXPECT_EQ(pool.identity(second), -1);
}

TEST(BlockPool, ForgettingKeepsUsersAndLosesContents) {
  BlockPool pool(2, 4);
  const int32_t block = *pool.take();
  pool.publish(block, pool.root(""), block_tokens(1), 4);
  pool.forget();
  EXPECT_FALSE(pool.find(pool.root(""), block_tokens(1), 4).has_value());
  EXPECT_EQ(pool.num_users(block), 1);
  pool.release(block);
  EXPECT_EQ(pool.num_cached(), 0);
  EXPECT_EQ(pool.num_free(), 2);
}

// Against a plain account of who uses what, over 100,000 random events.
TEST(BlockPool, NoBlockHasTwoOwnersAndAllComeBackUnderRandomEvents) {
  constexpr int32_t kBlocks = 37;
  BlockPool pool(kBlocks, 4);
  std::mt19937 rng(5);
  std::vector<int> users(kBlocks);
  std::vector<int32_t> held;  // one entry a user
  const int64_t root = pool.root("");
  for (int event = 0; event < 100000; ++event) {
    switch (rng() % 4) {
      case 0: {
        const auto block = pool.take();
        const auto in_use = std::count_if(users.begin(), users.end(), [](int u) { return u > 0; });
        ASSERT_EQ(block.has_value(), in_use < kBlocks);
        if (!block) break;
        ASSERT_EQ(users[static_cast<size_t>(*block)]++, 0);
        held.push_back(*block);
        break;
      }
      case 1: {
        if (held.empty()) break;
        const size_t i = rng() % held.size();
        --users[static_cast<size_t>(held[i])];
        pool.release(held[i]);
        held.erase(held.begin() + static_cast<int64_t>(i));
        break;
      }
      case 2: {
        if (held.empty()) break;
        const int32_t block = held[rng() % held.size()];
        if (pool.identity(block) < 0) {
          pool.publish(block, root, block_tokens(static_cast<int32_t>(rng() % 60)), 4);
        }
        break;
      }
      default: {
        const auto block = pool.find(root, block_tokens(static_cast<int32_t>(rng() % 60)), 4);
        if (!block) break;
        pool.share(*block);
        ++users[static_cast<size_t>(*block)];
        held.push_back(*block);
      }
    }
    const auto in_use = std::count_if(users.begin(), users.end(), [](int u) { return u > 0; });
    ASSERT_EQ(pool.num_used(), in_use);
    ASSERT_LE(pool.num_cached(), pool.num_free());
  }
  for (const int32_t block : held) pool.release(block);
  EXPECT_EQ(pool.num_free(), kBlocks);
}

}  // namespace
}  // namespace nibble
