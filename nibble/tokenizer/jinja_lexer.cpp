#include "nibble/tokenizer/jinja_lexer.h"

#include <fmt/format.h>

#include <algorithm>

#include "nibble/base/error.h"
#include "nibble/base/text.h"
#include "nibble/tokenizer/jinja_unicode.h"

namespace nibble::jinja {
namespace {

bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool begins_name(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; }

int hex_digit(char c) {
  if (is_digit(c)) return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

std::string normalize_newlines(std::string_view source) {
  std::string out;
  out.reserve(source.size());
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] == '\r') {
      out += '\n';
      if (i + 1 < source.size() && source[i + 1] == '\n') ++i;
    } else {
      out += source[i];
    }
  }
  if (!out.empty() && out.back() == '\n') out.pop_back();
  return out;
}

class Lexer {
 public:
  explicit Lexer(std::string_view source) : source_(normalize_newlines(source)) {}

  Result<std::vector<Token>> run() {
    while (position_ < source_.size()) NIBBLE_TRY(lex_outside());
    push(TokenKind::kEnd, "");
    return std::move(tokens_);
  }

 private:
  // Text up to the next tag, and that tag.
  Status lex_outside() {
    size_t tag = position_;
    while (true) {
      tag = source_.find('{', tag);
      if (tag == std::string::npos || tag + 1 >= source_.size()) {
        add_text(source_.substr(position_));
        position_ = source_.size();
        return {};
      }
      if (std::string_view("{%#").find(source_[tag + 1]) != std::string_view::npos) break;
      ++tag;
    }
    const char type = source_[tag + 1];
    const char next = tag + 2 < source_.size() ? source_[tag + 2] : '\0';
    const char sign = next == '-' || next == '+' ? next : '\0';
    add_text_before_tag(std::string_view(source_).substr(position_, tag - position_), sign,
                        type == '{');
    move_to(tag);
    const int line = line_;
    move_to(tag + (sign == '\0' ? 2 : 3));
    if (type == '#') return lex_comment(line);
    if (type == '%' && skip_raw_begin()) return lex_raw(line);
    push(type == '{' ? TokenKind::kVariableBegin : TokenKind::kBlockBegin,
         type == '{' ? "{{" : "{%");
    return lex_inside(type == '{');
  }

  // lexer.py: '-' strips all whitespace before the tag; otherwise lstrip_blocks strips what stands
  // between the start of the line and the tag, unless '+' or {{ forbid it.
  void add_text_before_tag(std::string_view text, char sign, bool variable) {
    if (sign == '-') {
      text = strip_right(text);
    } else if (sign != '+' && !variable) {
      const size_t newline = text.rfind('\n');
      const size_t line_start = newline == std::string_view::npos ? 0 : newline + 1;
      if ((line_start > 0 || at_line_start_) && strip_left(text.substr(line_start)).empty()) {
        text = text.substr(0, line_start);
      }
    }
    add_text(text);
  }

  void add_text(std::string_view text) {
    if (!text.empty()) push(TokenKind::kText, std::string(text));
  }

  // After "-" or the trim_blocks newline, where a tag ends: [sign]close.
  void finish_tag(char sign, bool trims_newline) {
    if (sign == '-') {
      const std::string_view rest = std::string_view(source_).substr(position_);
      move_to(source_.size() - strip_left(rest).size());
    } else if (sign != '+' && trims_newline && position_ < source_.size() &&
               source_[position_] == '\n') {
      move_to(position_ + 1);
    }
    at_line_start_ = position_ > 0 && source_[position_ - 1] == '\n';
  }

  Status lex_comment(int line) {
    const size_t end = source_.find("#}", position_);
    if (end == std::string::npos) return error(line, "a comment has no end '#}'");
    const char before = end > position_ ? source_[end - 1] : '\0';
    move_to(end + 2);
    finish_tag(before == '-' || before == '+' ? before : '\0', true);
    return {};
  }

  // Whether the block that begins here is {% raw %}, which is then skipped.
  bool skip_raw_begin() {
    const std::string_view rest = std::string_view(source_).substr(position_);
    std::string_view after = strip_left(rest);
    if (!after.starts_with("raw")) return false;
    after = strip_left(after.substr(3));
    const bool dashed = after.starts_with("-%}");
    if (!dashed && !after.starts_with("%}")) return false;
    move_to(source_.size() - after.size() + (dashed ? 3 : 2));
    finish_tag(dashed ? '-' : '\0', false);
    return true;
  }

  Status lex_raw(int line) {
    for (size_t tag = source_.find("{%", position_); tag != std::string::npos;
         tag = source_.find("{%", tag + 1)) {
      std::string_view after = std::string_view(source_).substr(tag + 2);
      const char sign = after.starts_with('-') || after.starts_with('+') ? after[0] : '\0';
      if (sign != '\0') after.remove_prefix(1);
      after = strip_left(after);
      if (!after.starts_with("endraw")) continue;
      after = strip_left(after.substr(6));
      const char end_sign = after.starts_with('-') || after.starts_with('+') ? after[0] : '\0';
      if (end_sign != '\0') after.remove_prefix(1);
      if (!after.starts_with("%}")) continue;
      add_text_before_tag(std::string_view(source_).substr(position_, tag - position_), sign,
                          false);
      move_to(source_.size() - after.size() + 2);
      finish_tag(end_sign, true);
      return {};
    }
    return error(line, "'raw' has no 'endraw'");
  }

  Status lex_inside(bool variable) {
    const int begin_line = line_;
    const std::string_view close = variable ? "}}" : "%}";
    std::string brackets;  // the closing ones that are awaited
    while (position_ < source_.size()) {
      const std::string_view rest = std::string_view(source_).substr(position_);
      if (brackets.empty()) {
        const bool signed_end = rest.starts_with('-') || (!variable && rest.starts_with('+'));
        if (rest.substr(signed_end ? 1 : 0).starts_with(close)) {
          push(variable ? TokenKind::kVariableEnd : TokenKind::kBlockEnd, std::string(close));
          move_to(position_ + (signed_end ? 3 : 2));
          finish_tag(signed_end ? rest[0] : '\0', !variable);
          return {};
        }
      }
      if (const size_t spaces = rest.size() - strip_left(rest).size(); spaces > 0) {
        move_to(position_ + spaces);
        continue;
      }
      NIBBLE_TRY(lex_token(rest, brackets));
    }
    return error(begin_line, fmt::format("a tag has no end '{}'", close));
  }

  Status lex_token(std::string_view rest, std::string& brackets) {
    const char c = rest[0];
    if (begins_name(c)) {
      size_t size = 1;
      while (size < rest.size() && (begins_name(rest[size]) || is_digit(rest[size]))) ++size;
      if (size < rest.size() && static_cast<unsigned char>(rest[size]) >= 0x80 &&
          !is_space(code_point(rest.substr(size)))) {
        return unsupported(fmt::format("line {}: names are ASCII letters, digits and '_'", line_));
      }
      return take(TokenKind::kName, size);
    }
    if (is_digit(c)) return lex_number(rest);
    if (c == '"' || c == '\'') return lex_string(rest);
    for (const std::string_view op : {"//", "**", "==", "!=", ">=", "<="}) {
      if (rest.starts_with(op)) return take(TokenKind::kOperator, 2);
    }
    if (std::string_view("+-/*%~[](){}><=.:|,;").find(c) == std::string_view::npos) {
      const size_t size = std::min(rest.size(), code_point_bytes(c));
      return error(line_, fmt::format("unexpected character '{}'", rest.substr(0, size)));
    }
    constexpr std::string_view kOpen = "([{";
    constexpr std::string_view kClose = ")]}";
    if (const size_t i = kOpen.find(c); i != std::string_view::npos) brackets += kClose[i];
    if (kClose.find(c) != std::string_view::npos) {
      if (brackets.empty() || brackets.back() != c) {
        return error(line_, fmt::format("unexpected '{}'", c));
      }
      brackets.pop_back();
    }
    return take(TokenKind::kOperator, 1);
  }

  static char32_t code_point(std::string_view text) {
    size_t position = 0;
    return next_code_point(text, &position);
  }

  // [0-9] with single '_' between digits; a float has a fraction, an exponent or both.
  Status lex_number(std::string_view rest) {
    const auto digits = [&rest](size_t from) {
      size_t i = from;
      while (i < rest.size() &&
             (is_digit(rest[i]) ||
              (rest[i] == '_' && i > from && i + 1 < rest.size() && is_digit(rest[i + 1])))) {
        ++i;
      }
      return i;
    };
    size_t end = digits(0);
    bool real = false;
    // "a.0.5" is two indices, so a number right after a dot has no fraction.
    const bool after_dot = position_ > 0 && source_[position_ - 1] == '.';
    if (!after_dot) {
      if (end < rest.size() && rest[end] == '.' && digits(end + 1) > end + 1) {
        end = digits(end + 1);
        real = true;
      }
      if (end < rest.size() && (rest[end] == 'e' || rest[end] == 'E')) {
        const size_t sign = end + 1 < rest.size() && (rest[end + 1] == '+' || rest[end + 1] == '-');
        if (digits(end + 1 + sign) > end + 1 + sign) {
          end = digits(end + 1 + sign);
          real = true;
        }
      }
    }
    if (end < rest.size() && begins_name(rest[end])) {
      return unsupported(
          fmt::format("line {}: numbers are decimal, found '{}'", line_, rest.substr(0, end + 1)));
    }
    if (!real && rest[0] == '0' && end > 1) {
      return error(line_, "an integer begins with 0");
    }
    std::string text(rest.substr(0, end));
    text.erase(std::remove(text.begin(), text.end(), '_'), text.end());
    push(real ? TokenKind::kFloat : TokenKind::kInteger, std::move(text));
    move_to(position_ + end);
    return {};
  }

  // Python's escapes; an unknown one stays as it is, backslash and all.
  Status lex_string(std::string_view rest) {
    const char quote = rest[0];
    std::string value;
    size_t i = 1;
    while (i < rest.size() && rest[i] != quote) {
      if (rest[i] != '\\') {
        value += rest[i++];
        continue;
      }
      if (i + 1 >= rest.size()) break;
      i = NIBBLE_TRY(unescape(rest, i + 1, value));
    }
    if (i >= rest.size()) return error(line_, "a string has no end");
    push(TokenKind::kString, std::move(value));
    move_to(position_ + i + 1);
    return {};
  }

  // The escape whose letter is at rest[i]; returns where it ends.
  Result<size_t> unescape(std::string_view rest, size_t i, std::string& value) {
    constexpr std::string_view kLetters = "ntrabfv\\'\"";
    constexpr std::string_view kMeanings = "\n\t\r\a\b\f\v\\'\"";
    const char letter = rest[i];
    if (const size_t known = kLetters.find(letter); known != std::string_view::npos) {
      value += kMeanings[known];
      return i + 1;
    }
    if (letter == '\n') return i + 1;
    if (letter == 'N') {
      return unsupported(fmt::format("line {}: '\\N{{...}}' is not supported, use \\u", line_));
    }
    if (letter >= '0' && letter <= '7') {
      char32_t c = 0;
      const size_t end = std::min(rest.size(), i + 3);
      for (; i < end && rest[i] >= '0' && rest[i] <= '7'; ++i) {
        c = c * 8 + static_cast<char32_t>(rest[i] - '0');
      }
      append_utf8(value, c);
      return i;
    }
    const size_t size = letter == 'x' ? 2 : letter == 'u' ? 4 : letter == 'U' ? 8 : 0;
    if (size == 0) {
      value += '\\';
      value += letter;
      return i + 1;
    }
    char32_t c = 0;
    for (size_t k = 1; k <= size; ++k) {
      const int digit = i + k < rest.size() ? hex_digit(rest[i + k]) : -1;
      if (digit < 0 || c > 0xfffffff) {
        return error(line_, fmt::format("'\\{}' needs {} hexadecimal digits", letter, size));
      }
      c = c * 16 + static_cast<char32_t>(digit);
    }
    if (c > 0x10ffff || (c >= 0xd800 && c <= 0xdfff)) {
      return error(line_, fmt::format("'\\{}' names no character", rest.substr(i, size + 1)));
    }
    append_utf8(value, c);
    return i + 1 + size;
  }

  Status take(TokenKind kind, size_t size) {
    push(kind, source_.substr(position_, size));
    move_to(position_ + size);
    return {};
  }

  void push(TokenKind kind, std::string text) { tokens_.push_back({kind, line_, std::move(text)}); }

  void move_to(size_t position) {
    line_ +=
        static_cast<int>(std::count(source_.begin() + static_cast<std::ptrdiff_t>(position_),
                                    source_.begin() + static_cast<std::ptrdiff_t>(position), '\n'));
    position_ = position;
  }

  static tl::unexpected<Error> error(int line, std::string_view what) {
    return invalid_argument(fmt::format("line {}: {}", line, what));
  }

  std::string source_;
  size_t position_ = 0;
  int line_ = 1;
  bool at_line_start_ = true;
  std::vector<Token> tokens_;
};

}  // namespace

Result<std::vector<Token>> tokenize(std::string_view source) {
  size_t bad_offset = 0;
  if (!is_valid_utf8(source, &bad_offset)) {
    return invalid_argument(fmt::format("malformed UTF-8 at byte {}", bad_offset));
  }
  return Lexer(source).run();
}

std::string describe(const Token& token) {
  switch (token.kind) {
    case TokenKind::kText:
      return "text";
    case TokenKind::kString:
      return "a string";
    case TokenKind::kEnd:
      return "the end of the template";
    default:
      return fmt::format("'{}'", token.text);
  }
}

}  // namespace nibble::jinja
