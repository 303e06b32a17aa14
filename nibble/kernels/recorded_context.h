// The context for which a recorded pass is laid out.
#pragma once

#include <algorithm>
#include <cstdint>

#include "nibble/kernels/attention_view.h"

namespace nibble {

// Launches are laid out for the longest context of a batch, so each recording serves contexts up to
// a bound: 1024, 4096, 16384, ... tokens.
inline int64_t recorded_context(const AttentionBatch& attention) {
  int64_t longest = 1;
  for (const AttentionSegment& segment : attention.segments) {
    longest = std::max(longest, segment.first_position + segment.num_tokens);
  }
  int64_t bound = 1024;
  while (bound < longest) bound *= 4;
  return bound;
}

}  // namespace nibble
