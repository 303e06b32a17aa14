#include "nibble/eval/judge.h"

#include <fmt/format.h>

#include <algorithm>

#include "nibble/base/interrupt.h"
#include "nibble/eval/extract.h"

namespace nibble {
namespace {

constexpr std::string_view kQuestion =
    "Two answers to the same mathematical question are given in LaTeX. Decide whether they are the "
    "same value or expression, whatever their form.\n\nFirst answer: {}\n\nSecond answer: {}\n\n"
    "Reply with one word, yes or no.";

// The last word of a reply, in lower-case letters.
std::string last_word(std::string_view text) {
  std::string word, last;
  for (const char c : std::string(text) + " ") {
    const char lower = c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
    if (lower >= 'a' && lower <= 'z') {
      word += lower;
    } else if (!word.empty()) {
      last = std::exchange(word, {});
    }
  }
  return last;
}

}  // namespace

Status judge_answer(CompletionTarget& judge, Score* score) {
  if (score->extracted.empty() || score->extractor != "boxed-v1" ||
      (score->outcome != "wrong" && score->outcome != "undecided")) {
    return {};
  }
  Sampling sampling;
  sampling.temperature = 0;
  sampling.max_tokens = 4096;
  NIBBLE_TRY(judge.submit(0, fmt::format(kQuestion, score->gold, score->extracted), sampling, 0));
  for (;;) {
    NIBBLE_TRY(check_interrupt());
    const auto replies = NIBBLE_TRY(judge.wait());
    if (replies.empty()) continue;
    const Completion& reply = replies.front().second;
    const std::string word = last_word(reply.text);
    if (!reply.error.empty() || (word != "yes" && word != "no")) return {};
    score->judge = word;
    score->outcome = word == "yes" ? "correct" : "wrong";
    return {};
  }
}

}  // namespace nibble
