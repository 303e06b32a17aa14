#include "nibble/engine/block_pool.h"

#include <algorithm>
#include <unordered_set>

#include "nibble/base/check.h"

namespace nibble {

BlockPool::BlockPool(int32_t num_blocks, int32_t block_size) : block_size_(block_size) {
  NIBBLE_CHECK(num_blocks >= 1 && block_size >= 1);
  blocks_.resize(static_cast<size_t>(num_blocks));
  for (int32_t i = 0; i < num_blocks; ++i) push_free(i, true);
}

void BlockPool::push_free(int32_t index, bool at_back) {
  Block& block = blocks_[static_cast<size_t>(index)];
  block.previous = at_back ? last_free_ : -1;
  block.next = at_back ? -1 : first_free_;
  if (block.previous >= 0) blocks_[static_cast<size_t>(block.previous)].next = index;
  if (block.next >= 0) blocks_[static_cast<size_t>(block.next)].previous = index;
  if (block.previous < 0) first_free_ = index;
  if (block.next < 0) last_free_ = index;
  ++num_free_;
  if (block.identity >= 0) ++num_cached_;
}

void BlockPool::remove_free(int32_t index) {
  Block& block = blocks_[static_cast<size_t>(index)];
  if (block.previous >= 0) {
    blocks_[static_cast<size_t>(block.previous)].next = block.next;
  } else {
    first_free_ = block.next;
  }
  if (block.next >= 0) {
    blocks_[static_cast<size_t>(block.next)].previous = block.previous;
  } else {
    last_free_ = block.previous;
  }
  --num_free_;
  if (block.identity >= 0) --num_cached_;
}

std::optional<int32_t> BlockPool::take() {
  if (first_free_ < 0) return std::nullopt;
  const int32_t index = first_free_;
  remove_free(index);
  Block& block = blocks_[static_cast<size_t>(index)];
  unpublish(block, index);
  block.users = 1;
  return index;
}

void BlockPool::share(int32_t block) {
  Block& shared = blocks_[static_cast<size_t>(block)];
  if (shared.users == 0) remove_free(block);
  ++shared.users;
}

void BlockPool::release(int32_t block) {
  Block& released = blocks_[static_cast<size_t>(block)];
  NIBBLE_CHECK(released.users > 0);
  if (--released.users == 0) push_free(block, released.identity >= 0);
}

int64_t BlockPool::root(std::string_view salt) {
  const auto found = roots_.find(salt);
  if (found != roots_.end()) return found->second;
  // Salts come from clients, so those behind which nothing is published are forgotten. A sequence
  // that still holds such an identity publishes what nobody will look for.
  if (roots_.size() > 2 * blocks_.size() + 64) {
    std::unordered_set<int64_t> parents;
    for (const Block& block : blocks_) {
      if (block.identity >= 0) parents.insert(block.parent);
    }
    std::erase_if(roots_, [&](const auto& entry) { return !parents.contains(entry.second); });
  }
  const int64_t identity = next_identity_++;
  roots_.emplace(salt, identity);
  return identity;
}

uint64_t BlockPool::hash(int64_t parent, std::span<const int32_t> tokens, int32_t num_expanded) {
  // Finds the bucket only: find() compares everything.
  uint64_t value =
      static_cast<uint64_t>(parent) * 0x9E3779B97F4A7C15 + static_cast<uint64_t>(num_expanded);
  for (const int32_t token : tokens) {
    value = (value ^ static_cast<uint64_t>(token)) * 0xD6E8FEB86659FD93;
    value ^= value >> 32;
  }
  return value;
}

std::optional<int32_t> BlockPool::find(int64_t parent, std::span<const int32_t> tokens,
                                       int32_t num_expanded) const {
  const auto [begin, end] = published_.equal_range(hash(parent, tokens, num_expanded));
  for (auto it = begin; it != end; ++it) {
    const Block& block = blocks_[static_cast<size_t>(it->second)];
    if (block.parent == parent && block.num_expanded == num_expanded &&
        std::equal(tokens.begin(), tokens.end(), block.tokens.begin(), block.tokens.end())) {
      return it->second;
    }
  }
  return std::nullopt;
}

void BlockPool::publish(int32_t block, int64_t parent, std::span<const int32_t> tokens,
                        int32_t num_expanded) {
  Block& published = blocks_[static_cast<size_t>(block)];
  NIBBLE_CHECK(published.users > 0 && published.identity < 0);
  NIBBLE_CHECK(static_cast<int32_t>(tokens.size()) == block_size_);
  if (find(parent, tokens, num_expanded)) return;
  published.identity = next_identity_++;
  published.parent = parent;
  published.num_expanded = num_expanded;
  published.tokens.assign(tokens.begin(), tokens.end());
  published_.emplace(hash(parent, tokens, num_expanded), block);
}

int64_t BlockPool::identity(int32_t block) const {
  return blocks_[static_cast<size_t>(block)].identity;
}

void BlockPool::unpublish(Block& block, int32_t index) {
  if (block.identity < 0) return;
  const auto [begin, end] =
      published_.equal_range(hash(block.parent, block.tokens, block.num_expanded));
  for (auto it = begin; it != end; ++it) {
    if (it->second == index) {
      published_.erase(it);
      break;
    }
  }
  block.identity = -1;
  block.tokens.clear();
}

void BlockPool::forget() {
  for (size_t i = 0; i < blocks_.size(); ++i) {
    if (blocks_[i].users == 0 && blocks_[i].identity >= 0) --num_cached_;
    unpublish(blocks_[i], static_cast<int32_t>(i));
  }
  roots_.clear();
}

}  // namespace nibble
