// Tool calls as the model wrote them, for when a history brings them back: the same tokens again
// find their blocks in the prefix cache, which other tokens of the same text would not.
#pragma once

#include <cstdint>
#include <list>
#include <mutex>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "nibble/server/reply_parser.h"

namespace nibble {

// A call in a conversation.
struct NamedCall {
  std::string id;
  std::string name;
  std::string arguments;  // JSON text
};

// Thread-safe. The oldest calls are forgotten first.
class CallMemory {
 public:
  explicit CallMemory(size_t max_calls = 10000, size_t max_tokens = size_t{4} << 20)
      : max_calls_(max_calls), max_tokens_(max_tokens) {}

  // `reply` holds the calls in order, each between its begin and end tag; nothing is remembered
  // when there are more or fewer.
  void remember(const std::vector<NamedCall>& calls, const std::vector<int32_t>& reply,
                const ReplyTags& tags);

  // Puts the remembered tokens in the place of those calls of `prompt` that have the same id, name
  // and arguments, the latter as JSON. `calls`: all of the conversation, in order. How many.
  size_t replay(const std::vector<NamedCall>& calls, const ReplyTags& tags,
                std::vector<int32_t>* prompt) const;

  size_t size() const;

 private:
  struct Entry {
    std::string key;
    std::string name;
    std::string arguments;
    std::vector<int32_t> ids;  // between the tags
  };

  size_t max_calls_;
  size_t max_tokens_;
  mutable std::mutex mutex_;
  std::list<Entry> entries_;  // oldest in front
  std::unordered_map<std::string, std::list<Entry>::iterator> by_key_;
  size_t num_tokens_ = 0;
};

}  // namespace nibble
