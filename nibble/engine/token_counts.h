// Which tokens a sequence has seen, for penalties and bad sequences.
#pragma once

#include <cstdint>
#include <span>
#include <unordered_map>
#include <vector>

namespace nibble {

// Speculation pushes draft tokens before they are judged and pops them again: a popped token leaves
// no trace.
class TokenCounts {
 public:
  struct Count {
    int32_t output = 0;      // times in the output
    bool in_prompt = false;  // at least once
  };

  TokenCounts() = default;

  // Without with_counts only the output itself is kept, which bad sequences need, and counts()
  // stays empty.
  explicit TokenCounts(std::span<const int32_t> prompt, bool with_counts = true);

  // A token of the output.
  void push(int32_t id);

  // Takes back the last `count` tokens of the output; at most output().size().
  void pop(size_t count);

  const std::vector<int32_t>& output() const { return output_; }
  // Every distinct token of prompt and output, in no order.
  const std::unordered_map<int32_t, Count>& counts() const { return counts_; }

 private:
  bool with_counts_ = false;
  std::vector<int32_t> output_;
  std::unordered_map<int32_t, Count> counts_;
};

}  // namespace nibble
