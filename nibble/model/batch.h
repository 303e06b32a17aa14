// What one forward pass works on.
#pragma once

#include <cstdint>
#include <span>

#include "nibble/kernels/attention_view.h"

namespace nibble {

// Tokens of any number of sequences, each in one or more segments that cover the rows in order.
struct Batch {
  std::span<const int32_t> token_ids;  // each in 0 .. vocab_size - 1
  AttentionBatch attention;

  // With attention data parallel: how many tokens each rank has in this pass, num_tokens() for this
  // one. A rank may have none and takes part in the MoE layers all the same. Otherwise empty.
  std::span<const int64_t> tokens_of_ranks = {};
  // Then what is launched may not depend on what the router chooses: while a pass is recorded, or
  // measured.
  bool is_recorded = false;

  int64_t num_tokens() const { return static_cast<int64_t>(token_ids.size()); }
};

}  // namespace nibble
