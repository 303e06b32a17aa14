#include "nibble/tokenizer/regex_dialect.h"

#include <fmt/format.h>

#include <cctype>

#include "nibble/base/error.h"
#include "nibble/tokenizer/unicode_additions.h"

namespace nibble {
namespace {

// The 25 characters of White_Space (PropList.txt), as the inside of a class.
constexpr std::string_view kWhiteSpace =
    "\\t-\\r\\x20\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}"
    "\\x{3000}";

bool is_hex(char c) { return std::isxdigit(static_cast<unsigned char>(c)) != 0; }
bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_alphanumeric(char c) { return std::isalnum(static_cast<unsigned char>(c)) != 0; }

class Translator {
 public:
  explicit Translator(std::string_view pattern) : pattern_(pattern) {}

  Result<std::string> translate() {
    while (!at_end()) NIBBLE_TRY(element());
    return std::move(out_);
  }

 private:
  bool at_end() const { return position_ >= pattern_.size(); }
  char peek(size_t ahead = 0) const {
    return position_ + ahead < pattern_.size() ? pattern_[position_ + ahead] : '\0';
  }
  bool starts_with(std::string_view text) const {
    return pattern_.substr(position_).starts_with(text);
  }
  void copy(size_t count) {
    out_ += pattern_.substr(position_, count);
    position_ += count;
  }
  tl::unexpected<Error> refuse(std::string_view what) const {
    return unsupported(
        fmt::format("{} at byte {} of the regular expression is not supported", what, position_));
  }

  Status element() {
    switch (peek()) {
      case '[':
        return character_class();
      case '(':
        return group();
      case '\\':
        return escape(false).map([](bool) {});
      case '*':
      case '+':
      case '?':
        return repeat();
      case '{':
        return counted_repeat();
      case '^':
      case '$':
        return refuse(fmt::format("the anchor '{}'", peek()));
      case ']':
      case '}':
        return refuse(fmt::format("a bare '{}' (write \\{})", peek(), peek()));
      default:
        copy(1);
        return {};
    }
  }

  Status group() {
    for (const std::string_view open : {"(?:", "(?=", "(?!", "(?<=", "(?<!"}) {
      if (starts_with(open)) {
        copy(open.size());
        return {};
      }
    }
    if (starts_with("(?") || starts_with("(*")) {
      return refuse(fmt::format("the group '{}'", printable(pattern_.substr(position_, 4))));
    }
    copy(1);
    return {};
  }

  // After * + ? Ruby reads `?` as lazy and `+` as possessive, and so does PCRE2; any further sign
  // repeats the repeat in the one and is an error in the other.
  Status repeat() {
    copy(1);
    if (peek() == '?' || peek() == '+') copy(1);
    return end_of_repeat();
  }

  Status counted_repeat() {
    size_t i = 1;
    while (is_digit(peek(i))) ++i;
    if (i == 1) return refuse("a '{' that is not {n}, {n,} or {n,m} (write \\{)");
    if (peek(i) == ',') {
      ++i;
      while (is_digit(peek(i))) ++i;
    }
    if (peek(i) != '}') return refuse("a '{' that is not {n}, {n,} or {n,m} (write \\{)");
    copy(i + 1);
    // {n,m}+ is greedy and repeated in Ruby, possessive in PCRE2; {n}? is optional in Ruby.
    return end_of_repeat();
  }

  Status end_of_repeat() {
    if (peek() == '*' || peek() == '+' || peek() == '?' || peek() == '{') {
      return refuse(fmt::format("the repeat of a repeat, '{}',", peek()));
    }
    return {};
  }

  Status character_class() {
    copy(1);
    if (peek() == '^') copy(1);
    if (peek() == ']') return refuse("a class that begins with ']' (write \\])");
    while (!at_end() && peek() != ']') {
      if (peek() == '[') return refuse("a '[' inside a class (write \\[)");
      if (starts_with("&&")) return refuse("the class intersection '&&'");
      bool is_set = false;
      if (peek() == '\\') {
        is_set = NIBBLE_TRY(escape(true));
      } else {
        copy(1);
      }
      if (is_set && peek() == '-' && peek(1) != ']') {
        return refuse("a range that begins with a class escape");
      }
    }
    if (at_end()) return refuse("a class without its ']'");
    copy(1);
    return {};
  }

  // True when the escape stands for a set of characters, false for one character.
  Result<bool> escape(bool in_class) {
    const char kind = peek(1);
    switch (kind) {
      case 'p':
      case 'P':
        return property(in_class);
      case 's':
        return set(kWhiteSpace, false, in_class, 2);
      case 'S':
        return set(kWhiteSpace, true, in_class, 2);
      case 'r':
      case 'n':
      case 't':
      case 'f':
        copy(2);
        return false;
      case 'x':
      case 'u':
        return code_point();
      default:
        if (position_ + 1 >= pattern_.size()) return refuse("a backslash at the end");
        if (is_alphanumeric(kind)) return refuse(fmt::format("the escape '\\{}'", kind));
        copy(2);
        return false;
    }
  }

  // Writes the escape of `length` bytes here as a set of characters: a class of its own, or, in a
  // class, a part of that one, which can't be negated.
  Result<bool> set(std::string_view members, bool negated, bool in_class, size_t length) {
    if (in_class && negated) {
      return refuse(fmt::format("the negation '\\{}' inside a class", peek(1)));
    }
    out_ += in_class ? std::string(members) : fmt::format("[{}{}]", negated ? "^" : "", members);
    position_ += length;
    return true;
  }

  Result<bool> property(bool in_class) {
    const size_t close = pattern_.find('}', position_);
    if (peek(2) != '{' || close == std::string_view::npos) return refuse("\\p without {name}");
    const std::string_view name = pattern_.substr(position_ + 3, close - position_ - 3);
    const auto additions = name.size() == 1 ? unicode16_additions(name[0]) : std::nullopt;
    if (!additions) {
      return refuse(fmt::format("the property '{}' (L, M, N, P, S and Z are)", printable(name)));
    }
    return set(fmt::format("\\p{{{}}}{}", name, *additions), peek(1) == 'P', in_class,
               close + 1 - position_);
  }

  Result<bool> code_point() {
    if (peek(1) == 'x' && peek(2) == '{') {
      size_t i = 3;
      while (is_hex(peek(i))) ++i;
      if (i == 3 || i > 9 || peek(i) != '}') return refuse("\\x{ without 1 to 6 digits and '}'");
      copy(i + 1);
      return false;
    }
    const size_t digits = peek(1) == 'x' ? 2 : 4;
    for (size_t i = 0; i < digits; ++i) {
      if (!is_hex(peek(2 + i))) return refuse(fmt::format("\\{} without its digits", peek(1)));
    }
    const std::string_view hex = pattern_.substr(position_ + 2, digits);
    // Ruby's \x80 and above are bytes of an encoding, PCRE2's are code points.
    if (digits == 2 && hex[0] >= '8') return refuse("\\x above 7F (write \\x{...})");
    out_ += fmt::format("\\x{{{}}}", hex);
    position_ += 2 + digits;
    return false;
  }

  static std::string printable(std::string_view text) {
    std::string shown;
    for (const char c : text.substr(0, 32)) {
      shown +=
          static_cast<unsigned char>(c) >= 0x20 && static_cast<unsigned char>(c) < 0x7f ? c : '?';
    }
    return shown;
  }

  std::string_view pattern_;
  size_t position_ = 0;
  std::string out_;
};

}  // namespace

Result<std::string> to_pcre2(std::string_view pattern) { return Translator(pattern).translate(); }

}  // namespace nibble
