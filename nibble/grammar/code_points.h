// Sets of Unicode characters, and the bytes that write them.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "nibble/grammar/grammar.h"

namespace nibble {

inline constexpr uint32_t kMaxCodePoint = 0x10FFFF;

// Ranges [first, last] in ascending order that don't touch, without the surrogates.
class CodePointSet {
 public:
  CodePointSet() = default;
  // In any order; ranges may overlap. Surrogates are left out.
  explicit CodePointSet(std::vector<std::pair<uint32_t, uint32_t>> ranges);

  static CodePointSet all() { return CodePointSet({{0, kMaxCodePoint}}); }

  void add(uint32_t first, uint32_t last);
  void add(const CodePointSet& other);
  CodePointSet complement() const;
  bool contains(uint32_t code_point) const;
  const std::vector<std::pair<uint32_t, uint32_t>>& ranges() const { return ranges_; }

 private:
  void normalise();
  std::vector<std::pair<uint32_t, uint32_t>> ranges_;
};

// A character of `set` in UTF-8, then next.
int32_t utf8_node(GrammarBuilder& builder, const CodePointSet& set, int32_t next);

// A character of `set` as it stands inside a JSON string, written in one way only: control
// characters, '"' and '\' escaped (\n rather than \u000a), the rest plain.
int32_t json_char_node(GrammarBuilder& builder, const CodePointSet& set, int32_t next);

// `text`, valid UTF-8, inside a JSON string, without its quotes, in the way of json_char_node().
std::string json_escaped(std::string_view text);

}  // namespace nibble
