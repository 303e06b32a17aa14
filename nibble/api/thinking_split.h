// A chat's reply parted into what the model thought and what it answers.
#pragma once

#include <cstdint>
#include <deque>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "nibble/tokenizer/detokenizer.h"

namespace nibble {

// Tags are found by token id: a spelled "</think>" is text. The engine gives out text later than
// tokens (it may be the beginning of a stop string) and perhaps not all of it; so the tokens tell
// where in the text the tags stand, and the text is parted there.
//
// Newlines behind <think>, before and behind </think> belong to neither part. One for each choice;
// not thread-safe.
class ThinkingSplit {
 public:
  // `tokenizer` must outlive this. Inside a <think> of the prompt the reply begins as thinking.
  ThinkingSplit(const Tokenizer& tokenizer, std::span<const int32_t> prompt,
                bool skip_special_tokens);

  // New tokens, and the text that the engine gave out with them; appends to both parts. At the
  // end newlines that were held back are dropped.
  void push(std::span<const int32_t> token_ids, std::string_view text, std::string* reasoning,
            std::string* content);

 private:
  struct Tag {
    size_t begin = 0;  // in bytes of the whole text
    size_t size = 0;
    bool opens = false;
  };
  void give(std::string_view text, std::string* reasoning, std::string* content);

  Detokenizer detokenizer_;
  int32_t think_begin_;  // -1: the model has none
  int32_t think_end_;
  size_t num_decoded_ = 0;  // bytes of all tokens
  size_t num_given_ = 0;    // bytes of the text that came
  std::deque<Tag> tags_;    // not yet reached by the text
  bool thinking_ = false;
  bool after_tag_ = true;  // newlines are dropped
  std::string held_;       // newlines of the thinking, which may be its last
};

}  // namespace nibble
