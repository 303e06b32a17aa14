#include "nibble/engine/token_counts.h"

#include "nibble/base/check.h"

namespace nibble {

TokenCounts::TokenCounts(std::span<const int32_t> prompt, bool with_counts)
    : with_counts_(with_counts) {
  if (!with_counts) return;
  for (const int32_t id : prompt) counts_[id].in_prompt = true;
}

void TokenCounts::push(int32_t id) {
  output_.push_back(id);
  if (with_counts_) ++counts_[id].output;
}

void TokenCounts::pop(size_t count) {
  NIBBLE_CHECK(count <= output_.size());
  for (; count > 0; --count) {
    if (with_counts_) {
      const auto found = counts_.find(output_.back());
      if (--found->second.output == 0 && !found->second.in_prompt) counts_.erase(found);
    }
    output_.pop_back();
  }
}

}  // namespace nibble
