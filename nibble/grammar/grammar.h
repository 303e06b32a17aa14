// A language of byte strings as rules of nodes: what a matcher walks and the other files here
// build.
#pragma once

#include <bitset>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/base/result.h"

namespace nibble {

using ByteSet = std::bitset<256>;

// [first, last], both included.
ByteSet byte_range(int first, int last);

inline constexpr int64_t kUnbounded = INT64_MAX;

struct GrammarNode {
  enum class Kind : uint8_t {
    kFail,    // nothing
    kReturn,  // the end of a rule
    kBytes,   // one byte of byte_sets[a], then next
    kSplit,   // a or next
    kCall,    // rule a, then next
    kRepeat,  // rule repeats[a].rule, min to max times, then next
  };
  Kind kind = Kind::kFail;
  int32_t a = 0;
  int32_t next = 0;
};

struct GrammarRepeat {
  int32_t rule = 0;  // never matches the empty text
  int64_t min = 0;
  int64_t max = kUnbounded;
};

// Rule 0 is the start. Immutable; what can't be finished has been replaced by kFail.
struct Grammar {
  std::vector<GrammarNode> nodes;
  std::vector<ByteSet> byte_sets;
  std::vector<GrammarRepeat> repeats;
  std::vector<int32_t> rules;  // the first node of each
};

// Builds from the end: each function takes the node that follows and returns the one in front.
class GrammarBuilder {
 public:
  static constexpr int32_t kFail = 0;
  static constexpr int32_t kReturn = 1;
  static constexpr size_t kMaxNodes = 1'000'000;

  GrammarBuilder();

  int32_t bytes(const ByteSet& set, int32_t next);
  int32_t literal(std::string_view text, int32_t next);
  int32_t split(int32_t a, int32_t b);
  int32_t any_of(const std::vector<int32_t>& alternatives);  // none: kFail
  int32_t call(int32_t rule, int32_t next);
  // 0 <= min; min > max matches nothing. The rule may not match the empty text.
  int32_t repeat(int32_t rule, int64_t min, int64_t max, int32_t next);
  // One of `texts`, sharing what they begin with.
  int32_t one_of(std::vector<std::string> texts, int32_t next);

  // A loop: L = loop(); body = something that ends in L; close_loop(L, body, next) makes L "body or
  // next".
  int32_t loop();
  void close_loop(int32_t loop, int32_t body, int32_t next);

  // Rule 0 exists from the beginning. A rule is defined once, before or after its calls.
  int32_t add_rule();
  void define(int32_t rule, int32_t first);

  // Whether a limit was passed; what is added from then on is lost, and build() will refuse.
  bool too_large() const { return too_large_; }

  // Errors: kInvalidArgument when it has too many nodes, when nothing can be matched ("can't be
  // satisfied"), or when a rule can begin with itself.
  Result<Grammar> build() &&;

 private:
  int32_t add(GrammarNode node);

  Grammar grammar_;
  std::map<std::string, int32_t> byte_set_ids_;
  bool too_large_ = false;
};

}  // namespace nibble
