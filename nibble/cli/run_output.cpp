#include "nibble/cli/run_output.h"

#include <unistd.h>

#include <cstdlib>

namespace nibble {
namespace {

constexpr std::string_view kDim = "\033[2m";
constexpr std::string_view kReset = "\033[0m";

}  // namespace

AnswerFormatter::AnswerFormatter(const Tokenizer& tokenizer, std::span<const int32_t> prompt,
                                 OutputStyle style)
    : detokenizer_(tokenizer, true),
      style_(style),
      think_begin_(tokenizer.token_id("<think>")),
      think_end_(tokenizer.token_id("</think>")) {
  for (const int32_t id : prompt) {
    if (id == think_begin_) thinking_now_ = true;
    if (id == think_end_) thinking_now_ = false;
  }
}

std::string AnswerFormatter::push(int32_t token_id) {
  if (token_id == think_begin_ && !thinking_now_) {
    std::string out = show(detokenizer_.flush());
    thinking_now_ = true;
    return out + show_tag("<think>");
  }
  if (token_id == think_end_) {
    std::string out = show(detokenizer_.flush()) + show_tag("</think>");
    thinking_now_ = false;
    skip_newlines_ = style_.hide_thinking;
    return out;
  }
  return show(detokenizer_.push(token_id));
}

std::string AnswerFormatter::finish() {
  std::string out = show(detokenizer_.flush());
  if (dimmed_) {
    out += kReset;
    dimmed_ = false;
  }
  return out;
}

std::string AnswerFormatter::show(std::string_view text) {
  if (text.empty()) return {};
  if (thinking_now_) {
    thinking_ += text;
    if (style_.hide_thinking) return {};
  } else {
    if (skip_newlines_) {
      const size_t first = text.find_first_not_of('\n');
      if (first == std::string_view::npos) return {};
      text.remove_prefix(first);
      skip_newlines_ = false;
    }
    answer_ += text;
  }
  std::string out;
  if (style_.color && thinking_now_ != dimmed_) {
    out += thinking_now_ ? kDim : kReset;
    dimmed_ = thinking_now_;
  }
  return out.append(text);
}

// A pipe gets the tags, so that a program can tell the two apart; a terminal gets the dimming.
std::string AnswerFormatter::show_tag(std::string_view tag) {
  return style_.color || style_.hide_thinking ? std::string() : std::string(tag);
}

bool output_wants_color() {
  const char* no_color = std::getenv("NO_COLOR");
  return ::isatty(STDOUT_FILENO) != 0 && (no_color == nullptr || *no_color == '\0');
}

}  // namespace nibble
