// Who uses which block of the KV cache, and which blocks can be found again by their tokens.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace nibble {

// Holds no device memory: a block is an index into the pages, the same in every layer.
//
// A full block may be published under its tokens and the published block before it. It can then be
// found and shared, also when its last user is gone, until its room is needed: blocks that nobody
// uses are taken again least recently freed first, those that nobody could find before all others.
//
// A block is known by its parent's identity and a comparison of its own tokens, never by a hash
// alone, so that no two prompts can be taken for each other.
//
// Not thread-safe: the engine's thread is its only user.
class BlockPool {
 public:
  // num_blocks >= 1; block_size >= 1, in tokens.
  BlockPool(int32_t num_blocks, int32_t block_size);

  int32_t num_blocks() const { return static_cast<int32_t>(blocks_.size()); }
  int32_t block_size() const { return block_size_; }
  // Blocks that nobody uses; each can be taken.
  int32_t num_free() const { return num_free_; }
  int32_t num_used() const { return num_blocks() - num_free_; }
  // Free blocks that can still be found.
  int32_t num_cached() const { return num_cached_; }

  // A block with one user, or nothing when all are used. What it held can't be found any more.
  std::optional<int32_t> take();

  // One more user of a block that has users, or was found.
  void share(int32_t block);

  // One user less; at zero the block is free. Free a sequence's last blocks first: they are the
  // least likely to be found again.
  void release(int32_t block);

  // The start of a chain: blocks under different salts never meet.
  int64_t root(std::string_view salt);

  // The published block behind `parent` (a root, or identity() of a published block) that holds
  // `tokens`, block_size of them, of which the first num_expanded were computed in MlaForm::
  // kExpanded. The caller shares it before it takes any other block.
  std::optional<int32_t> find(int64_t parent, std::span<const int32_t> tokens,
                              int32_t num_expanded) const;

  // Makes a used block findable. Where such a block is published already, this one stays private.
  void publish(int32_t block, int64_t parent, std::span<const int32_t> tokens,
               int32_t num_expanded);

  // Of a published block: what its children name as parent; otherwise -1.
  int64_t identity(int32_t block) const;

  // How many users a block has.
  int32_t num_users(int32_t block) const { return blocks_[static_cast<size_t>(block)].users; }

  // Salts that are remembered.
  size_t num_roots() const { return roots_.size(); }

  // Forgets all that is published; used blocks stay used.
  void forget();

 private:
  struct Block {
    int32_t users = 0;
    int64_t identity = -1;  // -1: not published
    int64_t parent = -1;
    int32_t num_expanded = 0;
    std::vector<int32_t> tokens;
    // Neighbours in the list of free blocks, -1 at its ends.
    int32_t previous = -1;
    int32_t next = -1;
  };

  void unpublish(Block& block, int32_t index);
  void push_free(int32_t index, bool at_back);
  void remove_free(int32_t index);
  static uint64_t hash(int64_t parent, std::span<const int32_t> tokens, int32_t num_expanded);

  int32_t block_size_;
  std::vector<Block> blocks_;
  int32_t first_free_ = -1;
  int32_t last_free_ = -1;
  int32_t num_free_ = 0;
  int32_t num_cached_ = 0;
  int64_t next_identity_ = 0;
  std::map<std::string, int64_t, std::less<>> roots_;
  std::unordered_multimap<uint64_t, int32_t> published_;  // hash -> block
};

}  // namespace nibble
