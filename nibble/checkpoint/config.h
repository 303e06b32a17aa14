// config.json of a DeepSeek-V3 architecture model, every field checked.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/base/result.h"

namespace nibble {

// rope_scaling of type "yarn"; the only type that is supported. Source: DeepSeek-V3 config.json.
struct YarnConfig {
  double factor = 1;
  int64_t original_max_position_embeddings = 4096;
  double beta_fast = 32;
  double beta_slow = 1;
  double mscale = 1;
  double mscale_all_dim = 0;
};

// Field names and meanings are config.json's own. All sizes are positive and were checked against
// each other (heads, groups, experts, even rotary size).
struct ModelConfig {
  int64_t vocab_size = 0;
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;
  int64_t moe_intermediate_size = 0;
  int num_hidden_layers = 0;
  int num_nextn_predict_layers = 0;
  int num_attention_heads = 0;
  int num_key_value_heads = 0;
  int64_t q_lora_rank = 0;
  int64_t kv_lora_rank = 0;
  int64_t qk_nope_head_dim = 0;
  int64_t qk_rope_head_dim = 0;
  int64_t v_head_dim = 0;
  int n_routed_experts = 0;
  int n_shared_experts = 0;
  int num_experts_per_tok = 0;
  int n_group = 1;
  int topk_group = 1;
  int moe_layer_freq = 1;
  int first_k_dense_replace = 0;
  bool norm_topk_prob = true;
  double routed_scaling_factor = 1;
  double rms_norm_eps = 1e-6;
  double rope_theta = 10000;
  std::optional<YarnConfig> rope_scaling;
  int64_t max_position_embeddings = 0;
  bool tie_word_embeddings = false;
  int64_t bos_token_id = 0;
  std::vector<int64_t> eos_token_ids;
  std::string torch_dtype;

  int64_t qk_head_dim() const { return qk_nope_head_dim + qk_rope_head_dim; }
  // True for layers with routed experts; layer num_hidden_layers is the MTP layer, also MoE.
  bool is_moe_layer(int layer) const {
    return layer >= first_k_dense_replace && (layer - first_k_dense_replace) % moe_layer_freq == 0;
  }
};

// Parses the text of a config.json. `where` names it in messages.
// Errors: kCorrupt for malformed JSON (with the byte offset), for values out of range and for a
// missing field, by name; kUnsupported for another architecture, topk_method, scoring_func,
// rope_scaling.type, hidden_act, attention_bias true: the message names what was found and what is
// supported.
Result<ModelConfig> parse_config(std::string_view json, std::string_view where);

// parse_config of DIR/config.json; eos_token_ids also takes those of DIR/generation_config.json.
Result<ModelConfig> load_config(const std::filesystem::path& directory);

}  // namespace nibble
