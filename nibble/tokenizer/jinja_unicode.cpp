#include "nibble/tokenizer/jinja_unicode.h"

#include <fmt/format.h>

#include <clocale>
#include <cstring>
#include <cwctype>

#include "nibble/base/error.h"

namespace nibble::jinja {
namespace {

unsigned byte_at(std::string_view text, size_t position) {
  return position < text.size() ? static_cast<unsigned char>(text[position]) : 0;
}

// Characters whose full mapping in Unicode's SpecialCasing.txt has several characters or depends on
// the neighbours.
bool has_special_case(char32_t c, bool upper) {
  if (!upper) return c == 0x130 || c == 0x3a3;
  return c == 0xdf || c == 0x149 || c == 0x1f0 || c == 0x390 || c == 0x3b0 || c == 0x587 ||
         (c >= 0x1e96 && c <= 0x1e9a) || (c >= 0x1f50 && c <= 0x1ffc) ||
         (c >= 0xfb00 && c <= 0xfb17);
}

bool contains_code_point(std::string_view text, char32_t wanted) {
  for (size_t i = 0; i < text.size();) {
    if (next_code_point(text, &i) == wanted) return true;
  }
  return false;
}

bool strips(char32_t c, const std::string* chars) {
  return chars == nullptr ? is_space(c) : contains_code_point(*chars, c);
}

}  // namespace

size_t code_point_bytes(char lead) {
  const auto byte = static_cast<unsigned char>(lead);
  return byte < 0x80 ? 1 : byte < 0xe0 ? 2 : byte < 0xf0 ? 3 : 4;
}

char32_t next_code_point(std::string_view text, size_t* position) {
  const size_t i = *position;
  const unsigned lead = byte_at(text, i);
  const size_t size = code_point_bytes(text[i]);
  *position = std::min(text.size(), i + size);
  const unsigned b1 = byte_at(text, i + 1) & 0x3f;
  const unsigned b2 = byte_at(text, i + 2) & 0x3f;
  const unsigned b3 = byte_at(text, i + 3) & 0x3f;
  switch (size) {
    case 1:
      return lead;
    case 2:
      return (lead & 0x1f) << 6 | b1;
    case 3:
      return (lead & 0x0f) << 12 | b1 << 6 | b2;
    default:
      return (lead & 0x07) << 18 | b1 << 12 | b2 << 6 | b3;
  }
}

void append_utf8(std::string& out, char32_t c) {
  const auto push = [&out](char32_t byte) { out.push_back(static_cast<char>(byte)); };
  if (c < 0x80) {
    push(c);
  } else if (c < 0x800) {
    push(0xc0 | c >> 6);
    push(0x80 | (c & 0x3f));
  } else if (c < 0x10000) {
    push(0xe0 | c >> 12);
    push(0x80 | (c >> 6 & 0x3f));
    push(0x80 | (c & 0x3f));
  } else {
    push(0xf0 | c >> 18);
    push(0x80 | (c >> 12 & 0x3f));
    push(0x80 | (c >> 6 & 0x3f));
    push(0x80 | (c & 0x3f));
  }
}

size_t count_code_points(std::string_view text) {
  size_t count = 0;
  for (const char byte : text) count += (static_cast<unsigned char>(byte) & 0xc0) != 0x80;
  return count;
}

bool is_space(char32_t c) {
  return (c >= 0x09 && c <= 0x0d) || (c >= 0x1c && c <= 0x20) || c == 0x85 || c == 0xa0 ||
         c == 0x1680 || (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f ||
         c == 0x205f || c == 0x3000;
}

std::string_view strip_left(std::string_view text, const std::string* chars) {
  size_t begin = 0;
  while (begin < text.size()) {
    size_t next = begin;
    if (!strips(next_code_point(text, &next), chars)) break;
    begin = next;
  }
  return text.substr(begin);
}

std::string_view strip_right(std::string_view text, const std::string* chars) {
  size_t end = text.size();
  while (end > 0) {
    size_t begin = end - 1;
    while (begin > 0 && (byte_at(text, begin) & 0xc0) == 0x80) --begin;
    size_t next = begin;
    if (!strips(next_code_point(text, &next), chars)) break;
    end = begin;
  }
  return text.substr(0, end);
}

Result<std::string> change_case(std::string_view text, bool upper) {
  static const locale_t locale = newlocale(LC_CTYPE_MASK, "C.UTF-8", nullptr);
  std::string out;
  out.reserve(text.size());
  for (size_t i = 0; i < text.size();) {
    const char32_t c = next_code_point(text, &i);
    if (c < 0x80) {
      const bool changes = upper ? (c >= 'a' && c <= 'z') : (c >= 'A' && c <= 'Z');
      out.push_back(static_cast<char>(changes ? c ^ 0x20 : c));
      continue;
    }
    if (locale == nullptr || has_special_case(c, upper)) {
      return unsupported(fmt::format("{} of U+{:04X} is not supported", upper ? "upper" : "lower",
                                     static_cast<uint32_t>(c)));
    }
    const auto wide = static_cast<wint_t>(c);
    append_utf8(out, upper ? towupper_l(wide, locale) : towlower_l(wide, locale));
  }
  return out;
}

size_t find_text(std::string_view text, std::string_view wanted, size_t from) {
  if (from > text.size() || wanted.size() > text.size() - from) return std::string_view::npos;
  if (wanted.empty()) return from;
  // glibc's memmem is the two-way algorithm.
  const void* found = memmem(text.data() + from, text.size() - from, wanted.data(), wanted.size());
  if (found == nullptr) return std::string_view::npos;
  return static_cast<size_t>(static_cast<const char*>(found) - text.data());
}

bool is_printable(char32_t c) {
  if (c < 0x20 || c == 0x7f || (c >= 0x80 && c <= 0xa0) || c == 0xad) return false;
  if (c != 0x20 && is_space(c)) return false;
  if ((c >= 0x200b && c <= 0x200f) || (c >= 0x202a && c <= 0x202e)) return false;
  if ((c >= 0x2060 && c <= 0x206f) || (c >= 0xd800 && c <= 0xf8ff)) return false;
  return c != 0xfeff && !(c >= 0xfff0 && c <= 0xfffb) && c < 0xe0000 && (c & 0xfffe) != 0xfffe;
}

}  // namespace nibble::jinja
