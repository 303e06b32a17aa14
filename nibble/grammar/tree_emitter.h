// What languages written as trees (regular expressions, GBNF) have in common when they become
// nodes.
//
// Node has children, min and max; emit(node, next) gives the first node of what `node` matches,
// with `next` behind it.
#pragma once

#include <cstdint>
#include <vector>

#include "nibble/base/result.h"
#include "nibble/grammar/grammar.h"

namespace nibble {

// Nested repetitions multiply, also those of nothing, which add no nodes: so many calls of emit.
inline constexpr int64_t kMaxEmitted = 1'000'000;

// All children, one behind the other.
template <typename Node, typename Emit>
Result<int32_t> emit_concat(const Node& node, int32_t next, Emit emit) {
  for (size_t i = node.children.size(); i > 0; --i) {
    next = NIBBLE_TRY(emit(node.children[i - 1], next));
  }
  return next;
}

// One of the children.
template <typename Node, typename Emit>
Result<int32_t> emit_alternatives(GrammarBuilder& builder, const Node& node, int32_t next,
                                  Emit emit) {
  std::vector<int32_t> firsts;
  for (const Node& child : node.children) firsts.push_back(NIBBLE_TRY(emit(child, next)));
  return builder.any_of(firsts);
}

// The only child, min to max times; max: kUnbounded for any number.
template <typename Node, typename Emit>
Result<int32_t> emit_repeat(GrammarBuilder& builder, const Node& node, int32_t next, Emit emit) {
  const Node& child = node.children.front();
  int32_t first = next;
  if (node.max == kUnbounded) {
    first = builder.loop();
    const int32_t body = NIBBLE_TRY(emit(child, first));
    builder.close_loop(first, body, next);
  } else {
    for (int64_t i = node.min; i < node.max; ++i) {
      const int32_t body = NIBBLE_TRY(emit(child, first));
      first = builder.split(body, next);
    }
  }
  for (int64_t i = 0; i < node.min; ++i) first = NIBBLE_TRY(emit(child, first));
  return first;
}

}  // namespace nibble
