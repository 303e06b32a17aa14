#include "nibble/grammar/grammar.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <span>

#include "nibble/base/check.h"
#include "nibble/base/error.h"

namespace nibble {
namespace {

using Kind = GrammarNode::Kind;

size_t at(int32_t id) { return static_cast<size_t>(id); }

// Who depends on each node: users[begin[node]] .. users[begin[node + 1]].
struct Users {
  std::vector<size_t> begin;
  std::vector<int32_t> users;
};

// visit(node that is needed) for the nodes that `node` needs to reach its rule's end.
template <typename Visit>
void for_each_need(const Grammar& grammar, const GrammarNode& node, Visit visit) {
  if (node.kind == Kind::kFail || node.kind == Kind::kReturn) return;
  visit(node.next);
  if (node.kind == Kind::kSplit) visit(node.a);
  if (node.kind == Kind::kCall) visit(grammar.rules[at(node.a)]);
  if (node.kind == Kind::kRepeat) visit(grammar.rules[at(grammar.repeats[at(node.a)].rule)]);
}

Users users_of(const Grammar& grammar) {
  Users result;
  result.begin.resize(grammar.nodes.size() + 2);
  for (const GrammarNode& node : grammar.nodes) {
    for_each_need(grammar, node, [&](int32_t need) { ++result.begin[at(need) + 2]; });
  }
  for (size_t i = 2; i < result.begin.size(); ++i) result.begin[i] += result.begin[i - 1];
  result.users.resize(result.begin.back());
  for (size_t id = 0; id < grammar.nodes.size(); ++id) {
    for_each_need(grammar, grammar.nodes[id], [&](int32_t need) {
      result.users[result.begin[at(need) + 1]++] = static_cast<int32_t>(id);
    });
  }
  return result;
}

// Which nodes can reach the end of their rule: from the ends backwards.
std::vector<bool> productive_nodes(const Grammar& grammar) {
  std::vector<bool> good(grammar.nodes.size());
  const auto is_good = [&](const GrammarNode& node) -> bool {
    switch (node.kind) {
      case Kind::kFail:
        return false;
      case Kind::kReturn:
        return true;
      case Kind::kBytes:
        return good[at(node.next)] && grammar.byte_sets[at(node.a)].any();
      case Kind::kSplit:
        return good[at(node.a)] || good[at(node.next)];
      case Kind::kCall:
        return good[at(grammar.rules[at(node.a)])] && good[at(node.next)];
      case Kind::kRepeat: {
        const GrammarRepeat& repeat = grammar.repeats[at(node.a)];
        return good[at(node.next)] && (repeat.min == 0 || good[at(grammar.rules[at(repeat.rule)])]);
      }
    }
    return false;
  };
  const Users users = users_of(grammar);
  std::vector<int32_t> work;
  for (size_t id = 0; id < grammar.nodes.size(); ++id) work.push_back(static_cast<int32_t>(id));
  while (!work.empty()) {
    const int32_t id = work.back();
    work.pop_back();
    if (good[at(id)] || !is_good(grammar.nodes[at(id)])) continue;
    good[at(id)] = true;
    for (size_t i = users.begin[at(id)]; i < users.begin[at(id) + 1]; ++i) {
      work.push_back(users.users[i]);
    }
  }
  return good;
}

// Which rules match the empty text, and which rules each can begin with.
struct Beginnings {
  std::vector<bool> nullable;
  std::vector<std::vector<int32_t>> first_rules;
};

// Looks at everything before a rule's first byte. Returns whether its end is reached.
bool explore(const Grammar& grammar, const std::vector<bool>& nullable, int32_t start,
             std::vector<int32_t>& called, std::vector<int32_t>& seen, int32_t mark) {
  bool ends = false;
  std::vector<int32_t> work = {start};
  while (!work.empty()) {
    const int32_t id = work.back();
    work.pop_back();
    if (seen[at(id)] == mark) continue;
    seen[at(id)] = mark;
    const GrammarNode& node = grammar.nodes[at(id)];
    switch (node.kind) {
      case Kind::kFail:
      case Kind::kBytes:
        break;
      case Kind::kReturn:
        ends = true;
        break;
      case Kind::kSplit:
        work.push_back(node.a);
        work.push_back(node.next);
        break;
      case Kind::kCall:
        called.push_back(node.a);
        if (nullable[at(node.a)]) work.push_back(node.next);
        break;
      case Kind::kRepeat:
        called.push_back(grammar.repeats[at(node.a)].rule);
        if (grammar.repeats[at(node.a)].min == 0) work.push_back(node.next);
        break;
    }
  }
  return ends;
}

// Rules that match nothing at all, and what each can begin with. Rules are looked at forwards and
// backwards in turn, so that a chain of them takes two passes in either order. None where too many
// passes would be needed.
std::optional<Beginnings> beginnings(const Grammar& grammar) {
  constexpr size_t kMostVisits = 200'000'000;  // of nodes, a second or two
  Beginnings result;
  result.nullable.resize(grammar.rules.size());
  std::vector<int32_t> seen(grammar.nodes.size(), -1);
  int32_t mark = 0;
  const size_t num_rules = grammar.rules.size();
  size_t passes = 0;
  for (bool changed = true; changed;) {
    changed = false;
    result.first_rules.assign(num_rules, {});
    if (++passes > 4 && passes * grammar.nodes.size() > kMostVisits) return std::nullopt;
    for (size_t i = 0; i < num_rules; ++i) {
      const size_t rule = passes % 2 == 1 ? i : num_rules - 1 - i;
      const bool ends = explore(grammar, result.nullable, grammar.rules[rule],
                                result.first_rules[rule], seen, mark++);
      if (ends && !result.nullable[rule]) {
        result.nullable[rule] = true;
        changed = true;
      }
    }
  }
  return result;
}

// Whether some rule can begin with itself; Kahn's algorithm leaves the cycles.
bool has_left_recursion(const Beginnings& beginnings) {
  std::vector<int> callers(beginnings.first_rules.size());
  for (const auto& called : beginnings.first_rules) {
    for (const int32_t rule : called) ++callers[at(rule)];
  }
  std::vector<int32_t> ready;
  for (size_t rule = 0; rule < callers.size(); ++rule) {
    if (callers[rule] == 0) ready.push_back(static_cast<int32_t>(rule));
  }
  size_t done = 0;
  while (!ready.empty()) {
    const int32_t rule = ready.back();
    ready.pop_back();
    ++done;
    for (const int32_t called : beginnings.first_rules[at(rule)]) {
      if (--callers[at(called)] == 0) ready.push_back(called);
    }
  }
  return done < callers.size();
}

}  // namespace

ByteSet byte_range(int first, int last) {
  ByteSet set;
  for (int byte = first; byte <= last; ++byte) set.set(static_cast<size_t>(byte));
  return set;
}

GrammarBuilder::GrammarBuilder() {
  grammar_.nodes = {{Kind::kFail, 0, 0}, {Kind::kReturn, 0, 0}};
  grammar_.rules = {kFail};
}

int32_t GrammarBuilder::add(GrammarNode node) {
  if (grammar_.nodes.size() >= kMaxNodes) {
    too_large_ = true;
    return kFail;
  }
  grammar_.nodes.push_back(node);
  return static_cast<int32_t>(grammar_.nodes.size()) - 1;
}

int32_t GrammarBuilder::bytes(const ByteSet& set, int32_t next) {
  if (next == kFail) return kFail;
  const auto [found, is_new] =
      byte_set_ids_.try_emplace(set.to_string(), static_cast<int32_t>(grammar_.byte_sets.size()));
  if (is_new) grammar_.byte_sets.push_back(set);
  return add({Kind::kBytes, found->second, next});
}

int32_t GrammarBuilder::literal(std::string_view text, int32_t next) {
  for (size_t i = text.size(); i > 0; --i) {
    const auto byte = static_cast<uint8_t>(text[i - 1]);
    next = bytes(byte_range(byte, byte), next);
  }
  return next;
}

int32_t GrammarBuilder::split(int32_t a, int32_t b) {
  if (a == kFail || a == b) return b;
  if (b == kFail) return a;
  return add({Kind::kSplit, a, b});
}

int32_t GrammarBuilder::any_of(const std::vector<int32_t>& alternatives) {
  int32_t first = kFail;
  for (size_t i = alternatives.size(); i > 0; --i) first = split(alternatives[i - 1], first);
  return first;
}

int32_t GrammarBuilder::call(int32_t rule, int32_t next) {
  if (next == kFail) return kFail;
  return add({Kind::kCall, rule, next});
}

int32_t GrammarBuilder::repeat(int32_t rule, int64_t min, int64_t max, int32_t next) {
  if (next == kFail || min > max) return kFail;
  if (max == 0) return next;
  grammar_.repeats.push_back({rule, min, max});
  return add({Kind::kRepeat, static_cast<int32_t>(grammar_.repeats.size()) - 1, next});
}

int32_t GrammarBuilder::one_of(std::vector<std::string> texts, int32_t next) {
  std::sort(texts.begin(), texts.end());
  texts.erase(std::unique(texts.begin(), texts.end()), texts.end());
  // The texts of a group agree in their first `depth` bytes. Deep texts are one chain, so this
  // recurses once for each place where texts part, at most as often as there are texts.
  const auto make = [&](const auto& self, std::span<const std::string> group,
                        size_t depth) -> int32_t {
    const std::string& first = group.front();
    const std::string& last = group.back();
    size_t common = depth;
    while (common < first.size() && common < last.size() && first[common] == last[common]) {
      ++common;
    }
    std::vector<int32_t> alternatives;
    size_t i = 0;
    if (first.size() == common) {
      alternatives.push_back(next);
      i = 1;
    }
    while (i < group.size()) {
      size_t end = i + 1;
      while (end < group.size() && group[end][common] == group[i][common]) ++end;
      alternatives.push_back(self(self, group.subspan(i, end - i), common));
      i = end;
    }
    return literal(std::string_view(first).substr(depth, common - depth), any_of(alternatives));
  };
  constexpr size_t kMaxTexts = 20000;
  if (texts.size() > kMaxTexts) too_large_ = true;
  if (texts.empty() || too_large_) return kFail;
  return make(make, texts, 0);
}

int32_t GrammarBuilder::loop() { return add({Kind::kSplit, kFail, kFail}); }

void GrammarBuilder::close_loop(int32_t loop, int32_t body, int32_t next) {
  if (loop == kFail) return;  // no room for it
  grammar_.nodes[at(loop)] = {Kind::kSplit, body, next};
}

int32_t GrammarBuilder::add_rule() {
  grammar_.rules.push_back(kFail);
  return static_cast<int32_t>(grammar_.rules.size()) - 1;
}

void GrammarBuilder::define(int32_t rule, int32_t first) { grammar_.rules[at(rule)] = first; }

Result<Grammar> GrammarBuilder::build() && {
  if (too_large_) {
    return invalid_argument(
        fmt::format("the structure is too large: more than {} nodes", kMaxNodes));
  }
  const std::vector<bool> good = productive_nodes(grammar_);
  if (!good[at(grammar_.rules[0])]) {
    return invalid_argument("the structure can't be satisfied: no text matches it");
  }
  for (size_t i = 0; i < good.size(); ++i) {
    GrammarNode& node = grammar_.nodes[i];
    // A repetition of what can't be finished is no repetition.
    if (good[i] && node.kind == Kind::kRepeat &&
        !good[at(grammar_.rules[at(grammar_.repeats[at(node.a)].rule)])]) {
      node = {Kind::kSplit, kFail, node.next};
    }
    if (!good[i]) node = {Kind::kFail, 0, 0};
  }
  const std::optional<Beginnings> found = beginnings(grammar_);
  if (!found) {
    return invalid_argument("the structure has too many rules that may be empty");
  }
  if (has_left_recursion(*found)) {
    return invalid_argument("the structure refers to itself with nothing in between");
  }
  for (const GrammarRepeat& repeat : grammar_.repeats) {
    NIBBLE_CHECK(!found->nullable[at(repeat.rule)]);
  }
  return std::move(grammar_);
}

}  // namespace nibble
