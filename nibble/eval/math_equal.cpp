#include "nibble/eval/math_equal.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <optional>
#include <vector>

#include "nibble/eval/extract.h"
#include "nibble/eval/math_expression.h"

namespace nibble {
namespace {

constexpr size_t kMaxLength = 4000;
constexpr int kMaxNesting = 20;
constexpr int kPoints = 12;

bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }

std::string without_blanks(std::string_view text) {
  std::string result;
  for (const char c : text) {
    if (c != ' ') result += c;
  }
  return result;
}

// Lower-case letters and digits, with \text opened.
std::string plain_words(std::string text) {
  for (size_t at = 0; (at = text.find("\\text", at)) != std::string::npos;) text.erase(at, 5);
  std::string result;
  for (const char c : text) {
    if (is_digit(c) || (c >= 'a' && c <= 'z')) result += c;
    if (c >= 'A' && c <= 'Z') result += static_cast<char>(c - 'A' + 'a');
  }
  return result;
}

// Parts between `separator` outside of all brackets. "(0, 1]" is closed by any bracket.
std::vector<std::string> split(std::string_view text, std::string_view separator) {
  std::vector<std::string> parts;
  int depth = 0;
  size_t begin = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (c == '(' || c == '[' || c == '{') ++depth;
    if (c == ')' || c == ']' || c == '}') --depth;
    if (depth != 0 || !text.substr(i).starts_with(separator)) continue;
    const size_t behind = i + separator.size();
    // A command ends where its letters end.
    if (separator.front() == '\\' && is_letter(separator.back()) && behind < text.size() &&
        is_letter(text[behind])) {
      continue;
    }
    parts.emplace_back(trim(text.substr(begin, i - begin)));
    begin = behind;
    i = behind - 1;
  }
  parts.emplace_back(trim(text.substr(begin)));
  return parts;
}

// "1,234,567" without its commas; nothing for anything else.
std::optional<std::string> joined_thousands(std::string_view text) {
  const std::string plain = without_blanks(text);
  size_t at = !plain.empty() && (plain[0] == '-' || plain[0] == '+') ? 1 : 0;
  size_t first = 0;
  while (at + first < plain.size() && is_digit(plain[at + first])) ++first;
  if (first < 1 || first > 3) return std::nullopt;
  at += first;
  size_t groups = 0;
  while (at + 3 < plain.size() && plain[at] == ',' && is_digit(plain[at + 1]) &&
         is_digit(plain[at + 2]) && is_digit(plain[at + 3])) {
    at += 4;
    ++groups;
  }
  if (groups == 0) return std::nullopt;
  if (at < plain.size() && plain[at] == '.') {
    ++at;
    while (at < plain.size() && is_digit(plain[at])) ++at;
  }
  if (at != plain.size()) return std::nullopt;
  std::string joined = plain;
  std::erase(joined, ',');
  return joined;
}

// "52_8", "52_{10}".
struct BasedNumber {
  std::string digits;
  std::string base;
};
std::optional<BasedNumber> based_number(std::string_view text) {
  const std::string plain = without_blanks(text);
  const size_t mark = plain.find('_');
  if (mark == std::string::npos || mark == 0) return std::nullopt;
  BasedNumber number{plain.substr(0, mark), plain.substr(mark + 1)};
  if (number.base.size() > 2 && number.base.front() == '{' && number.base.back() == '}') {
    number.base = number.base.substr(1, number.base.size() - 2);
  }
  const auto is_numeral = [](char c) { return is_digit(c) || (c >= 'A' && c <= 'F'); };
  if (!is_digit(number.digits.front()) ||
      !std::all_of(number.digits.begin(), number.digits.end(), is_numeral) || number.base.empty() ||
      !std::all_of(number.base.begin(), number.base.end(), is_digit)) {
    return std::nullopt;
  }
  return number;
}

// What stands in "\\text{...}" when that is all; nothing else.
std::optional<std::string> whole_text(std::string_view text) {
  if (!text.starts_with("\\text{") || text.find('}') != text.size() - 1) return std::nullopt;
  return std::string(trim(text.substr(6, text.size() - 7)));
}

bool has_letter(std::string_view text) { return std::any_of(text.begin(), text.end(), is_letter); }

// "\\text{June } 9": text first, and nothing but numbers besides.
bool is_marked_words(std::string_view text) {
  if (!text.starts_with("\\text{")) return false;
  bool letters = false;
  for (size_t at = 0; at < text.size(); ++at) {
    if (text.substr(at).starts_with("\\text{")) {
      const size_t end = text.find('}', at);
      if (end == std::string_view::npos) return false;
      letters |= has_letter(text.substr(at + 6, end - at - 6));
      at = end;
    } else if (!is_digit(text[at]) && text[at] != ' ' && text[at] != ',') {
      return false;
    }
  }
  return letters;
}

// Words rather than a product of variables: marked as text, or letters with three or more in a row.
bool is_words(std::string_view text) {
  if (is_marked_words(text)) return true;
  size_t run = 0, longest = 0;
  for (const char c : text) {
    if (c == '\\' || is_digit(c) || c == '=' || c == '^' || c == '{') return false;
    run = is_letter(c) ? run + 1 : 0;
    longest = std::max(longest, run);
  }
  return longest >= 3 || (text.size() == 1 && text[0] >= 'A' && text[0] <= 'Z');
}

// "3 \\text{ and } 5" -> "3 , 5"; a comma before the word is enough.
std::string with_commas(std::string text) {
  for (size_t at = 0; (at = text.find("\\text{", at)) != std::string::npos;) {
    const size_t end = text.find('}', at);
    if (end == std::string::npos) break;
    const std::string_view word = trim(std::string_view(text).substr(at + 6, end - at - 6));
    if (word != "and" && word != "or") {
      at = end;
      continue;
    }
    const bool has_comma = trim(std::string_view(text).substr(0, at)).ends_with(',');
    text.replace(at, end + 1 - at, has_comma ? " " : ",");
  }
  for (const std::string_view word : {" and ", " or "}) {
    for (size_t at = 0; (at = text.find(word, at)) != std::string::npos;) {
      const bool has_comma = trim(std::string_view(text).substr(0, at)).ends_with(',');
      text.replace(at, word.size(), has_comma ? " " : ", ");
    }
  }
  return text;
}

// Without a unit or percent sign behind a number: "5.4 \text{cents}", "3 \text{m}^2", "10 %", "5
// cm".
std::string without_unit(std::string text) {
  text = std::string(trim(text));
  while (text.size() > 1 && text.back() == '%')
    text = std::string(trim(text.substr(0, text.size() - 1)));
  const size_t mark = text.rfind("\\text{");
  if (mark != std::string::npos && mark > 0) {
    const size_t end = text.find('}', mark);
    const std::string behind =
        end == std::string::npos ? "?" : without_blanks(text.substr(end + 1));
    if (behind.empty() || behind == "^2" || behind == "^3" || behind == "^{2}" ||
        behind == "^{3}") {
      std::string rest(trim(std::string_view(text).substr(0, mark)));
      if (is_digit(rest.back()) || rest.back() == '}' || rest.back() == ')') return rest;
    }
    return text;
  }
  const size_t blank = text.find(' ');
  if (blank != std::string::npos && blank > 0 && is_digit(text[blank - 1])) {
    const std::string_view word = trim(std::string_view(text).substr(blank));
    const bool letters = std::all_of(word.begin(), word.end(),
                                     [](char c) { return is_letter(c) || c == ' ' || c == '.'; });
    if (letters && word.size() >= 2) return text.substr(0, blank);
  }
  return text;
}

// "x \in S" -> "S".
std::string without_membership(const std::string& text) {
  const auto parts = split(text, "\\in");
  return parts.size() == 2 ? parts[1] : text;
}

// Whether this is a name that stands for the other side: "y", "x_1", "f(x)".
bool is_name(std::string_view text) {
  const std::string plain = without_blanks(text);
  if (plain.empty() || !is_letter(plain[0])) return false;
  if (plain.size() == 1) return true;
  if (plain[1] == '_') return plain.size() <= 6;
  return plain.size() == 4 && plain[1] == '(' && plain[3] == ')';
}

// "x > 3" and "3 < x" -> "(3, \\infty)"; "1 \\le x < 5" -> "[1, 5)"; all else as it is.
std::string as_interval(const std::string& text) {
  struct Relation {
    size_t begin, end;
    bool is_less, is_strict;
  };
  std::vector<Relation> found;
  for (size_t i = 0; i < text.size(); ++i) {
    const std::string_view rest = std::string_view(text).substr(i);
    if (rest[0] == '<' || rest[0] == '>') {
      found.push_back({i, i + 1, rest[0] == '<', true});
    } else if ((rest.starts_with("\\le") || rest.starts_with("\\ge")) &&
               (rest.size() == 3 || !is_letter(rest[3]))) {
      found.push_back({i, i + 3, rest[1] == 'l', false});
    }
  }
  if (found.empty() || found.size() > 2) return text;
  const auto side = [&](size_t begin, size_t end) {
    return std::string(trim(std::string_view(text).substr(begin, end - begin)));
  };
  const Relation a = found.front(), b = found.back();
  const std::string first = side(0, a.begin), last = side(b.end, text.size());
  if (first.empty() || last.empty()) return text;
  const auto interval = [](const std::string& low, bool is_open, const std::string& high,
                           bool is_end_open) {
    return (is_open ? "(" : "[") + low + ", " + high + (is_end_open ? ")" : "]");
  };
  if (found.size() == 2) {
    if (a.is_less != b.is_less || !is_name(side(a.end, b.begin))) return text;
    return a.is_less ? interval(first, a.is_strict, last, b.is_strict)
                     : interval(last, b.is_strict, first, a.is_strict);
  }
  if (is_name(first) == is_name(last)) return text;
  const bool is_above = is_name(first) != a.is_less;
  const std::string& limit = is_name(first) ? last : first;
  return is_above ? interval(limit, a.is_strict, "\\infty", true)
                  : interval("-\\infty", true, limit, a.is_strict);
}

// rows of entries of \begin{xmatrix} ... \end{xmatrix}
std::optional<std::vector<std::vector<std::string>>> matrix_of(std::string_view text) {
  if (!text.starts_with("\\begin{")) return std::nullopt;
  const size_t name_end = text.find('}');
  if (name_end == std::string_view::npos) return std::nullopt;
  const std::string name(text.substr(7, name_end - 7));
  const std::string close = "\\end{" + name + "}";
  if (!name.ends_with("matrix") || !text.ends_with(close)) return std::nullopt;
  const std::string_view body =
      trim(text.substr(name_end + 1, text.size() - name_end - 1 - close.size()));
  std::vector<std::vector<std::string>> rows;
  for (const std::string& row : split(body, "\\\\")) {
    if (row.empty()) continue;
    rows.push_back(split(row, "&"));
  }
  return rows;
}

enum class Kind { kOne, kOrdered, kUnordered };
struct Group {
  Kind kind = Kind::kOne;
  char open = 0;
  char close = 0;
  std::vector<std::string> items;
};

Group group_of(const std::string& text) {
  const auto unions = split(text, "\\cup");
  if (unions.size() > 1) return {Kind::kUnordered, 'U', 'U', unions};
  if (const size_t mark = text.find("\\pm"); mark != std::string::npos) {
    std::string plus = text, minus = text;
    plus.replace(mark, 3, "+");
    minus.replace(mark, 3, "-");
    if (plus.find("\\pm") == std::string::npos) return {Kind::kUnordered, 0, 0, {plus, minus}};
  }
  const bool set = text.size() >= 4 && text.starts_with("\\{") && text.ends_with("\\}");
  if (set) {
    return {Kind::kUnordered, 0, 0,
            split(trim(std::string_view(text).substr(2, text.size() - 4)), ",")};
  }
  const auto bare = split(text, ",");
  if (bare.size() > 1) return {Kind::kUnordered, 0, 0, bare};
  const bool bracketed = text.size() >= 2 && (text.front() == '(' || text.front() == '[') &&
                         (text.back() == ')' || text.back() == ']');
  if (bracketed) {
    const auto items = split(std::string_view(text).substr(1, text.size() - 2), ",");
    if (items.size() > 1) return {Kind::kOrdered, text.front(), text.back(), items};
  }
  return {Kind::kOne, 0, 0, {text}};
}

MathVerdict compare(const std::string& gold, const std::string& answer, int nesting);

MathVerdict compare_items(const std::vector<std::string>& gold,
                          const std::vector<std::string>& answer, bool ordered, int nesting) {
  if (gold.size() != answer.size() || gold.size() > 100) return MathVerdict::kUnequal;
  std::vector<bool> used(answer.size());
  MathVerdict result = MathVerdict::kEqual;
  for (size_t i = 0; i < gold.size(); ++i) {
    MathVerdict best = MathVerdict::kUnequal;
    for (size_t j = ordered ? i : 0; j < (ordered ? i + 1 : answer.size()); ++j) {
      if (used[j]) continue;
      const MathVerdict verdict = compare(gold[i], answer[j], nesting + 1);
      if (verdict == MathVerdict::kUndecided) best = verdict;
      if (verdict != MathVerdict::kEqual) continue;
      used[j] = true;
      best = verdict;
      break;
    }
    if (best == MathVerdict::kUnequal) return best;
    if (best == MathVerdict::kUndecided) result = best;
  }
  return result;
}

bool is_close(std::complex<double> a, std::complex<double> b) {
  return std::abs(a - b) <= 1e-9 * std::max({1e-12, std::abs(a), std::abs(b)});
}

MathVerdict compare_expressions(const std::string& gold, const std::string& answer) {
  const auto a = MathExpression::parse(gold);
  const auto b = MathExpression::parse(answer);
  if (!a || !b) return MathVerdict::kUndecided;
  if (a->is_rational() && b->is_rational()) {
    return a->equals_exactly(*b) ? MathVerdict::kEqual : MathVerdict::kUnequal;
  }
  int used = 0;
  for (int point = 0; point < kPoints; ++point) {
    const auto x = a->value(point), y = b->value(point);
    if (!x || !y) continue;
    ++used;
    if (!is_close(*x, *y)) return MathVerdict::kUnequal;
  }
  return used > 0 ? MathVerdict::kEqual : MathVerdict::kUndecided;
}

// lhs - rhs of both are proportional by a constant that is not zero.
bool same_equation(const std::vector<std::string>& gold, const std::vector<std::string>& answer) {
  const auto difference = [](const std::vector<std::string>& sides) {
    return MathExpression::parse("(" + sides[0] + ")-(" + sides[1] + ")");
  };
  const auto a = difference(gold), b = difference(answer);
  if (!a || !b) return false;
  std::optional<std::complex<double>> factor;
  int used = 0;
  for (int point = 0; point < kPoints; ++point) {
    const auto x = a->value(point), y = b->value(point);
    if (!x || !y || std::abs(*y) < 1e-9) continue;
    const auto ratio = *x / *y;
    if (std::abs(ratio) < 1e-12 || (factor && !is_close(*factor, ratio))) return false;
    factor = ratio;
    ++used;
  }
  return used >= 3;
}

MathVerdict compare(const std::string& gold_text, const std::string& answer_text, int nesting) {
  std::string gold = without_membership(std::string(trim(gold_text)));
  std::string answer = without_membership(std::string(trim(answer_text)));
  if (gold.empty() || answer.empty()) return MathVerdict::kUnequal;
  if (without_blanks(gold) == without_blanks(answer)) return MathVerdict::kEqual;
  if (nesting > kMaxNesting) return MathVerdict::kUndecided;
  // A number that is set as text is a number.
  if (const auto inside = whole_text(gold); inside && !has_letter(*inside)) gold = *inside;
  if (is_words(gold)) {
    return plain_words(gold) == plain_words(answer) ? MathVerdict::kEqual : MathVerdict::kUnequal;
  }
  if (const auto inside = whole_text(answer)) answer = *inside;
  gold = as_interval(with_commas(without_unit(gold)));
  answer = as_interval(with_commas(without_unit(answer)));
  if (gold.empty() || answer.empty()) return MathVerdict::kUnequal;
  if (without_blanks(gold) == without_blanks(answer)) return MathVerdict::kEqual;
  if (const auto based = based_number(gold)) {
    const auto other = based_number(answer);
    const bool equal = other ? other->digits == based->digits && other->base == based->base
                             : without_blanks(answer) == based->digits;
    return equal ? MathVerdict::kEqual : MathVerdict::kUnequal;
  }
  const auto gold_sides = split(gold, "="), answer_sides = split(answer, "=");
  if (gold_sides.size() == 2 && answer_sides.size() == 2) {
    if (same_equation(gold_sides, answer_sides)) return MathVerdict::kEqual;
    const bool named = is_name(gold_sides[0]) && is_name(answer_sides[0]);
    return named ? compare(gold_sides[1], answer_sides[1], nesting + 1) : MathVerdict::kUnequal;
  }
  if (gold_sides.size() == 2 && is_name(gold_sides[0])) gold = gold_sides[1];
  if (answer_sides.size() == 2 && is_name(answer_sides[0])) answer = answer_sides[1];

  if (const auto a = matrix_of(gold)) {
    const auto b = matrix_of(answer);
    if (!b || b->size() != a->size()) return MathVerdict::kUnequal;
    MathVerdict result = MathVerdict::kEqual;
    for (size_t row = 0; row < a->size(); ++row) {
      const MathVerdict verdict = compare_items((*a)[row], (*b)[row], true, nesting);
      if (verdict == MathVerdict::kUnequal) return verdict;
      if (verdict == MathVerdict::kUndecided) result = verdict;
    }
    return result;
  }

  Group a = group_of(gold), b = group_of(answer);
  const auto gold_number = joined_thousands(gold), answer_number = joined_thousands(answer);
  if (gold_number && (b.kind == Kind::kOne || answer_number))
    a = {Kind::kOne, 0, 0, {*gold_number}};
  if (answer_number && a.kind == Kind::kOne) b = {Kind::kOne, 0, 0, {*answer_number}};
  if (a.kind == Kind::kOne && b.kind == Kind::kOne) {
    return compare_expressions(a.items[0], b.items[0]);
  }
  if (a.kind != b.kind || a.open != b.open || a.close != b.close) return MathVerdict::kUnequal;
  return compare_items(a.items, b.items, a.kind == Kind::kOrdered, nesting);
}

}  // namespace

MathVerdict math_equal(std::string_view gold, std::string_view answer) {
  if (gold.size() > kMaxLength || answer.size() > kMaxLength) return MathVerdict::kUndecided;
  return compare(normalize_math(gold), normalize_math(answer), 0);
}

}  // namespace nibble
