// Plans of the real model, from headers alone, against the published checkpoints' totals.
#include "nibble/quantize/conversion_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "nibble/base/error.h"
#include "nibble/checkpoint/model_tensors.h"
#include "tests/checkpoint/test_configs.h"

namespace nibble {
namespace {

// Headers without data: 688 GB would not fit here.
class HeadersOnly final : public CheckpointSource {
 public:
  explicit HeadersOnly(std::vector<TensorInfo> tensors) : tensors_(std::move(tensors)) {}
  std::span<const TensorInfo> tensors() const override { return tensors_; }
  const TensorInfo* find(std::string_view name) const override {
    const auto it = std::lower_bound(
        tensors_.begin(), tensors_.end(), name,
        [](const TensorInfo& info, std::string_view wanted) { return info.name < wanted; });
    return it != tensors_.end() && it->name == name ? &*it : nullptr;
  }
  Result<TensorView> read(std::string_view name) const override {
    return not_found(std::string(name));
  }
  void release(std::string_view) const override {}

 private:
  std::vector<TensorInfo> tensors_;
};

ModelConfig r1_config() { return parse_config(testing::kDeepseekR1Config, "config.json").value(); }

HeadersOnly r1_source(CheckpointLayout layout) {
  return HeadersOnly(stored_tensors(r1_config(), layout).value());
}

// Made once: 45,000 jobs.
const ConversionPlan& r1_v2_plan() {
  static const ConversionPlan plan = plan_conversion(r1_source(CheckpointLayout::kFp8), r1_config(),
                                                     {QuantizeScheme::kNvfp4V2, {}}, 5'000'000'000)
                                         .value();
  return plan;
}

TEST(ConversionPlan, DeepseekR1BecomesThePublishedV2TensorForTensor) {
  const ConversionPlan& plan = r1_v2_plan();
  EXPECT_EQ(plan.num_source_tensors, 91'991);
  EXPECT_EQ(plan.source_bytes, 688'574'839'360u);
  EXPECT_EQ(plan.num_output_tensors, 180'547);
  EXPECT_EQ(plan.output_bytes, 413'306'995'616u);
  EXPECT_EQ(plan.num_quantized_linears, 61 + 3 * 3 + 58 * 257 * 3);
  EXPECT_TRUE(plan.source_is_fp8);

  std::set<std::tuple<std::string, DType, std::vector<int64_t>>> planned;
  for (const ConversionJob& job : plan.jobs) {
    for (const TensorInfo& out : job.outputs)
      planned.emplace(out.name, out.dtype, out.shape.dims());
  }
  std::set<std::tuple<std::string, DType, std::vector<int64_t>>> published;
  const auto stored = stored_tensors(r1_config(), CheckpointLayout::kNvfp4V2).value();
  for (const TensorInfo& info : stored) {
    published.emplace(info.name, info.dtype, info.shape.dims());
  }
  EXPECT_TRUE(planned == published);
}

TEST(ConversionPlan, DeepseekR1BecomesThePublishedV1ButForItsKvScales) {
  // The published v1 has k_scale and v_scale, F32 scalars, for each of 62 layers; they mean 1.
  const auto plan = plan_conversion(r1_source(CheckpointLayout::kFp8), r1_config(),
                                    {QuantizeScheme::kNvfp4Mlp, {}}, 5'000'000'000)
                        .value();
  EXPECT_EQ(plan.num_output_tensors, 180'488 - 2 * 62);
  EXPECT_EQ(plan.output_bytes, 423'605'060'520u - 2 * 62 * 4);
}

TEST(ConversionPlan, QuantizedLinearsOfDeepseekR1ShrinkBySixteenNinths) {
  const ConversionPlan& plan = r1_v2_plan();
  // (8 + 32 / 16384) bits against 4.5 and a little: 1.7782.
  EXPECT_NEAR(static_cast<double>(plan.quantized_source_bytes) /
                  static_cast<double>(plan.quantized_output_bytes),
              1.7782, 0.0001);
}

TEST(ConversionPlan, ShardsFollowTheOrderOfTheModelAndKeepToTheirSize) {
  const ConversionPlan& plan = r1_v2_plan();
  std::vector<uint64_t> bytes(plan.shard_names.size());
  size_t last_shard = 0;
  int last_layer = -1;
  for (const ConversionJob& job : plan.jobs) {
    bytes[job.shard] += job.output_bytes;
    EXPECT_GE(job.shard, last_shard);
    last_shard = job.shard;
    const int layer = layer_of(job.outputs.front().name);
    if (layer >= 0) {
      EXPECT_GE(layer, last_layer);
      last_layer = layer;
    }
  }
  EXPECT_EQ(last_layer, 61);
  EXPECT_EQ(plan.jobs.front().outputs.front().name, "model.embed_tokens.weight");
  EXPECT_THAT(bytes, ::testing::Each(::testing::Le(5'000'000'000u)));
  EXPECT_EQ(plan.shard_names.size(), 83u);  // 413.3 GB in 5 GB each: the fewest there can be
  EXPECT_EQ(plan.shard_names.front(), "model-00001-of-00083.safetensors");
}

TEST(ConversionPlan, AJobLargerThanAShardHasAShardOfItsOwn) {
  const auto plan = plan_conversion(r1_source(CheckpointLayout::kFp8), r1_config(),
                                    {QuantizeScheme::kNvfp4V2, {}}, 1)
                        .value();
  EXPECT_EQ(plan.shard_names.size(), plan.jobs.size());
}

TEST(ConversionPlan, ABf16SourceGivesTheSameOutputs) {
  const auto plan = plan_conversion(r1_source(CheckpointLayout::kBf16), r1_config(),
                                    {QuantizeScheme::kNvfp4V2, {}}, 5'000'000'000)
                        .value();
  EXPECT_FALSE(plan.source_is_fp8);
  EXPECT_EQ(plan.num_output_tensors, 180'547);
  EXPECT_EQ(plan.output_bytes, 413'306'995'616u);
}

TEST(ConversionPlan, ASourceWithoutItsMtpLayerIsConvertedWithoutIt) {
  auto tensors = stored_tensors(r1_config(), CheckpointLayout::kFp8).value();
  std::erase_if(tensors,
                [](const TensorInfo& i) { return i.name.starts_with("model.layers.61."); });
  const auto plan = plan_conversion(HeadersOnly(tensors), r1_config(),
                                    {QuantizeScheme::kNvfp4V2, {}}, 5'000'000'000);
  ASSERT_TRUE(plan.has_value()) << plan.error().message;
  EXPECT_NEAR(static_cast<double>(plan->source_bytes), 673.15e9, 0.01e9);
  EXPECT_NEAR(static_cast<double>(plan->output_bytes), 386.38e9, 0.01e9);
}

TEST(ConversionPlan, AnMtpLayerWithAHoleIsRefused) {
  auto tensors = stored_tensors(r1_config(), CheckpointLayout::kFp8).value();
  std::erase_if(tensors,
                [](const TensorInfo& i) { return i.name == "model.layers.61.eh_proj.weight"; });
  const auto plan = plan_conversion(HeadersOnly(tensors), r1_config(),
                                    {QuantizeScheme::kNvfp4V2, {}}, 5'000'000'000);
  ASSERT_FALSE(plan.has_value());
  EXPECT_THAT(plan.error().message, ::testing::HasSubstr("model.layers.61.eh_proj.weight"));
}

TEST(ConversionPlan, Nvfp4SourcesAreRefused) {
  const auto plan = plan_conversion(r1_source(CheckpointLayout::kNvfp4V2), r1_config(),
                                    {QuantizeScheme::kNvfp4V2, {}}, 5'000'000'000);
  ASSERT_FALSE(plan.has_value());
  EXPECT_EQ(plan.error().code, ErrorCode::kUnsupported);
  EXPECT_THAT(plan.error().message, ::testing::HasSubstr("already"));
}

TEST(QuantizeSchemes, ExclusionsOfV2AreSortedAsStringsWithTheMtpLayerLast) {
  const auto modules = excluded_modules(r1_config(), {QuantizeScheme::kNvfp4V2, {}});
  ASSERT_EQ(modules.size(), 246u);
  EXPECT_EQ(modules[0], "lm_head");
  EXPECT_EQ(modules[1], "model.layers.0.self_attn.kv_a_proj_with_mqa");
  EXPECT_EQ(modules[2], "model.layers.0.self_attn.kv_b_proj");
  EXPECT_EQ(modules[3], "model.layers.0.self_attn.q_a_proj");
  EXPECT_EQ(modules[4], "model.layers.0.self_attn.q_b_proj");
  EXPECT_EQ(modules[5], "model.layers.1.self_attn.kv_a_proj_with_mqa");
  EXPECT_EQ(modules[9], "model.layers.10.self_attn.kv_a_proj_with_mqa");
  EXPECT_EQ(modules[244], "model.layers.9.self_attn.q_b_proj");
  EXPECT_EQ(modules[245], "model.layers.61*");
}

TEST(QuantizeSchemes, ExclusionsOfTheMlpSchemeAreWholeAttentionBlocks) {
  const auto modules = excluded_modules(r1_config(), {QuantizeScheme::kNvfp4Mlp, {}});
  ASSERT_EQ(modules.size(), 63u);
  EXPECT_EQ(modules[0], "lm_head");
  EXPECT_EQ(modules[1], "model.layers.0.self_attn*");
  EXPECT_EQ(modules[62], "model.layers.61*");
}

TEST(QuantizeSchemes, AttentionAndAllQuantizeMoreAndExcludeWhatIsLeft) {
  const auto v2 = quantized_groups(r1_config(), {QuantizeScheme::kNvfp4V2, {}}).value();
  const auto attention =
      quantized_groups(r1_config(), {QuantizeScheme::kNvfp4Attention, {}}).value();
  const auto all = quantized_groups(r1_config(), {QuantizeScheme::kNvfp4All, {}}).value();
  EXPECT_EQ(attention.size(), v2.size() + 61 * 3);
  EXPECT_EQ(all.size(), attention.size() + 4 + 2 * 257);
  const auto left = excluded_modules(r1_config(), {QuantizeScheme::kNvfp4Attention, {}});
  ASSERT_EQ(left.size(), 1u + 61 + 1);
  EXPECT_EQ(left[1], "model.layers.0.self_attn.kv_b_proj");
  EXPECT_EQ(left.back(), "model.layers.61*");
  const auto least = excluded_modules(r1_config(), {QuantizeScheme::kNvfp4All, {}});
  EXPECT_THAT(least, ::testing::IsSupersetOf({std::string("lm_head"),
                                              std::string("model.layers.61.eh_proj"),
                                              std::string("model.layers.61.self_attn.kv_b_proj")}));
  EXPECT_EQ(least.size(), 1u + 62 + 3);
}

TEST(QuantizeSchemes, TheLastOverrideThatMatchesCounts) {
  const QuantizeRecipe recipe{QuantizeScheme::kNvfp4V2,
                              {parse_scheme_override("*.experts.*.down_proj=bf16").value(),
                               parse_scheme_override("model.layers.5.*down_proj=nvfp4").value(),
                               parse_scheme_override("*.q_b_proj=nvfp4").value()}};
  EXPECT_EQ(recipe.name(),
            "nvfp4-v2, *.experts.*.down_proj=bf16, model.layers.5.*down_proj=nvfp4, "
            "*.q_b_proj=nvfp4");
  const auto plan =
      plan_conversion(r1_source(CheckpointLayout::kFp8), r1_config(), recipe, 5'000'000'000);
  ASSERT_TRUE(plan.has_value()) << plan.error().message;
  // 57 layers lose 256 matrices; 61 layers and the MTP layer gain q_b_proj.
  EXPECT_EQ(plan->num_quantized_linears, 61 + 3 * 3 + 58 * 257 * 3 - 57 * 256 + 62);
  const auto left = excluded_modules(r1_config(), recipe);
  EXPECT_THAT(left, ::testing::Contains("model.layers.4.mlp.experts.17.down_proj"));
  EXPECT_THAT(left, ::testing::Not(::testing::Contains("model.layers.5.mlp.experts.17.down_proj")));
  EXPECT_THAT(left, ::testing::Not(::testing::Contains("model.layers.4.self_attn.q_b_proj")));
  for (const char* bad : {"x", "=bf16", "*.o_proj=fp8", "*.o_proj="}) {
    EXPECT_FALSE(parse_scheme_override(bad).has_value()) << bad;
  }
  for (const char* nothing : {"*.kv_b_proj=nvfp4", "lm_head=nvfp4", "model.layers.99.*=bf16"}) {
    const QuantizeRecipe none{QuantizeScheme::kNvfp4V2, {parse_scheme_override(nothing).value()}};
    EXPECT_FALSE(quantized_groups(r1_config(), none).has_value()) << nothing;
  }
}

TEST(QuantizeSchemes, KvScalesAreThoseOfThePublishedV1) {
  const auto plan = plan_conversion(r1_source(CheckpointLayout::kFp8), r1_config(),
                                    {QuantizeScheme::kNvfp4Mlp, {}}, 5'000'000'000, true)
                        .value();
  EXPECT_EQ(plan.num_output_tensors, 180'488);
  EXPECT_EQ(plan.output_bytes, 423'605'060'520u);
}

TEST(QuantizeSchemes, UnknownSchemesAreRefusedByName) {
  EXPECT_EQ(parse_quantize_scheme("nvfp4-v2").value(), QuantizeScheme::kNvfp4V2);
  EXPECT_EQ(parse_quantize_scheme("nvfp4-mlp").value(), QuantizeScheme::kNvfp4Mlp);
  for (const char* name : {"nvfp4-turbo", "fp8", "", "NVFP4"}) {
    const auto scheme = parse_quantize_scheme(name);
    ASSERT_FALSE(scheme.has_value()) << name;
    EXPECT_THAT(scheme.error().message,
                ::testing::AllOf(::testing::HasSubstr(name), ::testing::HasSubstr("nvfp4-v2"),
                                 ::testing::HasSubstr("nvfp4-mlp")));
  }
}

TEST(NaturalOrder, ComparesRunsOfDigitsAsNumbers) {
  EXPECT_TRUE(natural_less("experts.2.x", "experts.10.x"));
  EXPECT_FALSE(natural_less("experts.10.x", "experts.2.x"));
  EXPECT_TRUE(natural_less("a", "a.b"));
  EXPECT_TRUE(natural_less("a1", "a1b"));
  EXPECT_FALSE(natural_less("a10", "a10"));
}

TEST(NaturalOrder, FindsTheLayerOfAName) {
  EXPECT_EQ(layer_of("model.layers.61.enorm.weight"), 61);
  EXPECT_EQ(layer_of("model.layers.x.enorm"), -1);
  EXPECT_EQ(layer_of("model.layers.7"), -1);
  EXPECT_EQ(layer_of("model.norm.weight"), -1);
}

}  // namespace
}  // namespace nibble
