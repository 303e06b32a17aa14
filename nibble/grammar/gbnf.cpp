#include "nibble/grammar/gbnf.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <map>
#include <optional>
#include <string>

#include "nibble/base/error.h"
#include "nibble/base/text.h"
#include "nibble/grammar/code_points.h"
#include "nibble/grammar/tree_emitter.h"

namespace nibble {
namespace {

constexpr size_t kMaxBytes = 256 << 10;
constexpr size_t kMaxRules = 4096;
constexpr int kMaxDepth = 64;
constexpr int64_t kMaxCount = 1000;

struct GbnfNode {
  enum class Kind { kSet, kRule, kConcat, kAlternatives, kRepeat };
  Kind kind = Kind::kConcat;
  CodePointSet set = {};
  int32_t rule = 0;
  std::vector<GbnfNode> children = {};
  int64_t min = 0;
  int64_t max = kUnbounded;
};

struct GbnfRule {
  std::string name;
  std::optional<GbnfNode> body;
  size_t line = 0;  // of its definition, or of its first use
};

bool is_name_character(char c) {
  return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '-' || c == '_';
}

class GbnfParser {
 public:
  explicit GbnfParser(std::string_view text) : text_(text) {}

  // The first one is `root`.
  Result<std::vector<GbnfRule>> parse() {
    size_t bad = 0;
    if (!is_valid_utf8(text_, &bad)) {
      return invalid_argument(fmt::format("grammar: byte {} is not UTF-8", bad));
    }
    if (text_.size() > kMaxBytes) {
      return invalid_argument(
          fmt::format("grammar: it has {} bytes, expected at most {}", text_.size(), kMaxBytes));
    }
    (void)rule_id("root");
    skip(true);
    while (!done()) {
      NIBBLE_TRY(rule());
      skip(true);
    }
    for (const GbnfRule& one : rules_) {
      if (one.body) continue;
      if (one.name == "root") return invalid_argument("grammar: there is no rule 'root'");
      return invalid_argument(
          fmt::format("grammar: line {}: there is no rule '{}'", one.line, one.name));
    }
    return std::move(rules_);
  }

 private:
  bool done() const { return at_ == text_.size(); }
  char peek() const { return done() ? '\0' : text_[at_]; }
  bool take(std::string_view text) {
    if (text_.substr(at_, text.size()) != text) return false;
    at_ += text.size();
    return true;
  }
  size_t line() const {
    const auto begin = text_.begin();
    const auto here = begin + static_cast<std::ptrdiff_t>(at_);
    return 1 + static_cast<size_t>(std::count(begin, here, '\n'));
  }
  tl::unexpected<Error> malformed(std::string_view what) const {
    return invalid_argument(fmt::format("grammar: line {}: {}", line(), what));
  }

  // White space and comments, line ends only when a rule can't end there.
  void skip(bool line_ends) {
    for (; !done(); ++at_) {
      const char c = peek();
      if (c == '#') {
        while (!done() && peek() != '\n' && peek() != '\r') ++at_;
        if (done()) return;
      }
      const bool is_line_end = peek() == '\n' || peek() == '\r';
      if (is_line_end ? !line_ends : peek() != ' ' && peek() != '\t') return;
    }
  }

  std::string_view name() {
    const size_t begin = at_;
    while (is_name_character(peek())) ++at_;
    return text_.substr(begin, at_ - begin);
  }

  int32_t rule_id(std::string_view of) {
    const auto [found, is_new] =
        ids_.try_emplace(std::string(of), static_cast<int32_t>(rules_.size()));
    if (is_new) rules_.push_back({std::string(of), std::nullopt, line()});
    return found->second;
  }

  Status rule() {
    const std::string_view of = name();
    if (of.empty()) return malformed("expected the name of a rule");
    const auto id = static_cast<size_t>(rule_id(of));
    if (rules_.size() > kMaxRules) return malformed("there are more than 4096 rules");
    if (rules_[id].body) {
      return malformed(
          fmt::format("the rule '{}' is there already, in line {}", of, rules_[id].line));
    }
    const size_t defined_at = line();
    skip(false);
    if (!take("::=")) return malformed(fmt::format("expected '::=' behind '{}'", of));
    skip(true);
    GbnfNode body = NIBBLE_TRY(alternatives(0));
    if (!done() && peek() != '\n' && peek() != '\r') {
      return malformed(fmt::format("'{}' is not expected here", peek()));
    }
    rules_[id].body = std::move(body);
    rules_[id].line = defined_at;
    return {};
  }

  Result<GbnfNode> alternatives(int depth) {
    if (depth > kMaxDepth) return malformed("nested deeper than 64");
    GbnfNode node{.kind = GbnfNode::Kind::kAlternatives};
    for (;;) {
      node.children.push_back(NIBBLE_TRY(concat(depth)));
      const size_t before = at_;
      skip(true);
      if (!take("|")) {
        if (depth == 0) at_ = before;
        return node;
      }
      skip(true);
    }
  }

  Result<GbnfNode> concat(int depth) {
    GbnfNode node;
    for (;;) {
      skip(depth > 0);
      if (done() || peek() == '|' || peek() == ')' || peek() == '\n' || peek() == '\r') return node;
      const size_t first = node.children.size();
      NIBBLE_TRY(item(depth, &node.children));
      skip(depth > 0);
      NIBBLE_TRY(quantify(&node.children, first));
    }
  }

  // One item, which for a text are its characters.
  Status item(int depth, std::vector<GbnfNode>* out) {
    if (take("\"")) return literal(out);
    if (take("[")) {
      CodePointSet set = NIBBLE_TRY(bracket());
      out->push_back({.kind = GbnfNode::Kind::kSet, .set = std::move(set)});
      return {};
    }
    if (take(".")) {
      out->push_back({.kind = GbnfNode::Kind::kSet, .set = CodePointSet::all()});
      return {};
    }
    if (take("(")) {
      GbnfNode group = NIBBLE_TRY(alternatives(depth + 1));
      if (!take(")")) return malformed("'(' without ')'");
      out->push_back(std::move(group));
      return {};
    }
    if (peek() == '<' || peek() == '!') {
      return unsupported(
          fmt::format("grammar: line {}: matching whole tokens is not supported", line()));
    }
    const std::string_view called = name();
    if (called.empty()) {
      if (done()) return malformed("the text ends where an item is expected");
      const auto byte = static_cast<uint8_t>(peek());
      return malformed(byte > 0x20 && byte < 0x7F
                           ? fmt::format("'{}' is not expected here", peek())
                           : fmt::format("byte 0x{:02x} is not expected here", byte));
    }
    const int32_t rule = rule_id(called);
    if (rules_.size() > kMaxRules) return malformed("there are more than 4096 rules");
    out->push_back({.kind = GbnfNode::Kind::kRule, .rule = rule});
    return {};
  }

  // What stands behind an item, whose nodes begin at `first`, as often as it is there.
  Status quantify(std::vector<GbnfNode>* nodes, size_t first) {
    int64_t min = 0;
    int64_t max = kUnbounded;
    if (take("*")) {
    } else if (take("+")) {
      min = 1;
    } else if (take("?")) {
      max = 1;
    } else if (take("{")) {
      skip(false);
      min = NIBBLE_TRY(count());
      max = min;
      skip(false);
      if (take(",")) {
        skip(false);
        max = peek() == '}' ? kUnbounded : NIBBLE_TRY(count());
        skip(false);
      }
      if (!take("}")) return malformed("'{' without '}'");
      if (max < min) return malformed("a repetition with its bounds swapped");
    } else {
      return {};
    }
    if (peek() == '*' || peek() == '+' || peek() == '?' || peek() == '{') {
      return malformed("two repetitions of one item; put it in parentheses");
    }
    GbnfNode repeated{.kind = GbnfNode::Kind::kRepeat, .min = min, .max = max};
    const auto begin = nodes->begin() + static_cast<std::ptrdiff_t>(first);
    GbnfNode& body = repeated.children.emplace_back();
    body.children.assign(std::make_move_iterator(begin), std::make_move_iterator(nodes->end()));
    nodes->erase(begin, nodes->end());
    nodes->push_back(std::move(repeated));
    return {};
  }

  Result<int64_t> count() {
    int64_t value = 0;
    const size_t begin = at_;
    for (; peek() >= '0' && peek() <= '9'; ++at_) {
      value = value * 10 + (peek() - '0');
      if (value > kMaxCount) return malformed("a repetition of more than 1000");
    }
    if (at_ == begin) return malformed("a repetition without a number");
    return value;
  }

  Status literal(std::vector<GbnfNode>* out) {
    while (!take("\"")) {
      if (done()) return malformed("a text without its closing quote");
      const uint32_t c = NIBBLE_TRY(character());
      out->push_back({.kind = GbnfNode::Kind::kSet, .set = CodePointSet({{c, c}})});
    }
    return {};
  }

  Result<CodePointSet> bracket() {
    const bool negated = take("^");
    std::vector<std::pair<uint32_t, uint32_t>> ranges;
    while (!take("]")) {
      if (done()) return malformed("'[' without ']'");
      const uint32_t first = NIBBLE_TRY(character());
      uint32_t last = first;
      if (peek() == '-' && at_ + 1 < text_.size() && text_[at_ + 1] != ']') {
        ++at_;
        last = NIBBLE_TRY(character());
      }
      if (last < first) return malformed("a range with its ends swapped");
      ranges.emplace_back(first, last);
    }
    CodePointSet set(std::move(ranges));
    return negated ? set.complement() : set;
  }

  // Valid UTF-8 has been checked.
  Result<uint32_t> character() {
    if (take("\\")) return escape();
    const auto lead = static_cast<uint8_t>(text_[at_++]);
    if (lead < 0x80) return lead;
    const int length = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
    uint32_t value = lead & (0xFFU >> (length + 1));
    for (int i = 1; i < length; ++i) {
      value = value << 6 | (static_cast<uint8_t>(text_[at_++]) & 0x3FU);
    }
    return value;
  }

  Result<uint32_t> escape() {
    const char c = peek();
    if (!done()) ++at_;
    switch (c) {
      case 'n':
        return '\n';
      case 'r':
        return '\r';
      case 't':
        return '\t';
      case 'x':
        return hex(2);
      case 'u':
        return hex(4);
      case 'U':
        return hex(8);
      default:
        break;
    }
    if (std::ispunct(static_cast<unsigned char>(c)) != 0) return static_cast<uint32_t>(c);
    return malformed("a backslash before something else than punctuation or n, r, t, x, u, U");
  }

  Result<uint32_t> hex(int digits) {
    uint32_t value = 0;
    for (int i = 0; i < digits; ++i, ++at_) {
      const auto c = static_cast<unsigned char>(peek());
      if (std::isxdigit(c) == 0) {
        return malformed(fmt::format("an escape without its {} hex digits", digits));
      }
      const int lower = std::tolower(c);
      value = value << 4 | static_cast<uint32_t>(lower <= '9' ? lower - '0' : lower - 'a' + 10);
    }
    if (value > kMaxCodePoint || (value >= 0xD800 && value <= 0xDFFF)) {
      return malformed("an escape that is no Unicode character");
    }
    return value;
  }

  std::string_view text_;
  size_t at_ = 0;
  std::vector<GbnfRule> rules_;
  std::map<std::string, int32_t> ids_;
};

class GbnfEmitter {
 public:
  explicit GbnfEmitter(GrammarBuilder& builder) : builder_(builder) {}

  Result<int32_t> emit(const GbnfNode& node, int32_t next) {
    if (builder_.too_large() || ++num_emitted_ > kMaxEmitted) {
      return invalid_argument("grammar: its repetitions are too large");
    }
    const auto emit_child = [this](const GbnfNode& child, int32_t behind) {
      return emit(child, behind);
    };
    switch (node.kind) {
      case GbnfNode::Kind::kSet:
        return utf8_node(builder_, node.set, next);
      case GbnfNode::Kind::kRule:
        return builder_.call(node.rule, next);
      case GbnfNode::Kind::kConcat:
        return emit_concat(node, next, emit_child);
      case GbnfNode::Kind::kAlternatives:
        return emit_alternatives(builder_, node, next, emit_child);
      case GbnfNode::Kind::kRepeat:
        return emit_repeat(builder_, node, next, emit_child);
    }
    return next;
  }

 private:
  GrammarBuilder& builder_;
  int64_t num_emitted_ = 0;
};

}  // namespace

Result<Grammar> gbnf_grammar(std::string_view text) {
  const std::vector<GbnfRule> rules = NIBBLE_TRY(GbnfParser(text).parse());
  GrammarBuilder builder;
  GbnfEmitter emitter(builder);
  for (size_t i = 1; i < rules.size(); ++i) (void)builder.add_rule();
  for (size_t i = 0; i < rules.size(); ++i) {
    builder.define(static_cast<int32_t>(i),
                   NIBBLE_TRY(emitter.emit(*rules[i].body, GrammarBuilder::kReturn)));
  }
  return std::move(builder).build();
}

}  // namespace nibble
