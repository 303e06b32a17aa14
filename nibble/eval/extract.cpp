#include "nibble/eval/extract.h"

#include <algorithm>
#include <array>
#include <vector>

namespace nibble {
namespace {

bool is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }
bool is_upper(char c) { return c >= 'A' && c <= 'Z'; }
bool is_lower(char c) { return c >= 'a' && c <= 'z'; }
bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_blank(char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; }
char to_upper(char c) { return is_lower(c) ? static_cast<char>(c - 'a' + 'A') : c; }

// The character at `at`, or 0 behind the end.
char peek(std::string_view text, size_t at) { return at < text.size() ? text[at] : '\0'; }

// Skips characters of `set` from `at` on.
size_t skip(std::string_view text, size_t at, std::string_view set) {
  while (at < text.size() && set.find(text[at]) != std::string_view::npos) ++at;
  return at;
}

// Whether `word` (lower case) stands at `at`, in any case.
bool has_word(std::string_view text, size_t at, std::string_view word) {
  if (text.size() < word.size() || at > text.size() - word.size()) return false;
  for (size_t i = 0; i < word.size(); ++i) {
    if (to_upper(text[at + i]) != to_upper(word[i])) return false;
  }
  return true;
}

// The position behind the brace that closes the one at `open`, or npos. A backslash escapes.
size_t closing_brace(std::string_view text, size_t open) {
  int depth = 0;
  for (size_t i = open; i < text.size(); ++i) {
    if (text[i] == '\\') {
      ++i;
    } else if (text[i] == '{') {
      ++depth;
    } else if (text[i] == '}' && --depth == 0) {
      return i + 1;
    }
  }
  return std::string_view::npos;
}

struct Box {
  size_t begin = 0;  // of the backslash
  size_t end = 0;
  std::string_view content;
};

// The first complete box from `from` on.
std::optional<Box> find_box(std::string_view text, size_t from) {
  for (size_t at = from; (at = text.find('\\', at)) != std::string_view::npos; ++at) {
    size_t behind = 0;
    if (text.substr(at + 1).starts_with("boxed")) behind = at + 6;
    if (text.substr(at + 1).starts_with("fbox")) behind = at + 5;
    if (behind == 0 || is_letter(peek(text, behind))) continue;
    const size_t start = skip(text, behind, " \t\r\n");
    if (start >= text.size()) continue;
    if (text[start] == '{') {
      const size_t end = closing_brace(text, start);
      if (end == std::string_view::npos) continue;
      return Box{at, end, trim(text.substr(start + 1, end - start - 2))};
    }
    const size_t end = std::min(text.find_first_of(" \t\r\n$", start), text.size());
    std::string_view content = text.substr(start, end - start);
    while (!content.empty() && std::string_view(".,;").find(content.back()) != std::string::npos) {
      content.remove_suffix(1);
    }
    return Box{at, end, content};
  }
  return std::nullopt;
}

// Without the marks of math mode around it.
std::string_view without_math_marks(std::string_view text) {
  constexpr std::array<std::pair<std::string_view, std::string_view>, 4> kMarks = {
      {{"$$", "$$"}, {"$", "$"}, {"\\(", "\\)"}, {"\\[", "\\]"}}};
  for (bool again = true; again;) {
    again = false;
    text = trim(text);
    for (const auto& [open, close] : kMarks) {
      if (text.size() < open.size() + close.size()) continue;
      if (!text.starts_with(open) || !text.ends_with(close)) continue;
      text = text.substr(open.size(), text.size() - open.size() - close.size());
      again = true;
      break;
    }
  }
  return text;
}

// Whether a letter that ends at `behind` stands for itself: no word goes on, and it is no article.
bool is_choice_end(std::string_view text, size_t behind) {
  const char next = peek(text, behind);
  if (is_letter(next) || is_digit(next) || next == '\'') return false;
  return !(next == ' ' && is_lower(peek(text, behind + 1)));
}

struct Letters {
  int num_options;
  // The option a character names, in any case.
  std::optional<char> option(char c) const {
    const char upper = to_upper(c);
    if (!is_upper(upper) || upper - 'A' >= num_options) return std::nullopt;
    return upper;
  }
  std::optional<char> upper_option(char c) const { return is_upper(c) ? option(c) : std::nullopt; }
};

// A letter behind an optional bracket at `at`, with what may not follow it.
std::optional<char> guarded_letter(std::string_view text, size_t at, const Letters& letters) {
  if (std::string_view("([{").find(peek(text, at)) != std::string_view::npos) ++at;
  if (at >= text.size()) return std::nullopt;
  const auto letter = letters.option(text[at]);
  return letter && is_choice_end(text, at + 1) ? letter : std::nullopt;
}

std::optional<char> by_answer_colon(std::string_view text, const Letters& letters) {
  std::optional<char> found;
  for (size_t i = 0; i < text.size(); ++i) {
    if (!has_word(text, i, "answer")) continue;
    size_t at = skip(text, skip(text, i + 6, "*_"), " \t");
    at = skip(text, at, "*_");
    if (peek(text, at) != ':') continue;
    if (const auto letter = guarded_letter(text, skip(text, at + 1, "*_ \t"), letters)) {
      found = letter;
    }
  }
  return found;
}

std::optional<char> by_box(std::string_view text, const Letters& letters) {
  const auto boxed = extract_boxed(text);
  if (!boxed) return std::nullopt;
  std::string_view content = *boxed;
  // \text{B}, \mathrm{B}, \mathbf{B}, one inside another.
  while (content.starts_with("\\text") || content.starts_with("\\math")) {
    const size_t open = content.find('{');
    const size_t end = open == std::string_view::npos ? open : closing_brace(content, open);
    if (end != content.size()) break;
    content = trim(content.substr(open + 1, end - open - 2));
  }
  const size_t at = skip(content, 0, "([");
  if (at >= content.size()) return std::nullopt;
  const char next = peek(content, at + 1);
  return is_letter(next) || is_digit(next) ? std::nullopt : letters.option(content[at]);
}

std::optional<char> by_answer_is(std::string_view text, const Letters& letters) {
  std::optional<char> found;
  for (size_t i = 0; i < text.size(); ++i) {
    if (!has_word(text, i, "answer is")) continue;
    size_t at = skip(text, i + 9, " \t");
    if (peek(text, at) == ':') ++at;
    at = skip(text, at, " \t*_$");
    for (const std::string_view word : {"option", "choice"}) {
      if (has_word(text, at, word)) at = skip(text, at + word.size(), " \t*_");
    }
    if (const auto letter = guarded_letter(text, at, letters)) found = letter;
  }
  return found;
}

std::optional<char> by_is_correct(std::string_view text, const Letters& letters) {
  std::optional<char> found;
  for (size_t i = 0; i < text.size(); ++i) {
    const auto letter = letters.upper_option(text[i]);
    if (!letter || (i > 0 && (is_letter(text[i - 1]) || is_digit(text[i - 1])))) continue;
    size_t at = i + 1;
    if (peek(text, at) == ')') ++at;
    const size_t is = skip(text, at, " \t*_");
    if (is == at || !has_word(text, is, "is ")) continue;
    at = skip(text, is + 2, " \t");
    if (has_word(text, at, "the ")) at = skip(text, at + 3, " \t");
    if (has_word(text, at, "correct")) found = letter;
  }
  return found;
}

std::vector<std::string_view> lines_of(std::string_view text) {
  std::vector<std::string_view> lines;
  while (!text.empty()) {
    const size_t end = std::min(text.find('\n'), text.size());
    lines.push_back(trim(text.substr(0, end)));
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return lines;
}

std::optional<char> by_line(std::string_view text, const Letters& letters) {
  std::optional<char> found;
  for (std::string_view line : lines_of(text)) {
    constexpr std::string_view kAround = "*_()[]{}.$`# \t";
    const size_t begin = line.find_first_not_of(kAround);
    if (begin == std::string_view::npos || line.find_last_not_of(kAround) != begin) continue;
    if (const auto letter = letters.upper_option(line[begin])) found = letter;
  }
  return found;
}

std::optional<char> by_last_line(std::string_view text, const Letters& letters) {
  const auto lines = lines_of(text);
  const auto last = std::find_if(lines.rbegin(), lines.rend(),
                                 [](std::string_view line) { return !line.empty(); });
  if (last == lines.rend() || last->size() < 2) return std::nullopt;
  const bool marked = std::string_view(").:").find((*last)[1]) != std::string_view::npos;
  return marked ? letters.upper_option(last->front()) : std::nullopt;
}

}  // namespace

std::string_view trim(std::string_view text) {
  while (!text.empty() && is_blank(text.front())) text.remove_prefix(1);
  while (!text.empty() && is_blank(text.back())) text.remove_suffix(1);
  return text;
}

std::optional<std::string_view> answer_part(std::string_view reply, bool reasoning_opened) {
  constexpr std::string_view kClose = "</think>";
  const size_t close = reply.rfind(kClose);
  if (close != std::string_view::npos) return reply.substr(close + kClose.size());
  if (reasoning_opened || reply.find("<think>") != std::string_view::npos) return std::nullopt;
  return reply;
}

std::optional<std::string> extract_boxed(std::string_view answer) {
  std::optional<std::string> found;
  for (auto box = find_box(answer, 0); box; box = find_box(answer, box->end)) {
    std::string_view content = without_math_marks(box->content);
    // A box that is all of a box.
    for (auto inner = find_box(content, 0);
         inner && inner->begin == 0 && inner->end == content.size(); inner = find_box(content, 0)) {
      content = without_math_marks(inner->content);
    }
    if (!content.empty()) found = std::string(content);
  }
  return found;
}

std::optional<char> extract_choice(std::string_view answer, int num_options) {
  const Letters letters{num_options};
  const std::string_view whole = trim(answer);
  if (whole.size() == 1) return letters.option(whole.front());
  for (const auto rule :
       {by_answer_colon, by_box, by_answer_is, by_is_correct, by_line, by_last_line}) {
    if (const auto letter = rule(answer, letters)) return letter;
  }
  return std::nullopt;
}

std::optional<char> extract_choice_aa_v2(std::string_view answer) {
  constexpr std::string_view kSpace = " \t\n\r\f\v";
  for (size_t i = 0; i < answer.size(); ++i) {
    if (!has_word(answer, i, "answer")) continue;
    size_t at = i + 6;
    for (int n = 0; n < 2 && (peek(answer, at) == '*' || peek(answer, at) == '_'); ++n) ++at;
    at = skip(answer, at, kSpace);
    if (peek(answer, at) != ':') continue;
    ++at;
    // Two of blanks and marks, then blanks: marks can only be among the first two.
    for (int n = 0; n < 2 && at < answer.size() &&
                    (kSpace.find(answer[at]) != std::string_view::npos || answer[at] == '*' ||
                     answer[at] == '_');
         ++n) {
      ++at;
    }
    at = skip(answer, at, kSpace);
    if (!is_letter(peek(answer, at))) continue;
    const char next = peek(answer, at + 1);
    if (!is_letter(next) && !is_digit(next)) return to_upper(answer[at]);
  }
  return std::nullopt;
}

std::optional<char> extract_choice_lm_eval(std::string_view answer) {
  constexpr std::string_view kBegin = "answer is ";
  for (size_t at = answer.find(kBegin); at != std::string_view::npos;
       at = answer.find(kBegin, at + 1)) {
    size_t letter = at + kBegin.size();
    if (peek(answer, letter) == '(') ++letter;
    const char c = peek(answer, letter);
    if (c >= 'A' && c <= 'J') return c;
  }
  return std::nullopt;
}

std::optional<std::string> extract_code(std::string_view answer, bool first) {
  std::optional<std::string> found;
  std::optional<std::string> open;  // the block being read
  bool is_python = false;
  while (!answer.empty()) {
    const size_t end = std::min(answer.find('\n'), answer.size());
    const std::string_view line = answer.substr(0, end);
    answer.remove_prefix(std::min(end + 1, answer.size()));
    const std::string_view mark = trim(line);
    if (!mark.starts_with("```")) {
      if (open) open->append(line).append("\n");
    } else if (!open) {
      const std::string_view info = trim(mark.substr(3));
      is_python = info.empty() || info == "python" || info == "py" || info == "python3";
      open = "";
    } else if (mark == "```") {
      if (is_python) {
        found = open;
        if (first) return found;
      }
      open.reset();
    } else {
      open->append(line).append("\n");
    }
  }
  return found;
}

}  // namespace nibble
