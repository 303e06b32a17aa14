// The bytes of all tokens as a trie, so that a mask costs one walk instead of one walk a token.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/tokenizer/tokenizer.h"

namespace nibble {

// Immutable. Leaves out tokens without bytes and added tokens: "</think>" inside a JSON string is
// spelled with ordinary tokens or not at all.
class TokenTrie {
 public:
  // vocab_size is the model's, at least the tokenizer's; eos_ids are below it.
  TokenTrie(const Tokenizer& tokenizer, int64_t vocab_size, std::vector<int32_t> eos_ids);

  // From the bytes of each token; an empty text is left out.
  TokenTrie(std::vector<std::string> token_bytes, int64_t vocab_size, std::vector<int32_t> eos_ids);

  int64_t vocab_size() const { return vocab_size_; }
  std::span<const int32_t> eos_ids() const { return eos_ids_; }
  bool is_eos(int32_t id) const;

  // Empty for tokens that are left out.
  std::string_view token_bytes(int32_t id) const;

  // The tokens of newlines only.
  std::span<const int32_t> newline_ids() const { return newline_ids_; }

  // The length of the longest token.
  int64_t max_token_bytes() const { return max_token_bytes_; }

  // Nodes in preorder: what begins with a node's bytes is at node .. end - 1.
  struct Node {
    int32_t end = 0;
    int32_t first_id = 0;  // its own tokens are ids()[first_id] up to the next node's first_id
    uint16_t depth = 0;    // bytes from the root to here, 1 or more
    uint8_t byte = 0;
  };
  int32_t num_nodes() const { return static_cast<int32_t>(nodes_.size()) - 1; }
  // One more than num_nodes(), the last only for its first_id.
  std::span<const Node> nodes() const { return nodes_; }
  // Token ids in the order of their bytes.
  std::span<const int32_t> ids() const { return ids_; }

 private:
  void build();

  std::vector<std::string> token_bytes_;
  int64_t vocab_size_;
  std::vector<int32_t> eos_ids_;
  std::vector<Node> nodes_;
  std::vector<int32_t> ids_;
  std::vector<int32_t> newline_ids_;
  int64_t max_token_bytes_ = 0;
};

}  // namespace nibble
