// Generated tokens to the terminal: text as it comes, thinking dimmed or hidden.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "nibble/tokenizer/detokenizer.h"

namespace nibble {

struct OutputStyle {
  bool color = false;          // dim the thinking with terminal codes, and leave out its tags
  bool hide_thinking = false;  // leave it out
};

// Splits the text of one answer into thinking and the rest by the ids of <think> and </think>, and
// hands out what is to be printed. Without such tokens in the vocabulary everything is answer.
class AnswerFormatter {
 public:
  // `prompt`: decides whether the answer begins inside thinking (its last <think> is open).
  AnswerFormatter(const Tokenizer& tokenizer, std::span<const int32_t> prompt, OutputStyle style);

  // What to print after this token; may be empty.
  std::string push(int32_t token_id);

  // What remains: the end of an unfinished character, the end of dimming.
  std::string finish();

  // The whole answer so far, without thinking and its tags.
  const std::string& answer() const { return answer_; }
  // The thinking so far.
  const std::string& thinking() const { return thinking_; }

 private:
  std::string show(std::string_view text);
  std::string show_tag(std::string_view tag);

  Detokenizer detokenizer_;
  OutputStyle style_;
  std::optional<int32_t> think_begin_;
  std::optional<int32_t> think_end_;
  bool thinking_now_ = false;
  bool skip_newlines_ = false;  // hidden thinking takes the line ends behind it along
  bool dimmed_ = false;
  std::string answer_;
  std::string thinking_;
};

// Whether standard output is a terminal that wants colours (NO_COLOR unset).
bool output_wants_color();

}  // namespace nibble
