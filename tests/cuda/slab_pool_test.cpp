#include "nibble/device/cuda/slab_pool.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <set>
#include <vector>

namespace nibble {
namespace {

constexpr size_t kMiB = size_t{1} << 20;

TEST(SlabPool, GivesDisjointAlignedPiecesAndSlabsBack) {
  std::set<void*> slabs;
  SlabPool pool(
      [&](size_t bytes) {
        void* data = std::aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
        slabs.insert(data);
        return data;
      },
      [&](void* data) {
        EXPECT_EQ(slabs.erase(data), 1U);
        std::free(data);
      });
  std::vector<std::pair<std::byte*, size_t>> pieces;
  for (size_t i = 0; i < 400; ++i) {
    const size_t bytes = i % 7 == 0 ? 20 * kMiB : 1 + i * 1000;
    auto* piece = static_cast<std::byte*>(pool.allocate(bytes));
    ASSERT_NE(piece, nullptr);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(piece) % 256, 0U);
    for (const auto& [other, size] : pieces) {
      EXPECT_TRUE(piece + bytes <= other || other + size <= piece);
    }
    pieces.emplace_back(piece, bytes);
  }
  EXPECT_GT(slabs.size(), 1U);
  EXPECT_LT(slabs.size(), 20U);
  int elsewhere = 0;
  EXPECT_FALSE(pool.deallocate(&elsewhere, 4));
  for (const auto& [piece, size] : pieces) EXPECT_TRUE(pool.deallocate(piece, size));
  EXPECT_TRUE(slabs.empty());
  EXPECT_EQ(pool.unused_bytes(), 0U);
}

// When there is no room for a slab, the bytes alone may still fit.
TEST(SlabPool, TakesTheLastBytes) {
  SlabPool pool([&](size_t bytes) { return bytes <= kMiB ? std::malloc(bytes) : nullptr; },
                [](void* data) { std::free(data); });
  void* const piece = pool.allocate(1000);
  EXPECT_NE(piece, nullptr);
  EXPECT_EQ(pool.allocate(2 * kMiB), nullptr);
  EXPECT_TRUE(pool.deallocate(piece, 1000));
}

}  // namespace
}  // namespace nibble
