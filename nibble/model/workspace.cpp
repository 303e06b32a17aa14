#include "nibble/model/workspace.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "nibble/base/check.h"

namespace nibble {

Result<Workspace> Workspace::create(const ModelConfig& config, Kernels& kernels, int64_t max_tokens,
                                    const Shard& shard) {
  NIBBLE_CHECK(max_tokens >= 1);
  Workspace workspace;
  workspace.max_tokens_ = max_tokens;
  const int64_t heads = shard.attention().count(config.num_attention_heads);
  const int64_t all_tokens = shard.enable_attention_dp ? max_tokens * shard.tp_size : 0;
  const std::vector<std::pair<MatrixView*, int64_t>> matrices = {
      {&workspace.x, config.hidden_size},
      {&workspace.normed, config.hidden_size},
      {&workspace.sublayer, config.hidden_size},
      {&workspace.q_a, config.q_lora_rank},
      {&workspace.q, heads * config.qk_head_dim()},
      {&workspace.kv_a, config.kv_lora_rank + config.qk_rope_head_dim},
      {&workspace.attention, heads * config.v_head_dim},
      {&workspace.mtp_input, 2 * config.hidden_size},
  };
  const DType dtype = kernels.activation_dtype();
  const auto aligned = [](int64_t bytes) { return (bytes + 255) / 256 * 256; };
  const int64_t choices =
      aligned(std::max(max_tokens, all_tokens) * config.num_experts_per_tok * int64_t{4});
  const int64_t all_bytes = aligned(all_tokens * config.hidden_size * dtype_size(dtype));
  const int64_t received = aligned(all_tokens * config.num_experts_per_tok * int64_t{4});
  int64_t total = 2 * choices + 2 * received + 2 * all_bytes;
  for (const auto& [matrix, cols] : matrices)
    total += aligned(max_tokens * cols * dtype_size(dtype));

  workspace.buffer_ = NIBBLE_TRY(kernels.device().allocate(static_cast<size_t>(total)));
  char* next = workspace.buffer_.as<char>();
  for (const auto& [matrix, cols] : matrices) {
    *matrix = MatrixView{next, dtype, max_tokens, cols, cols};
    next += aligned(max_tokens * cols * dtype_size(dtype));
  }
  for (MatrixView* matrix : {&workspace.all_tokens, &workspace.all_outputs}) {
    *matrix = MatrixView{next, dtype, all_tokens, config.hidden_size, config.hidden_size};
    next += all_bytes;
  }
  workspace.expert_ids = reinterpret_cast<int32_t*>(next);
  workspace.expert_weights = reinterpret_cast<float*>(next + choices);
  workspace.received_ids = reinterpret_cast<int32_t*>(next + 2 * choices);
  workspace.received_weights = reinterpret_cast<float*>(next + 2 * choices + received);
  workspace.dispatch_ = NIBBLE_TRY(make_expert_dispatch(kernels.device(), all_tokens));
  return workspace;
}

}  // namespace nibble
