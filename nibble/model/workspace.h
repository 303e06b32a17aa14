// Device memory for the activations of a forward pass.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "nibble/base/result.h"
#include "nibble/checkpoint/config.h"
#include "nibble/device/device.h"
#include "nibble/kernels/expert_dispatch.h"
#include "nibble/kernels/kernels.h"
#include "nibble/model/expert_store.h"
#include "nibble/model/shard.h"

namespace nibble {

// Host memory of moe_from_store(); grows to what the largest step needed.
struct ExpertScratch {
  std::vector<ExpertUse> counts;  // [n_routed_experts]
  std::vector<ExpertUse> uses, guesses;
  std::vector<int32_t> wanted, guess_ids;
  std::vector<float> guess_weights;
  std::vector<int64_t> rows;
  std::vector<float> inputs, results;  // [tokens of one expert, hidden_size]
  std::vector<float> outputs;          // [tokens * num_experts_per_tok, hidden_size]
  std::vector<float> shared;           // [tokens, hidden_size]
};

// Reused by every step; each member has room for max_tokens rows. Views are narrowed to the batch
// with rows().
class Workspace {
 public:
  // max_tokens >= 1: the most tokens of one batch. For a rank, num_heads below is its share, and
  // with attention data parallel there is room for the tokens of all ranks. Errors: kOutOfMemory.
  static Result<Workspace> create(const ModelConfig& config, Kernels& kernels, int64_t max_tokens,
                                  const Shard& shard = {});

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
  ExpertScratch experts;

  // With attention data parallel, where a MoE layer runs over the tokens of all ranks: those two
  // have room for them, too.
  MatrixView all_tokens;              // [tokens of all ranks, hidden_size]  normed, rank after rank
  MatrixView all_outputs;             // the same shape: what this rank's experts add
  int32_t* received_ids = nullptr;    // [tokens of all ranks, num_experts_per_tok], of those that
  float* received_weights = nullptr;  // came to this rank's experts alone
  std::vector<int32_t> host_ids;      // of the tokens of all ranks

  ExpertDispatch& dispatch() const { return *dispatch_; }

 private:
  Workspace() = default;
  int64_t max_tokens_ = 0;
  Buffer buffer_;
  std::unique_ptr<ExpertDispatch> dispatch_;
};

}  // namespace nibble
