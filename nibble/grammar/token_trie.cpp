#include "nibble/grammar/token_trie.h"

#include <algorithm>
#include <limits>

#include "nibble/base/check.h"

namespace nibble {
namespace {

std::vector<std::string> ordinary_token_bytes(const Tokenizer& tokenizer) {
  std::vector<std::string> bytes;
  for (int32_t id = 0; id < tokenizer.vocab_size(); ++id) {
    bytes.emplace_back(tokenizer.is_special(id) ? "" : tokenizer.token_bytes(id));
  }
  for (const AddedToken& added : tokenizer.added_tokens()) {
    bytes[static_cast<size_t>(added.id)].clear();
  }
  return bytes;
}

}  // namespace

TokenTrie::TokenTrie(const Tokenizer& tokenizer, int64_t vocab_size, std::vector<int32_t> eos_ids)
    : TokenTrie(ordinary_token_bytes(tokenizer), vocab_size, std::move(eos_ids)) {}

TokenTrie::TokenTrie(std::vector<std::string> token_bytes, int64_t vocab_size,
                     std::vector<int32_t> eos_ids)
    : token_bytes_(std::move(token_bytes)), vocab_size_(vocab_size), eos_ids_(std::move(eos_ids)) {
  NIBBLE_CHECK(static_cast<int64_t>(token_bytes_.size()) <= vocab_size);
  for (const int32_t id : eos_ids_) {
    NIBBLE_CHECK(id >= 0 && id < vocab_size);
    if (static_cast<size_t>(id) < token_bytes_.size()) token_bytes_[static_cast<size_t>(id)] = "";
  }
  build();
}

bool TokenTrie::is_eos(int32_t id) const {
  return std::find(eos_ids_.begin(), eos_ids_.end(), id) != eos_ids_.end();
}

std::string_view TokenTrie::token_bytes(int32_t id) const {
  if (id < 0 || static_cast<size_t>(id) >= token_bytes_.size()) return {};
  return token_bytes_[static_cast<size_t>(id)];
}

void TokenTrie::build() {
  for (size_t id = 0; id < token_bytes_.size(); ++id) {
    const size_t size = token_bytes_[id].size();
    // A longer token, which no vocabulary has, could not be told from the depth.
    if (size == 0 || size > std::numeric_limits<uint16_t>::max()) continue;
    ids_.push_back(static_cast<int32_t>(id));
    if (token_bytes_[id].find_first_not_of('\n') == std::string::npos) {
      newline_ids_.push_back(static_cast<int32_t>(id));
    }
    max_token_bytes_ = std::max(max_token_bytes_, static_cast<int64_t>(size));
  }
  std::sort(ids_.begin(), ids_.end(),
            [&](int32_t a, int32_t b) { return token_bytes(a) < token_bytes(b); });
  std::vector<int32_t> path;  // the nodes from the root to the last token
  const auto close_from = [&](size_t depth) {
    for (; path.size() > depth; path.pop_back()) {
      nodes_[static_cast<size_t>(path.back())].end = static_cast<int32_t>(nodes_.size());
    }
  };
  std::string_view previous;
  for (size_t i = 0; i < ids_.size(); ++i) {
    const std::string_view bytes = token_bytes(ids_[i]);
    size_t common = 0;
    while (common < bytes.size() && common < previous.size() && bytes[common] == previous[common]) {
      ++common;
    }
    close_from(common);
    for (size_t depth = common; depth < bytes.size(); ++depth) {
      path.push_back(static_cast<int32_t>(nodes_.size()));
      nodes_.push_back({0, static_cast<int32_t>(i), static_cast<uint16_t>(depth + 1),
                        static_cast<uint8_t>(bytes[depth])});
    }
    previous = bytes;
  }
  close_from(0);
  nodes_.push_back(
      {static_cast<int32_t>(nodes_.size()) + 1, static_cast<int32_t>(ids_.size()), 0, 0});
}

}  // namespace nibble
