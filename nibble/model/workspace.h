// Device memory for the activations of a forward pass.
#pragma once

#include <cstdint>

#include "nibble/base/result.h"
#include "nibble/checkpoint/config.h"
#include "nibble/device/device.h"
#include "nibble/kernels/kernels.h"

namespace nibble {

// Reused by every step; each member has room for max_tokens rows. Views are narrowed to the batch
// with rows().
class Workspace {
 public:
  // max_tokens >= 1: the most tokens of one batch. Errors: kOutOfMemory.
  static Result<Workspace> create(const ModelConfig& config, Kernels& kernels, int64_t max_tokens);

  int64_t max_tokens() const { return max_tokens_; }

  MatrixView x;                     // [tokens, hidden_size]  the residual stream
  MatrixView normed;                // [tokens, hidden_size]  input of attention and MLP
  MatrixView sublayer;              // [tokens, hidden_size]  output of attention and MLP
  MatrixView q_a;                   // [tokens, q_lora_rank]
  MatrixView q;                     // [tokens, num_heads * qk_head_dim]
  MatrixView kv_a;                  // [tokens, kv_lora_rank + qk_rope_head_dim]
  MatrixView attention;             // [tokens, num_heads * v_head_dim]
  MatrixView mtp_input;             // [tokens, 2 * hidden_size]
  int32_t* expert_ids = nullptr;    // [tokens, num_experts_per_tok]
  float* expert_weights = nullptr;  // [tokens, num_experts_per_tok]

 private:
  Workspace() = default;
  int64_t max_tokens_ = 0;
  Buffer buffer_;
};

}  // namespace nibble
