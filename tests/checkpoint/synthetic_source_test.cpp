#include "nibble/checkpoint/synthetic_source.h"

#include <gtest/gtest.h>

#include <cmath>

#include "nibble/checkpoint/linear_tensors.h"
#include "nibble/numeric/fp4.h"
#include "nibble/numeric/fp8.h"
#include "tests/checkpoint/test_configs.h"

namespace nibble {
namespace {

std::unique_ptr<SyntheticSource> tiny_source(CheckpointLayout layout, uint64_t seed) {
  return *SyntheticSource::create(*parse_config(testing::kTinyConfig, "x"), layout, seed);
}

TEST(SyntheticSource, HasEveryTensorOfTheModelWithValidValues) {
  const ModelConfig config = *parse_config(testing::kTinyConfig, "x");
  for (const auto layout : {CheckpointLayout::kBf16, CheckpointLayout::kFp8,
                            CheckpointLayout::kNvfp4V1, CheckpointLayout::kNvfp4V2}) {
    const auto source = tiny_source(layout, 3);
    for (const ModelTensor& tensor : model_tensors(config)) {
      if (!tensor.is_linear) {
        const TensorInfo* info = source->find(tensor.name);
        ASSERT_NE(info, nullptr) << tensor.name;
        EXPECT_EQ(info->shape, tensor.shape);
        continue;
      }
      const auto linear = read_linear(*source, tensor.module(), tensor.shape[0], tensor.shape[1]);
      EXPECT_TRUE(linear) << linear.error().message;
    }
  }
}

TEST(SyntheticSource, DependsOnItsSeedAndOnNothingElse) {
  const char* name = "model.layers.1.mlp.experts.2.up_proj.weight";
  const auto source = tiny_source(CheckpointLayout::kNvfp4V2, 3);
  const auto view = *source->read(name);
  const std::vector<std::byte> first(view.bytes.begin(), view.bytes.end());
  source->release(name);
  const auto again = *source->read(name);
  EXPECT_TRUE(std::equal(first.begin(), first.end(), again.bytes.begin(), again.bytes.end()));
  const auto other = tiny_source(CheckpointLayout::kNvfp4V2, 4);
  const auto different = *other->read(name);
  EXPECT_FALSE(std::equal(first.begin(), first.end(), different.bytes.begin()));
  EXPECT_EQ(source->read("nothing").error().code, ErrorCode::kNotFound);
}

TEST(SyntheticSource, CopiesEmbeddingAndHeadIntoTheMtpLayer) {
  const auto source = tiny_source(CheckpointLayout::kFp8, 3);
  for (const auto& [copy, original] :
       {std::pair("model.layers.2.embed_tokens.weight", "model.embed_tokens.weight"),
        std::pair("model.layers.2.shared_head.head.weight", "lm_head.weight")}) {
    const auto a = *source->read(copy);
    const auto b = *source->read(original);
    EXPECT_TRUE(std::equal(a.bytes.begin(), a.bytes.end(), b.bytes.begin(), b.bytes.end()));
  }
}

TEST(SyntheticSource, GivesLinearWeightsAVarianceOfOneOverColumns) {
  ModelConfig config = *parse_config(testing::kTinyConfig, "x");
  config.intermediate_size = 256;
  config.hidden_size = 512;
  const auto nvfp4 = *SyntheticSource::create(config, CheckpointLayout::kNvfp4V2, 5);
  const auto linear = *read_linear(*nvfp4, "model.layers.0.mlp.gate_proj", 256, 512);
  double sum = 0;
  for (int64_t i = 0; i < 256 * 512; ++i) {
    const uint8_t byte = linear.weight.data<uint8_t>()[i / 2];
    const float scale = kE4m3Values[linear.scales.data<uint8_t>()[i / 16]];
    const auto value = static_cast<double>(kE2m1Values[i % 2 == 0 ? byte & 0xf : byte >> 4] *
                                           scale * linear.global_scale);
    sum += value * value;
  }
  EXPECT_NEAR(sum / 256, 1, 0.1);  // 512 columns of variance 1 / 512, mean over rows

  const auto fp8 = *SyntheticSource::create(config, CheckpointLayout::kFp8, 5);
  const auto blocks = *read_linear(*fp8, "model.layers.0.mlp.gate_proj", 256, 512);
  sum = 0;
  for (int64_t i = 0; i < 256 * 512; ++i) {
    const float scale = blocks.scales.data<float>()[i / 512 / 128 * 4 + i % 512 / 128];
    const auto value = static_cast<double>(kE4m3Values[blocks.weight.data<uint8_t>()[i]] * scale);
    sum += value * value;
  }
  EXPECT_NEAR(sum / 256, 1.3, 0.4);  // the blocks' scales spread by up to a quarter
}

TEST(SyntheticSource, SharesScalesBetweenGateAndUp) {
  const auto source = tiny_source(CheckpointLayout::kNvfp4V2, 3);
  const auto gate = *read_linear(*source, "model.layers.0.mlp.gate_proj", 48, 32);
  const auto up = *read_linear(*source, "model.layers.0.mlp.up_proj", 48, 32);
  EXPECT_EQ(gate.global_scale, up.global_scale);
  EXPECT_EQ(gate.input_scale, up.input_scale);
}

}  // namespace
}  // namespace nibble
