#include "nibble/api/thinking_split.h"

#include <algorithm>

namespace nibble {

ThinkingSplit::ThinkingSplit(const Tokenizer& tokenizer, std::span<const int32_t> prompt,
                             bool skip_special_tokens)
    : detokenizer_(tokenizer, skip_special_tokens),
      think_begin_(tokenizer.token_id("<think>").value_or(-1)),
      think_end_(tokenizer.token_id("</think>").value_or(-1)) {
  for (const int32_t id : prompt) {
    if (id == think_begin_) thinking_ = true;
    if (id == think_end_) thinking_ = false;
  }
}

void ThinkingSplit::push(std::span<const int32_t> token_ids, std::string_view text,
                         std::string* reasoning, std::string* content) {
  for (const int32_t id : token_ids) {
    const size_t size = detokenizer_.push(id).size();
    num_decoded_ += size;
    if (id != think_begin_ && id != think_end_) continue;
    // An unfinished character in front of the tag comes as U+FFFD in the same piece.
    const size_t tag_size = id == think_begin_ ? std::string_view("<think>").size()
                                               : std::string_view("</think>").size();
    if (size >= tag_size) {
      tags_.push_back({num_decoded_ - tag_size, tag_size, id == think_begin_});
    }
  }
  while (!text.empty()) {
    if (tags_.empty() || num_given_ + text.size() <= tags_.front().begin) {
      num_given_ += text.size();
      give(text, reasoning, content);
      return;
    }
    const Tag tag = tags_.front();
    if (num_given_ < tag.begin) {
      const size_t before = tag.begin - num_given_;
      give(text.substr(0, before), reasoning, content);
      text.remove_prefix(before);
      num_given_ = tag.begin;
    }
    const size_t of_tag = std::min(text.size(), tag.begin + tag.size - num_given_);
    text.remove_prefix(of_tag);
    num_given_ += of_tag;
    if (num_given_ < tag.begin + tag.size) return;
    tags_.pop_front();
    thinking_ = tag.opens;
    after_tag_ = true;
    held_.clear();
  }
}

void ThinkingSplit::give(std::string_view text, std::string* reasoning, std::string* content) {
  if (after_tag_) {
    const size_t first = text.find_first_not_of('\n');
    if (first == std::string_view::npos) return;
    text.remove_prefix(first);
    after_tag_ = false;
  }
  if (!thinking_) {
    content->append(text);
    return;
  }
  const size_t last = text.find_last_not_of('\n');
  if (last == std::string_view::npos) {
    held_.append(text);
    return;
  }
  reasoning->append(held_).append(text.substr(0, last + 1));
  held_ = text.substr(last + 1);
}

}  // namespace nibble
