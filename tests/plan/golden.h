// The golden values and the model they are about.
#pragma once

#include <gtest/gtest.h>

#include <string>
#include <string_view>

#include "nibble/base/mapped_file.h"
#include "nibble/checkpoint/config.h"
#include "nibble/checkpoint/json.h"
#include "nibble/plan/formats.h"

namespace nibble::testing {

inline const JsonValue& golden() {
  static const JsonValue value = [] {
    const std::string path = NIBBLE_SOURCE_DIR "/tests/golden/planner.json";
    return parse_json(read_text_file(path).value(), path).value();
  }();
  return value;
}

inline const JsonValue& at(const JsonValue& value, std::string_view key) {
  const JsonValue* found = value.find(key);
  if (found == nullptr) throw std::runtime_error("no golden value " + std::string(key));
  return *found;
}
inline double num(const JsonValue& value, std::string_view key) {
  return at(value, key).as_number().value();
}
inline int64_t integer(const JsonValue& value, std::string_view key) {
  return *at(value, key).as_integer();
}
inline std::string str(const JsonValue& value, std::string_view key) {
  return *at(value, key).as_string();
}
inline bool flag(const JsonValue& value, std::string_view key) {
  return *at(value, key).as_boolean();
}

// deepseek-ai/DeepSeek-R1's config.json, the fields that sizes depend on.
inline constexpr std::string_view kR1Config = R"({
  "architectures": ["DeepseekV3ForCausalLM"], "vocab_size": 129280, "hidden_size": 7168,
  "intermediate_size": 18432, "moe_intermediate_size": 2048, "num_hidden_layers": 61,
  "num_nextn_predict_layers": 1, "num_attention_heads": 128, "num_key_value_heads": 128,
  "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
  "v_head_dim": 128, "n_routed_experts": 256, "n_shared_experts": 1, "num_experts_per_tok": 8,
  "n_group": 8, "topk_group": 4, "first_k_dense_replace": 3, "moe_layer_freq": 1,
  "norm_topk_prob": true, "routed_scaling_factor": 2.5, "rms_norm_eps": 1e-06,
  "rope_theta": 10000, "max_position_embeddings": 163840, "topk_method": "noaux_tc",
  "rope_scaling": {"beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 1.0,
                   "mscale_all_dim": 1.0, "original_max_position_embeddings": 4096,
                   "type": "yarn"},
  "scoring_func": "sigmoid", "hidden_act": "silu", "torch_dtype": "bfloat16",
  "tie_word_embeddings": false, "bos_token_id": 0, "eos_token_id": 1})";

inline const ModelConfig& r1() {
  static const ModelConfig config = parse_config(kR1Config, "config.json").value();
  return config;
}

// "v1" -> nvfp4-v1 and so on: the golden file's names of formats.
inline ModelWeights golden_weights(const std::string& format) {
  return weights_of(r1(), find_format(format).value()).value();
}

}  // namespace nibble::testing
