// What a reply says the answer is: a box, an option's letter, a program.
// Source of every rule: the evaluation specification, section 4; cases in tests/eval/data.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace nibble {

// The text after the last "</think>"; all of it when nothing was thought. Nothing when thinking was
// opened, by the reply or (reasoning_opened) by its prompt, and never closed.
std::optional<std::string_view> answer_part(std::string_view reply, bool reasoning_opened = false);

// All of these take the answer part.

// boxed-v1: the content of the last complete, non-empty \boxed or \fbox, without outer math marks.
std::optional<std::string> extract_boxed(std::string_view answer);

// choice-v1: the chosen one of the first `num_options` letters (1..26), by seven rules in order.
std::optional<char> extract_choice(std::string_view answer, int num_options);

// aa-v2: the first "Answer: X", without a look at the number of options, as NVIDIA's
// gpqa_diamond_aa_v2 does.
std::optional<char> extract_choice_aa_v2(std::string_view answer);

// The harness's rule for MMLU-Pro: the first "answer is (X)" with a letter of A to J.
std::optional<char> extract_choice_lm_eval(std::string_view answer);

// code-v1: the last complete fenced block of Python (or of no language); the first with `first`.
std::optional<std::string> extract_code(std::string_view answer, bool first = false);

// Without blanks at both ends.
std::string_view trim(std::string_view text);

}  // namespace nibble
