#include "nibble/grammar/regex.h"

#include <fmt/format.h>

#include <memory>
#include <optional>

#include "nibble/base/error.h"
#include "nibble/base/text.h"
#include "nibble/grammar/code_points.h"
#include "nibble/grammar/tree_emitter.h"

namespace nibble {
namespace {

constexpr int kMaxRegexDepth = 64;
constexpr int64_t kMaxCount = 1000;

struct RegexNode {
  enum class Kind { kSet, kConcat, kAlternatives, kRepeat, kBegin, kEnd };
  Kind kind = Kind::kConcat;
  CodePointSet set = {};
  std::vector<RegexNode> children = {};
  int64_t min = 0;
  int64_t max = kUnbounded;
};

CodePointSet digits() { return CodePointSet({{'0', '9'}}); }
CodePointSet word_characters() {
  return CodePointSet({{'0', '9'}, {'A', 'Z'}, {'_', '_'}, {'a', 'z'}});
}
CodePointSet spaces() { return CodePointSet({{'\t', '\r'}, {' ', ' '}}); }
CodePointSet all_but_line_ends() {
  return CodePointSet({{'\n', '\n'}, {'\r', '\r'}, {0x2028, 0x2029}}).complement();
}

class RegexParser {
 public:
  explicit RegexParser(std::string_view pattern) : pattern_(pattern) {}

  Result<RegexNode> parse() {
    size_t bad = 0;
    if (!is_valid_utf8(pattern_, &bad)) {
      return invalid_argument(fmt::format("regex: byte {} is not UTF-8", bad));
    }
    RegexNode node = NIBBLE_TRY(alternatives(0));
    if (!done()) return malformed("')' without '('");
    return node;
  }

 private:
  bool done() const { return at_ == pattern_.size(); }
  char peek() const { return pattern_[at_]; }
  bool take(std::string_view text) {
    if (pattern_.substr(at_, text.size()) != text) return false;
    at_ += text.size();
    return true;
  }
  tl::unexpected<Error> malformed(std::string_view what) const {
    return invalid_argument(fmt::format("regex: {} at byte {} of '{}'", what, at_, pattern_));
  }
  tl::unexpected<Error> no_support(std::string_view what) const {
    return unsupported(
        fmt::format("regex: {} at byte {} of '{}' is not supported", what, at_, pattern_));
  }

  // Valid UTF-8 has been checked.
  uint32_t code_point() {
    const auto lead = static_cast<uint8_t>(pattern_[at_++]);
    if (lead < 0x80) return lead;
    const int length = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
    uint32_t value = lead & (0xFFU >> (length + 1));
    for (int i = 1; i < length; ++i) {
      value = value << 6 | (static_cast<uint8_t>(pattern_[at_++]) & 0x3FU);
    }
    return value;
  }

  Result<RegexNode> alternatives(int depth) {
    if (depth > kMaxRegexDepth) return no_support("nesting deeper than 64");
    RegexNode node{.kind = RegexNode::Kind::kAlternatives};
    do {
      node.children.push_back(NIBBLE_TRY(concat(depth)));
    } while (take("|"));
    return node;
  }

  Result<RegexNode> concat(int depth) {
    RegexNode node;
    while (!done() && peek() != '|' && peek() != ')') {
      RegexNode part = NIBBLE_TRY(atom(depth));
      node.children.push_back(NIBBLE_TRY(quantified(std::move(part))));
    }
    return node;
  }

  Result<RegexNode> atom(int depth) {
    if (take("^")) return RegexNode{.kind = RegexNode::Kind::kBegin};
    if (take("$")) return RegexNode{.kind = RegexNode::Kind::kEnd};
    if (take(".")) return of(all_but_line_ends());
    if (take("[")) return of(NIBBLE_TRY(bracket()));
    if (take("(")) return group(depth);
    if (take("\\")) return of(NIBBLE_TRY(escape()));
    if (peek() == '*' || peek() == '+' || peek() == '?' || peek() == '{') {
      return malformed("nothing to repeat");
    }
    const uint32_t c = code_point();
    return of(CodePointSet({{c, c}}));
  }

  static RegexNode of(CodePointSet set) {
    return RegexNode{.kind = RegexNode::Kind::kSet, .set = std::move(set)};
  }

  Result<RegexNode> group(int depth) {
    if (take("?")) {
      if (!take(":")) {
        if (peek_is("=") || peek_is("!") || peek_is("<=") || peek_is("<!")) {
          return no_support("a look-around");
        }
        if (!take("<") && !take("P<")) return no_support("this kind of group");
        while (!done() && peek() != '>') ++at_;
        if (!take(">")) return malformed("a group's name without '>'");
      }
    }
    RegexNode node = NIBBLE_TRY(alternatives(depth + 1));
    if (!take(")")) return malformed("'(' without ')'");
    return node;
  }

  bool peek_is(std::string_view text) const { return pattern_.substr(at_, text.size()) == text; }

  Result<RegexNode> quantified(RegexNode part) {
    int64_t min = 0;
    int64_t max = kUnbounded;
    if (take("*")) {
    } else if (take("+")) {
      min = 1;
    } else if (take("?")) {
      max = 1;
    } else if (take("{")) {
      min = NIBBLE_TRY(count());
      max = min;
      if (take(",")) max = peek_is("}") ? kUnbounded : NIBBLE_TRY(count());
      if (!take("}")) return malformed("'{' without '}'");
      if (max < min) return malformed("a repetition with its bounds swapped");
    } else {
      return part;
    }
    if (part.kind == RegexNode::Kind::kBegin || part.kind == RegexNode::Kind::kEnd) {
      return no_support("a repeated anchor");
    }
    if (take("+")) return no_support("a possessive repetition");
    take("?");  // lazy: the same language
    RegexNode node{.kind = RegexNode::Kind::kRepeat, .min = min, .max = max};
    node.children.push_back(std::move(part));
    return node;
  }

  Result<int64_t> count() {
    int64_t value = 0;
    const size_t begin = at_;
    while (!done() && peek() >= '0' && peek() <= '9') {
      value = value * 10 + (peek() - '0');
      if (value > kMaxCount) return no_support("a repetition of more than 1000");
      ++at_;
    }
    if (at_ == begin) return malformed("a repetition without a number");
    return value;
  }

  Result<uint32_t> hex(int digits) {
    uint32_t value = 0;
    for (int i = 0; i < digits; ++i, ++at_) {
      const char c = done() ? '\0' : peek();
      const int digit = c >= '0' && c <= '9'   ? c - '0'
                        : c >= 'a' && c <= 'f' ? c - 'a' + 10
                        : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                               : -1;
      if (digit < 0) return malformed(fmt::format("an escape without its {} hex digits", digits));
      value = value << 4 | static_cast<uint32_t>(digit);
    }
    return value;
  }

  // Behind a backslash.
  Result<CodePointSet> escape() {
    if (done()) return malformed("a backslash at the end");
    const auto single = [](uint32_t c) { return CodePointSet({{c, c}}); };
    const char c = peek();
    switch (c) {
      case 'd':
        return ++at_, digits();
      case 'D':
        return ++at_, digits().complement();
      case 'w':
        return ++at_, word_characters();
      case 'W':
        return ++at_, word_characters().complement();
      case 's':
        return ++at_, spaces();
      case 'S':
        return ++at_, spaces().complement();
      case 't':
        return ++at_, single('\t');
      case 'n':
        return ++at_, single('\n');
      case 'r':
        return ++at_, single('\r');
      case 'f':
        return ++at_, single('\f');
      case 'v':
        return ++at_, single('\v');
      case '0':
        return ++at_, single(0);
      case 'x':
      case 'u': {
        ++at_;
        return single(NIBBLE_TRY(hex(c == 'x' ? 2 : 4)));
      }
      case 'b':
      case 'B':
        return no_support("a word border");
      case 'p':
      case 'P':
        return no_support("a Unicode property");
      default:
        break;
    }
    if (c >= '1' && c <= '9') return no_support("a back reference");
    if ((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z')) {
      return no_support(fmt::format("the escape \\{}", c));
    }
    return single(code_point());
  }

  // Behind '['.
  Result<CodePointSet> bracket() {
    const bool negated = take("^");
    std::vector<std::pair<uint32_t, uint32_t>> ranges;
    for (;;) {
      if (done()) return malformed("'[' without ']'");
      if (take("]")) break;
      if (peek_is("[:")) return no_support("a named class");
      const CodePointSet first = NIBBLE_TRY(bracket_item());
      const bool is_range = peek_is("-") && at_ + 1 < pattern_.size() && pattern_[at_ + 1] != ']';
      if (!is_range) {
        ranges.insert(ranges.end(), first.ranges().begin(), first.ranges().end());
        continue;
      }
      ++at_;
      const CodePointSet last = NIBBLE_TRY(bracket_item());
      const auto from = single_of(first);
      const auto to = single_of(last);
      if (!from || !to || *from > *to) return malformed("a range that isn't one");
      ranges.emplace_back(*from, *to);
    }
    CodePointSet set(std::move(ranges));
    return negated ? set.complement() : set;
  }

  Result<CodePointSet> bracket_item() {
    if (take("\\")) {
      if (take("b")) return CodePointSet({{'\b', '\b'}});
      return escape();
    }
    const uint32_t c = code_point();
    return CodePointSet({{c, c}});
  }

  static std::optional<uint32_t> single_of(const CodePointSet& set) {
    if (set.ranges().size() != 1 || set.ranges()[0].first != set.ranges()[0].second) return {};
    return set.ranges()[0].first;
  }

  std::string_view pattern_;
  size_t at_ = 0;
};

class RegexEmitter {
 public:
  RegexEmitter(GrammarBuilder& builder, RegexTarget target) : builder_(builder), target_(target) {}

  // Errors: kUnsupported for an anchor that is left.
  Result<int32_t> emit(const RegexNode& node, int32_t next) {
    if (builder_.too_large() || ++num_emitted_ > kMaxEmitted) {
      return invalid_argument("regex: its repetitions are too large");
    }
    const auto emit_child = [this](const RegexNode& child, int32_t behind) {
      return emit(child, behind);
    };
    switch (node.kind) {
      case RegexNode::Kind::kSet:
        return target_ == RegexTarget::kText ? utf8_node(builder_, node.set, next)
                                             : json_char_node(builder_, node.set, next);
      case RegexNode::Kind::kConcat:
        return emit_concat(node, next, emit_child);
      case RegexNode::Kind::kAlternatives:
        return emit_alternatives(builder_, node, next, emit_child);
      case RegexNode::Kind::kRepeat:
        return emit_repeat(builder_, node, next, emit_child);
      case RegexNode::Kind::kBegin:
      case RegexNode::Kind::kEnd:
        return unsupported(
            "regex: ^ and $ are supported only at the ends of a top-level alternative");
    }
    return next;
  }

  Result<int32_t> anything(int32_t next) {
    RegexNode node{.kind = RegexNode::Kind::kRepeat};
    node.children.push_back({.kind = RegexNode::Kind::kSet, .set = CodePointSet::all()});
    return emit(node, next);
  }

 private:
  GrammarBuilder& builder_;
  RegexTarget target_;
  int64_t num_emitted_ = 0;
};

}  // namespace

Result<int32_t> regex_node(GrammarBuilder& builder, std::string_view pattern, RegexTarget target,
                           int32_t next) {
  RegexNode root = NIBBLE_TRY(RegexParser(pattern).parse());
  RegexEmitter emitter(builder, target);
  std::vector<int32_t> firsts;
  for (RegexNode& branch : root.children) {
    bool has_begin = target == RegexTarget::kText;
    bool has_end = has_begin;
    auto& parts = branch.children;
    if (!parts.empty() && parts.front().kind == RegexNode::Kind::kBegin) {
      parts.erase(parts.begin());
      has_begin = true;
    }
    if (!parts.empty() && parts.back().kind == RegexNode::Kind::kEnd) {
      parts.pop_back();
      has_end = true;
    }
    int32_t first = has_end ? next : NIBBLE_TRY(emitter.anything(next));
    first = NIBBLE_TRY(emitter.emit(branch, first));
    firsts.push_back(has_begin ? first : NIBBLE_TRY(emitter.anything(first)));
  }
  return builder.any_of(firsts);
}

}  // namespace nibble
