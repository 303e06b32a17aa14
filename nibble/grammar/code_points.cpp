#include "nibble/grammar/code_points.h"

#include <fmt/format.h>

#include <algorithm>

namespace nibble {
namespace {

constexpr uint32_t kFirstSurrogate = 0xD800;
constexpr uint32_t kLastSurrogate = 0xDFFF;

int utf8_length(uint32_t code_point) {
  if (code_point < 0x80) return 1;
  if (code_point < 0x800) return 2;
  return code_point < 0x10000 ? 3 : 4;
}

// Byte `index` of the UTF-8 of a code point with `length` bytes.
int utf8_byte(uint32_t code_point, int length, int index) {
  const auto shifted = static_cast<int>(code_point >> (6 * (length - 1 - index)));
  if (length == 1) return shifted;
  if (index > 0) return 0x80 | (shifted & 0x3F);
  return (0xF00 >> length & 0xFF) | shifted;
}

// Nodes for [first, last], all of `length` bytes, equal in the bytes before `index`.
int32_t sequence(GrammarBuilder& builder, uint32_t first, uint32_t last, int length, int index,
                 int32_t next) {
  const int from = utf8_byte(first, length, index);
  const int to = utf8_byte(last, length, index);
  if (index == length - 1) return builder.bytes(byte_range(from, to), next);
  const uint32_t block = uint32_t{1} << (6 * (length - 1 - index));  // that one byte stands for
  if (from == to) {
    return builder.bytes(byte_range(from, to),
                         sequence(builder, first, last, length, index + 1, next));
  }
  const uint32_t first_end = first / block * block + block - 1;
  const uint32_t last_begin = last / block * block;
  const bool is_first_whole = first % block == 0;
  const bool is_last_whole = last % block == block - 1;
  std::vector<int32_t> alternatives;
  if (!is_first_whole) {
    alternatives.push_back(builder.bytes(
        byte_range(from, from), sequence(builder, first, first_end, length, index + 1, next)));
  }
  const int middle_from = is_first_whole ? from : from + 1;
  const int middle_to = is_last_whole ? to : to - 1;
  if (middle_from <= middle_to) {
    int32_t tail = next;
    for (int i = index + 1; i < length; ++i) tail = builder.bytes(byte_range(0x80, 0xBF), tail);
    alternatives.push_back(builder.bytes(byte_range(middle_from, middle_to), tail));
  }
  if (!is_last_whole) {
    alternatives.push_back(builder.bytes(
        byte_range(to, to), sequence(builder, last_begin, last, length, index + 1, next)));
  }
  return builder.any_of(alternatives);
}

std::string json_escape(uint32_t code_point) {
  switch (code_point) {
    case '"':
      return "\\\"";
    case '\\':
      return "\\\\";
    case '\b':
      return "\\b";
    case '\f':
      return "\\f";
    case '\n':
      return "\\n";
    case '\r':
      return "\\r";
    case '\t':
      return "\\t";
    default:
      return fmt::format("\\u{:04x}", code_point);
  }
}

bool needs_escape(uint32_t code_point) {
  return code_point < 0x20 || code_point == '"' || code_point == '\\';
}

}  // namespace

CodePointSet::CodePointSet(std::vector<std::pair<uint32_t, uint32_t>> ranges)
    : ranges_(std::move(ranges)) {
  normalise();
}

void CodePointSet::add(uint32_t first, uint32_t last) {
  ranges_.emplace_back(first, last);
  normalise();
}

void CodePointSet::add(const CodePointSet& other) {
  ranges_.insert(ranges_.end(), other.ranges_.begin(), other.ranges_.end());
  normalise();
}

CodePointSet CodePointSet::complement() const {
  std::vector<std::pair<uint32_t, uint32_t>> gaps;
  uint32_t next = 0;
  for (const auto& [first, last] : ranges_) {
    if (first > next) gaps.emplace_back(next, first - 1);
    next = last + 1;
  }
  if (next <= kMaxCodePoint) gaps.emplace_back(next, kMaxCodePoint);
  return CodePointSet(std::move(gaps));
}

bool CodePointSet::contains(uint32_t code_point) const {
  return std::any_of(ranges_.begin(), ranges_.end(), [&](const auto& range) {
    return range.first <= code_point && code_point <= range.second;
  });
}

void CodePointSet::normalise() {
  std::vector<std::pair<uint32_t, uint32_t>> parts;
  for (const auto& [first, last] : ranges_) {
    if (first > last) continue;
    if (first < kFirstSurrogate) parts.emplace_back(first, std::min(last, kFirstSurrogate - 1));
    if (last > kLastSurrogate) parts.emplace_back(std::max(first, kLastSurrogate + 1), last);
  }
  std::sort(parts.begin(), parts.end());
  ranges_.clear();
  for (const auto& [first, last] : parts) {
    if (!ranges_.empty() && first <= ranges_.back().second + 1) {
      ranges_.back().second = std::max(ranges_.back().second, last);
    } else {
      ranges_.emplace_back(first, last);
    }
  }
}

int32_t utf8_node(GrammarBuilder& builder, const CodePointSet& set, int32_t next) {
  ByteSet ascii;
  std::vector<int32_t> alternatives;
  constexpr uint32_t kLastOfLength[] = {0x7F, 0x7FF, 0xFFFF, kMaxCodePoint};
  for (const auto& [range_first, last] : set.ranges()) {
    uint32_t first = range_first;
    while (first <= last) {
      const int length = utf8_length(first);
      const uint32_t end = std::min(last, kLastOfLength[length - 1]);
      if (length == 1) {
        ascii |= byte_range(static_cast<int>(first), static_cast<int>(end));
      } else {
        alternatives.push_back(sequence(builder, first, end, length, 0, next));
      }
      first = end + 1;
    }
  }
  if (ascii.any()) alternatives.push_back(builder.bytes(ascii, next));
  return builder.any_of(alternatives);
}

int32_t json_char_node(GrammarBuilder& builder, const CodePointSet& set, int32_t next) {
  CodePointSet escaped;
  std::vector<std::string> escapes;
  for (uint32_t code_point = 0; code_point <= '\\'; ++code_point) {
    if (!needs_escape(code_point)) continue;
    escaped.add(code_point, code_point);
    if (set.contains(code_point)) escapes.push_back(json_escape(code_point));
  }
  CodePointSet rest = set.complement();
  rest.add(escaped);
  return builder.split(utf8_node(builder, rest.complement(), next),
                       builder.one_of(std::move(escapes), next));
}

std::string json_escaped(std::string_view text) {
  std::string result;
  for (const char c : text) {
    const auto byte = static_cast<uint8_t>(c);
    if (needs_escape(byte)) {
      result += json_escape(byte);
    } else {
      result += c;
    }
  }
  return result;
}

}  // namespace nibble
