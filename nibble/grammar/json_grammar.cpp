#include "nibble/grammar/json_grammar.h"

#include <algorithm>

#include "nibble/grammar/code_points.h"

namespace nibble {
namespace {

constexpr int kMaxIndentation = 40;
constexpr int kMaxFractionDigits = 18;
constexpr int kMaxExponentDigits = 2;
constexpr int64_t kLargestInteger = 999'999'999'999'999'999;  // of 18 digits

ByteSet byte(char c) { return byte_range(static_cast<uint8_t>(c), static_cast<uint8_t>(c)); }

ByteSet hex_digits() { return byte_range('0', '9') | byte_range('a', 'f') | byte_range('A', 'F'); }

CodePointSet plain_characters() {
  return CodePointSet({{0, 0x1F}, {'"', '"'}, {'\\', '\\'}}).complement();
}

// Nodes for the numbers of a.size() digits from a to b, from digit i on.
int32_t digit_range(GrammarBuilder& builder, std::string_view a, std::string_view b, size_t i,
                    bool on_low, bool on_high, int32_t next) {
  if (i == a.size()) return next;
  if (!on_low && !on_high) {
    for (size_t rest = i; rest < a.size(); ++rest) next = builder.bytes(byte_range('0', '9'), next);
    return next;
  }
  const char low = on_low ? a[i] : '0';
  const char high = on_high ? b[i] : '9';
  std::vector<int32_t> alternatives;
  const auto add = [&](int first, int last, bool is_low, bool is_high) {
    if (first > last) return;
    const int32_t tail = digit_range(builder, a, b, i + 1, is_low, is_high, next);
    alternatives.push_back(builder.bytes(byte_range(first, last), tail));
  };
  if (on_low && on_high && low == high) {
    add(low, low, true, true);
  } else {
    if (on_low) add(low, low, true, false);
    add(on_low ? low + 1 : low, on_high ? high - 1 : high, false, false);
    if (on_high) add(high, high, false, true);
  }
  return builder.any_of(alternatives);
}

}  // namespace

template <typename Define>
int32_t JsonRules::rule(int32_t& id, Define define) {
  if (id < 0) {
    id = builder_.add_rule();
    builder_.define(id, define());
  }
  return id;
}

int32_t JsonRules::whitespace(int32_t next) {
  const int32_t id = rule(whitespace_, [&] {
    int32_t indentation = GrammarBuilder::kReturn;
    for (int i = 0; i < kMaxIndentation; ++i) {
      indentation = builder_.split(builder_.literal(" ", indentation), GrammarBuilder::kReturn);
    }
    return builder_.any_of({builder_.literal(" ", GrammarBuilder::kReturn),
                            builder_.literal("\n", indentation), GrammarBuilder::kReturn});
  });
  return builder_.call(id, next);
}

int32_t JsonRules::colon(int32_t next) {
  const int32_t id = rule(colon_, [&] {
    constexpr int32_t kEnd = GrammarBuilder::kReturn;
    return builder_.literal(":", builder_.split(builder_.literal(" ", kEnd), kEnd));
  });
  return builder_.call(id, next);
}

int32_t JsonRules::character(int32_t next) {
  const auto hex = [&](int count, int32_t tail) {
    for (int i = 0; i < count; ++i) tail = builder_.bytes(hex_digits(), tail);
    return tail;
  };
  const ByteSet d = byte('d') | byte('D');
  // D800..DBFF, then \u and DC00..DFFF; or four digits that are neither.
  const int32_t low_surrogate = builder_.literal(
      "\\u",
      builder_.bytes(d, builder_.bytes(byte_range('c', 'f') | byte_range('C', 'F'), hex(2, next))));
  const int32_t unicode = builder_.any_of(
      {builder_.bytes(hex_digits() & ~d, hex(3, next)),
       builder_.bytes(d, builder_.bytes(byte_range('0', '7'), hex(2, next))),
       builder_.bytes(
           d, builder_.bytes(byte('8') | byte('9') | byte_range('a', 'b') | byte_range('A', 'B'),
                             hex(2, low_surrogate)))});
  ByteSet simple;
  for (const char c : {'"', '\\', '/', 'b', 'f', 'n', 'r', 't'}) simple |= byte(c);
  const int32_t escape = builder_.literal(
      "\\", builder_.split(builder_.bytes(simple, next), builder_.literal("u", unicode)));
  return builder_.split(utf8_node(builder_, plain_characters(), next), escape);
}

int32_t JsonRules::characters(int32_t next) {
  const int32_t loop = builder_.loop();
  builder_.close_loop(loop, character(loop), next);
  return loop;
}

int32_t JsonRules::string(int32_t next) {
  const int32_t id = rule(string_, [&] {
    return builder_.literal("\"", characters(builder_.literal("\"", GrammarBuilder::kReturn)));
  });
  return builder_.call(id, next);
}

int32_t JsonRules::string(int64_t min_length, int64_t max_length, int32_t next) {
  if (min_length <= 0 && max_length == kUnbounded) return string(next);
  const int32_t id = rule(character_, [&] { return character(GrammarBuilder::kReturn); });
  const int32_t end = builder_.literal("\"", next);
  return builder_.literal("\"", builder_.repeat(id, min_length, max_length, end));
}

int32_t JsonRules::digits(int min, int max, int32_t next) {
  int32_t first = next;
  for (int i = min; i < max; ++i) {
    first = builder_.split(builder_.bytes(byte_range('0', '9'), first), next);
  }
  for (int i = 0; i < min; ++i) first = builder_.bytes(byte_range('0', '9'), first);
  return first;
}

int32_t JsonRules::integer(int32_t next) {
  const int32_t id = rule(integer_, [&] {
    return integer_in(-kLargestInteger, kLargestInteger, GrammarBuilder::kReturn);
  });
  return builder_.call(id, next);
}

int32_t JsonRules::number(int32_t next) {
  const int32_t id = rule(number_, [&] {
    constexpr int32_t kEnd = GrammarBuilder::kReturn;
    const int32_t exponent_digits = digits(1, kMaxExponentDigits, kEnd);
    const int32_t exponent = builder_.bytes(
        byte('e') | byte('E'),
        builder_.split(builder_.bytes(byte('+') | byte('-'), exponent_digits), exponent_digits));
    const int32_t tail = builder_.split(exponent, kEnd);
    const int32_t fraction = builder_.literal(".", digits(1, kMaxFractionDigits, tail));
    const int32_t whole = builder_.split(fraction, tail);
    const int32_t magnitude = builder_.split(
        builder_.literal("0", whole),
        builder_.bytes(byte_range('1', '9'), digits(0, kMaxIntegerDigits - 1, whole)));
    return builder_.split(magnitude, builder_.literal("-", magnitude));
  });
  return builder_.call(id, next);
}

int32_t JsonRules::magnitudes(int64_t min, int64_t max, int32_t next) {
  std::vector<int32_t> alternatives;
  // All numbers with the same number of digits at a time.
  int64_t last_of_length = 9;
  for (int length = 1; length <= kMaxIntegerDigits; ++length) {
    const int64_t first_of_length = length == 1 ? 0 : (last_of_length - 9) / 10 + 1;
    const int64_t first = std::max(min, first_of_length);
    const int64_t last = std::min(max, last_of_length);
    if (first <= last) {
      alternatives.push_back(
          digit_range(builder_, std::to_string(first), std::to_string(last), 0, true, true, next));
    }
    if (length < kMaxIntegerDigits) last_of_length = last_of_length * 10 + 9;
  }
  return builder_.any_of(alternatives);
}

int32_t JsonRules::integer_in(int64_t min, int64_t max, int32_t next) {
  min = std::max(min, -kLargestInteger);
  max = std::min(max, kLargestInteger);
  const int32_t positive = magnitudes(std::max<int64_t>(min, 0), max, next);
  if (min >= 0) return positive;
  const int32_t negative = magnitudes(std::max<int64_t>(-max, 1), -min, next);
  return builder_.split(positive, builder_.literal("-", negative));
}

int32_t JsonRules::value(int32_t next) {
  // Not through rule(): objects and arrays ask for this rule while it is made.
  if (value_ < 0) {
    value_ = builder_.add_rule();
    constexpr int32_t kEnd = GrammarBuilder::kReturn;
    builder_.define(value_, builder_.any_of({string(kEnd), number(kEnd), object(kEnd), array(kEnd),
                                             builder_.one_of({"true", "false", "null"}, kEnd)}));
  }
  return builder_.call(value_, next);
}

int32_t JsonRules::object(int32_t next) {
  if (object_ < 0) {
    object_ = builder_.add_rule();
    const int32_t close = builder_.literal("}", GrammarBuilder::kReturn);
    const int32_t more = builder_.loop();
    const int32_t member = string(colon(value(more)));
    builder_.close_loop(more, builder_.literal(",", whitespace(member)), whitespace(close));
    builder_.define(object_, builder_.literal("{", whitespace(builder_.split(member, close))));
  }
  return builder_.call(object_, next);
}

int32_t JsonRules::array(int32_t next) {
  if (array_ < 0) {
    array_ = builder_.add_rule();
    const int32_t item = builder_.add_rule();
    builder_.define(item, value(GrammarBuilder::kReturn));
    builder_.define(array_, array_of(item, 0, kUnbounded, GrammarBuilder::kReturn));
  }
  return builder_.call(array_, next);
}

int32_t JsonRules::array_of(int32_t item, int64_t min, int64_t max, int32_t next) {
  const int32_t close = builder_.literal("]", next);
  const int32_t more_rule = builder_.add_rule();
  builder_.define(more_rule,
                  builder_.literal(",", whitespace(builder_.call(item, GrammarBuilder::kReturn))));
  const int64_t max_more = max == kUnbounded ? kUnbounded : max - 1;
  const int32_t some =
      max < 1 ? GrammarBuilder::kFail
              : builder_.call(item, builder_.repeat(more_rule, std::max<int64_t>(min - 1, 0),
                                                    max_more, whitespace(close)));
  const int32_t none = min <= 0 && max >= 0 ? close : GrammarBuilder::kFail;
  return builder_.literal("[", whitespace(builder_.split(some, none)));
}

// Behind `depth` bytes that all of `names` share. A character that isn't ASCII and begins with the
// same byte as one of the names can't be used to leave them, so that no character is torn.
int32_t JsonRules::key_tail(std::span<const std::string> names, size_t depth, int32_t plain_tail,
                            int32_t next) {
  ByteSet leaving = byte_range(0x20, 0x7F) & ~byte('"') & ~byte('\\');
  CodePointSet taken({{0, 0x7F}});
  std::vector<int32_t> alternatives;
  size_t i = 0;
  const bool is_name = !names.empty() && names.front().size() == depth;
  const bool is_inside_character = !names.empty() && names.back().size() > depth &&
                                   (static_cast<uint8_t>(names.back()[depth]) & 0xC0) == 0x80;
  if (is_name) {
    i = 1;
  } else if (!is_inside_character) {
    alternatives.push_back(builder_.literal("\"", next));
  }
  while (i < names.size()) {
    size_t end = i + 1;
    while (end < names.size() && names[end][depth] == names[i][depth]) ++end;
    const char c = names[i][depth];
    leaving &= ~byte(c);
    const auto lead = static_cast<uint8_t>(c);
    if (lead >= 0xF0) {
      taken.add((lead & 0x07U) << 18, ((lead & 0x07U) << 18) + 0x3FFFF);
    } else if (lead >= 0xE0) {
      taken.add((lead & 0x0FU) << 12, ((lead & 0x0FU) << 12) + 0xFFF);
    } else if (lead >= 0xC0) {
      taken.add((lead & 0x1FU) << 6, ((lead & 0x1FU) << 6) + 0x3F);
    }
    if (c != '"' && c != '\\') {
      alternatives.push_back(builder_.bytes(
          byte(c), key_tail(names.subspan(i, end - i), depth + 1, plain_tail, next)));
    }
    i = end;
  }
  if (!is_inside_character) {
    alternatives.push_back(builder_.bytes(leaving, plain_tail));
    alternatives.push_back(utf8_node(builder_, taken.complement(), plain_tail));
  }
  return builder_.any_of(alternatives);
}

int32_t JsonRules::key_other_than(std::vector<std::string> names, int32_t next) {
  if (names.empty()) return string(next);
  for (std::string& name : names) name = json_escaped(name);
  std::sort(names.begin(), names.end());
  names.erase(std::unique(names.begin(), names.end()), names.end());
  const int32_t plain_tail = builder_.loop();
  builder_.close_loop(plain_tail, utf8_node(builder_, plain_characters(), plain_tail),
                      builder_.literal("\"", next));
  return builder_.literal("\"", key_tail(names, 0, plain_tail, next));
}

}  // namespace nibble
