#include "nibble/checkpoint/quant_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/checkpoint/test_files.h"

namespace nibble {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::TempFolder;
using testing::write_file;

constexpr const char* kFp8Entry =
    R"({"quantization_config":{"activation_scheme":"dynamic","fmt":"e4m3","quant_method":"fp8",
        "weight_block_size":[128,128]}})";

// The form that Model Optimizer writes into config.json.
constexpr const char* kUnifiedEntry = R"({"quantization_config":{"config_groups":{"group_0":{
  "input_activations":{"dynamic":false,"num_bits":4,"type":"float","group_size":16},
  "weights":{"dynamic":false,"num_bits":4,"type":"float","group_size":16},"targets":["Linear"]}},
  "ignore":["lm_head","model.layers.61*"],"quant_algo":"NVFP4",
  "kv_cache_scheme":{"dynamic":false,"num_bits":8,"type":"float"},
  "producer":{"name":"modelopt","version":"0.34.1.dev3"},"quant_method":"modelopt"}})";

constexpr const char* kHfConfig = R"({"producer":{"name":"modelopt","version":"0.34.1.dev3"},
  "quantization":{"quant_algo":"NVFP4","kv_cache_quant_algo":"FP8","group_size":16,
  "exclude_modules":["lm_head","model.layers.0.self_attn*","model.layers.61*"]}})";

TEST(QuantConfig, ReadsHfQuantConfigAndPrefersItToAStaleEntry) {
  const TempFolder folder;
  write_file(folder / "config.json", kFp8Entry);
  write_file(folder / "hf_quant_config.json", kHfConfig);
  const auto config = load_quant_config(folder.path(), true);
  ASSERT_TRUE(config) << config.error().message;
  EXPECT_EQ(config->algo, QuantAlgo::kNvfp4);
  EXPECT_EQ(config->kv_cache_quant_algo, "FP8");
  EXPECT_EQ(config->producer, "modelopt 0.34.1.dev3");
  EXPECT_EQ(config->source, "hf_quant_config.json");
  EXPECT_THAT(config->exclude_modules,
              ElementsAre("lm_head", "model.layers.0.self_attn*", "model.layers.61*"));
  EXPECT_THAT(config->warnings, ElementsAre(HasSubstr("stale and ignored")));
}

TEST(QuantConfig, ReadsTheUnifiedForm) {
  const TempFolder folder;
  write_file(folder / "config.json", kUnifiedEntry);
  const auto config = load_quant_config(folder.path(), true);
  ASSERT_TRUE(config) << config.error().message;
  EXPECT_EQ(config->algo, QuantAlgo::kNvfp4);
  EXPECT_EQ(config->kv_cache_quant_algo, "FP8");
  EXPECT_THAT(config->exclude_modules, ElementsAre("lm_head", "model.layers.61*"));
  EXPECT_TRUE(config->warnings.empty());
}

TEST(QuantConfig, TakesFp8ForWhatItIsOnlyWithoutNvfp4Weights) {
  const TempFolder folder;
  write_file(folder / "config.json", kFp8Entry);
  const auto fp8 = load_quant_config(folder.path(), false);
  ASSERT_TRUE(fp8) << fp8.error().message;
  EXPECT_EQ(fp8->algo, QuantAlgo::kFp8Block);
  EXPECT_TRUE(fp8->warnings.empty());
  const auto stale = load_quant_config(folder.path(), true);
  ASSERT_TRUE(stale) << stale.error().message;
  EXPECT_EQ(stale->algo, QuantAlgo::kNvfp4);
  EXPECT_THAT(stale->warnings, ElementsAre(HasSubstr("stale and ignored")));
}

TEST(QuantConfig, WithoutAnyFileGoesByTheWeights) {
  const TempFolder folder;
  EXPECT_EQ(load_quant_config(folder.path(), false)->algo, QuantAlgo::kNone);
  EXPECT_EQ(load_quant_config(folder.path(), true)->algo, QuantAlgo::kNvfp4);
  EXPECT_EQ(load_quant_config(folder.path(), true)->warnings.size(), 1U);
}

TEST(QuantConfig, TakesMixedPrecisionOnlyWhereAllIsNvfp4) {
  const TempFolder folder;
  write_file(folder / "hf_quant_config.json", R"({"quantization":{"quant_algo":"MIXED_PRECISION",
    "quantized_layers":{"a":{"quant_algo":"NVFP4","group_size":16}}}})");
  EXPECT_EQ(load_quant_config(folder.path(), true)->algo, QuantAlgo::kNvfp4);
  write_file(folder / "hf_quant_config.json", R"({"quantization":{"quant_algo":"MIXED_PRECISION",
    "quantized_layers":{"a":{"quant_algo":"NVFP4","group_size":16},"b":{"quant_algo":"FP8"}}}})");
  const auto mixed = load_quant_config(folder.path(), true);
  ASSERT_FALSE(mixed);
  EXPECT_EQ(mixed.error().code, ErrorCode::kUnsupported);
  EXPECT_THAT(mixed.error().message, HasSubstr("'MIXED_PRECISION' is supported only when every "
                                               "layer is NVFP4, but b is 'FP8'"));
}

TEST(QuantConfig, RefusesOtherSchemesByName) {
  const std::pair<const char*, const char*> hf_cases[] = {
      {R"({"quantization":{"quant_algo":"W4A8_AWQ"}})", "quant_algo 'W4A8_AWQ' is not supported"},
      {R"({"quantization":{"quant_algo":"NVFP4","group_size":32}})", "group_size 32 is not"},
      {R"({"quantization":{"quant_algo":"NVFP4","kv_cache_quant_algo":"NVFP4"}})",
       "kv_cache_quant_algo 'NVFP4' is not supported, only FP8 or none"},
      {R"({"quantization":{"quant_algo":"MIXED_PRECISION"}})", "without quantized_layers"},
      {R"({"quantization":{"quant_algo":4}})", "quant_algo is 4, expected a string"},
      {R"({"quantization":{"quant_algo":"NVFP4","exclude_modules":"lm_head"}})", "expected a list"},
      {R"({"quantization":{"quant_algo":"NVFP4","exclude_modules":[1]}})", "expected strings"},
      {R"({})", "quantization is missing"},
      {R"({"quantization":[]})", "quantization is an array"},
      {R"({)", "malformed JSON"},
  };
  for (const auto& [text, reason] : hf_cases) {
    const TempFolder folder;
    write_file(folder / "hf_quant_config.json", text);
    const auto config = load_quant_config(folder.path(), true);
    ASSERT_FALSE(config) << text;
    EXPECT_THAT(config.error().message, HasSubstr(reason));
    EXPECT_THAT(config.error().message, HasSubstr("hf_quant_config.json"));
  }
  const std::pair<const char*, const char*> entries[] = {
      {R"({"quant_method":"fp8","weight_block_size":[64,64]})", "weight_block_size is [64,64]"},
      {R"({"quant_method":"fp8"})", "weight_block_size is missing; only [128, 128]"},
      {R"({"quant_method":"fp8","fmt":"e5m2","weight_block_size":[128,128]})", "fmt 'e5m2'"},
      {R"({"quant_method":"awq"})", "quant_method 'awq' is not supported"},
      {R"({"quant_method":"modelopt","quant_algo":"FP8"})", "quant_algo 'FP8' is not supported"},
      {R"({"quant_method":"modelopt"})", "quant_algo '' is not supported"},
      {R"({"quant_method":"modelopt","quant_algo":"NVFP4","config_groups":{"g":{"weights":{"num_bits":8,"type":"float"}}}})",
       "config_groups g: weights"},
      {R"({"quant_method":"modelopt","quant_algo":"NVFP4","kv_cache_scheme":{"num_bits":4,"type":"float"}})",
       "kv_cache_scheme"},
      {R"("fp8")", "is a string, expected an object"},
  };
  for (const auto& [entry, reason] : entries) {
    const TempFolder folder;
    write_file(folder / "config.json", std::string(R"({"quantization_config":)") + entry + "}");
    const auto config = load_quant_config(folder.path(), false);
    ASSERT_FALSE(config) << entry;
    EXPECT_THAT(config.error().message, HasSubstr(reason));
  }
}

bool excluded_by(const char* pattern, std::string_view module) {
  QuantConfig config;
  config.exclude_modules = {"lm_head", pattern};
  return is_excluded(config, module);
}

// Expectations as Python's fnmatch.fnmatchcase gives them.
TEST(QuantConfig, ExcludesModulesByShellWildcards) {
  EXPECT_TRUE(excluded_by("", "lm_head"));
  EXPECT_FALSE(excluded_by("", "lm_head.weight"));
  EXPECT_TRUE(excluded_by("model.layers.61*", "model.layers.61.mlp.experts.3.up_proj"));
  EXPECT_FALSE(excluded_by("model.layers.61*", "model.layers.6.mlp.up_proj"));
  EXPECT_TRUE(excluded_by("model.layers.1*", "model.layers.10.mlp.up_proj"));
  EXPECT_TRUE(excluded_by("*self_attn*q_?_proj", "model.layers.3.self_attn.q_a_proj"));
  EXPECT_FALSE(excluded_by("*self_attn*q_?_proj", "model.layers.3.self_attn.q_a_proj.x"));
  EXPECT_TRUE(excluded_by("model.layers.[0-2].*", "model.layers.1.mlp"));
  EXPECT_FALSE(excluded_by("model.layers.[0-2].*", "model.layers.3.mlp"));
  EXPECT_TRUE(excluded_by("model.layers.[!0-2].*", "model.layers.3.mlp"));
  EXPECT_TRUE(excluded_by("a[]]b", "a]b"));
  EXPECT_TRUE(excluded_by("a[b", "a[b"));
  EXPECT_TRUE(excluded_by("**a**", "bab"));
  EXPECT_FALSE(excluded_by("", "x"));
}

TEST(QuantConfig, MatchesHostileWildcardsInReasonableTime) {
  std::string pattern;
  for (int i = 0; i < 50; ++i) pattern += "a*";
  pattern += "b";
  EXPECT_FALSE(excluded_by(pattern.c_str(), std::string(5000, 'a')));
}

}  // namespace
}  // namespace nibble
