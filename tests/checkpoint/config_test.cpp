#include "nibble/checkpoint/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "nibble/checkpoint/json.h"
#include "tests/checkpoint/test_configs.h"
#include "tests/checkpoint/test_files.h"

namespace nibble {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// The tiny config with one field set to some JSON, or removed.
std::string changed_config(const char* field, std::string_view value) {
  JsonValue json = *parse_json(testing::kTinyConfig, "config.json");
  if (value == "remove") {
    json.remove(field);
  } else {
    json.set(field, *parse_json(value, "value"));
  }
  return to_json(json);
}

TEST(Config, ReadsDeepseekR1s) {
  const auto config = parse_config(testing::kDeepseekR1Config, "config.json");
  ASSERT_TRUE(config) << config.error().message;
  EXPECT_EQ(config->vocab_size, 129280);
  EXPECT_EQ(config->hidden_size, 7168);
  EXPECT_EQ(config->intermediate_size, 18432);
  EXPECT_EQ(config->moe_intermediate_size, 2048);
  EXPECT_EQ(config->num_hidden_layers, 61);
  EXPECT_EQ(config->num_nextn_predict_layers, 1);
  EXPECT_EQ(config->num_attention_heads, 128);
  EXPECT_EQ(config->q_lora_rank, 1536);
  EXPECT_EQ(config->kv_lora_rank, 512);
  EXPECT_EQ(config->qk_head_dim(), 192);
  EXPECT_EQ(config->v_head_dim, 128);
  EXPECT_EQ(config->n_routed_experts, 256);
  EXPECT_EQ(config->n_shared_experts, 1);
  EXPECT_EQ(config->num_experts_per_tok, 8);
  EXPECT_EQ(config->n_group, 8);
  EXPECT_EQ(config->topk_group, 4);
  EXPECT_TRUE(config->norm_topk_prob);
  EXPECT_EQ(config->routed_scaling_factor, 2.5);
  EXPECT_EQ(config->rms_norm_eps, 1e-6);
  EXPECT_EQ(config->rope_theta, 10000);
  ASSERT_TRUE(config->rope_scaling);
  EXPECT_EQ(config->rope_scaling->factor, 40);
  EXPECT_EQ(config->rope_scaling->mscale_all_dim, 1);
  EXPECT_EQ(config->max_position_embeddings, 163840);
  EXPECT_THAT(config->eos_token_ids, ElementsAre(1));
  EXPECT_EQ(config->torch_dtype, "bfloat16");
  EXPECT_FALSE(config->is_moe_layer(2));
  EXPECT_TRUE(config->is_moe_layer(3));
  EXPECT_TRUE(config->is_moe_layer(61));
}

TEST(Config, TakesNullRopeScalingAndAListOfEosTokens) {
  const auto config = parse_config(testing::kTinyConfig, "config.json");
  ASSERT_TRUE(config) << config.error().message;
  EXPECT_FALSE(config->rope_scaling);
  EXPECT_THAT(config->eos_token_ids, ElementsAre(1, 2));
}

TEST(Config, ReadsTheNewerSpellingOfRotaryParameters) {
  JsonValue json = *parse_json(testing::kTinyConfig, "config.json");
  json.remove("rope_theta");
  json.remove("rope_scaling");
  json.set("rope_parameters",
           *parse_json(R"({"rope_theta": 50000.0, "rope_type": "yarn", "factor": 8,
                           "original_max_position_embeddings": 64})",
                       "x"));
  const auto config = parse_config(to_json(json), "config.json");
  ASSERT_TRUE(config) << config.error().message;
  EXPECT_EQ(config->rope_theta, 50000);
  ASSERT_TRUE(config->rope_scaling);
  EXPECT_EQ(config->rope_scaling->factor, 8);
}

TEST(Config, NamesEveryMissingField) {
  for (const char* field : {"architectures",
                            "vocab_size",
                            "hidden_size",
                            "intermediate_size",
                            "moe_intermediate_size",
                            "num_hidden_layers",
                            "num_attention_heads",
                            "q_lora_rank",
                            "kv_lora_rank",
                            "qk_nope_head_dim",
                            "qk_rope_head_dim",
                            "v_head_dim",
                            "n_routed_experts",
                            "n_shared_experts",
                            "num_experts_per_tok",
                            "n_group",
                            "topk_group",
                            "first_k_dense_replace",
                            "norm_topk_prob",
                            "routed_scaling_factor",
                            "rms_norm_eps",
                            "rope_theta",
                            "max_position_embeddings",
                            "topk_method",
                            "scoring_func",
                            "hidden_act"}) {
    for (const char* value : {"remove", "null"}) {
      const auto config = parse_config(changed_config(field, value), "dir/config.json");
      ASSERT_FALSE(config) << field;
      EXPECT_EQ(config.error().code, ErrorCode::kCorrupt) << field;
      EXPECT_EQ(config.error().message,
                std::string("dir/config.json: the field ") + field + " is missing");
    }
  }
}

TEST(Config, RefusesWhatIsNotSupportedByName) {
  const struct {
    const char* field;
    const char* value;
    const char* reason;
  } cases[] = {
      {"architectures", R"(["LlamaForCausalLM"])",
       R"(architectures ["LlamaForCausalLM"] is not supported, only ["DeepseekV3ForCausalLM"])"},
      {"topk_method", R"("greedy")", "topk_method 'greedy' is not supported, only 'noaux_tc'"},
      {"scoring_func", R"("softmax")", "scoring_func 'softmax' is not supported, only 'sigmoid'"},
      {"hidden_act", R"("gelu")", "hidden_act 'gelu' is not supported, only 'silu'"},
      {"attention_bias", "true", "attention_bias true is not supported"},
      {"rope_scaling", R"({"type":"linear","factor":4})",
       "type 'linear' is not supported, only 'yarn'"},
      {"rope_scaling", R"({"rope_type":"llama3","factor":4})", "rope_type 'llama3' is not"},
      {"tie_word_embeddings", "true", "tie_word_embeddings true is not supported"},
      {"moe_layer_freq", "2", "moe_layer_freq 2 is not supported, only 1"},
      {"num_nextn_predict_layers", "2",
       "num_nextn_predict_layers 2 is not supported, only 0 and 1"},
      {"num_key_value_heads", "1", "num_key_value_heads 1 with num_attention_heads 2"},
      {"rope_interleave", "false", "rope_interleave false is not supported"},
  };
  for (const auto& [field, value, reason] : cases) {
    const auto config = parse_config(changed_config(field, value), "config.json");
    ASSERT_FALSE(config) << field << value;
    EXPECT_EQ(config.error().code, ErrorCode::kUnsupported) << field;
    EXPECT_THAT(config.error().message, HasSubstr(reason));
  }
}

TEST(Config, RefusesValuesThatMakeNoSense) {
  const struct {
    const char* field;
    const char* value;
    const char* reason;
  } cases[] = {
      {"hidden_size", "0", "hidden_size is 0, expected an integer in [1, 262144]"},
      {"hidden_size", "-4", "hidden_size is -4"},
      {"hidden_size", "1e300", "hidden_size is 1e+300"},
      {"hidden_size", "32.5", "hidden_size is 32.5"},
      {"hidden_size", R"("32")", R"(hidden_size is "32")"},
      {"hidden_size", "9223372036854775807", "hidden_size is 9223372036854775807"},
      {"vocab_size", "18446744073709551615", "vocab_size is 1.8446744073709552e+19"},
      {"n_routed_experts", "100000", "n_routed_experts is 100000"},
      {"num_hidden_layers", "1000000", "num_hidden_layers is 1000000"},
      {"qk_rope_head_dim", "7", "qk_rope_head_dim 7 is odd"},
      {"n_routed_experts", "5", "n_routed_experts 5 is not a multiple of n_group 2"},
      {"n_routed_experts", "2", "gives 1 expert a group, but noaux_tc needs 2"},
      {"topk_group", "3", "topk_group 3 is above n_group 2"},
      {"num_experts_per_tok", "3", "num_experts_per_tok 3 is above the 2 experts in topk_group 1"},
      {"first_k_dense_replace", "3", "first_k_dense_replace 3 is above num_hidden_layers 2"},
      {"rms_norm_eps", "0", "rms_norm_eps is 0, expected a number in (0, 1]"},
      {"rope_theta", "true", "rope_theta is true"},
      {"routed_scaling_factor", "-1.0", "routed_scaling_factor is -1.0"},
      {"norm_topk_prob", "1", "norm_topk_prob is 1, expected true or false"},
      {"eos_token_id", "64", "eos_token_id holds 64, expected token ids in [0, 63]"},
      {"eos_token_id", "[1,-1]", "eos_token_id holds -1"},
      {"bos_token_id", "64", "bos_token_id is 64"},
      {"rope_scaling", "[]", "rope_scaling is an array, expected an object"},
      {"rope_scaling", R"({"type":"yarn","factor":0.5,"original_max_position_embeddings":64})",
       "factor is 0.5"},
      {"rope_scaling",
       R"({"type":"yarn","factor":4,"original_max_position_embeddings":64,"beta_fast":1,"beta_slow":2})",
       "beta_fast 1 is below beta_slow 2"},
      {"topk_method", "3", "topk_method is 3, expected a string"},
  };
  for (const auto& [field, value, reason] : cases) {
    const auto config = parse_config(changed_config(field, value), "config.json");
    ASSERT_FALSE(config) << field << " " << value;
    EXPECT_EQ(config.error().code, ErrorCode::kCorrupt) << field;
    EXPECT_THAT(config.error().message, HasSubstr(reason));
  }
}

TEST(Config, ToleratesFieldsItDoesNotKnow) {
  EXPECT_TRUE(parse_config(changed_config("brand_new", R"({"deep":[1,2]})"), "config.json"));
}

TEST(Config, RefusesMalformedJsonWithItsPlace) {
  const auto config = parse_config(R"({"hidden_size": 32,, })", "config.json");
  ASSERT_FALSE(config);
  EXPECT_EQ(config.error().code, ErrorCode::kCorrupt);
  EXPECT_THAT(config.error().message, HasSubstr("config.json: malformed JSON at byte 20"));
  EXPECT_THAT(parse_config("[]", "config.json").error().message,
              HasSubstr("is an array, expected an object"));
  EXPECT_THAT(parse_config(R"({"a":1,"a":2})", "config.json").error().message,
              HasSubstr("\"a\" appears twice"));
}

TEST(Config, AddsTheEosTokensOfGenerationConfig) {
  const testing::TempFolder folder;
  EXPECT_EQ(load_config(folder.path()).error().code, ErrorCode::kNotFound);
  testing::write_file(folder / "config.json", testing::kTinyConfig);
  testing::write_file(folder / "generation_config.json", R"({"eos_token_id": [2, 5]})");
  const auto config = load_config(folder.path());
  ASSERT_TRUE(config) << config.error().message;
  EXPECT_THAT(config->eos_token_ids, ElementsAre(1, 2, 5));
  testing::write_file(folder / "generation_config.json", R"({"eos_token_id": 64})");
  EXPECT_THAT(load_config(folder.path()).error().message, HasSubstr("generation_config.json"));
}

}  // namespace
}  // namespace nibble
