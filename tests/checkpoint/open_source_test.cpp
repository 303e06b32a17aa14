#include "nibble/checkpoint/open_source.h"

#include <gtest/gtest.h>

#include <cstring>
#include <fstream>

#include "nibble/checkpoint/linear_tensors.h"
#include "nibble/checkpoint/repeating_source.h"
#include "tests/checkpoint/test_configs.h"

namespace nibble {
namespace {

// Some of its tensors have more than 4 Mi elements.
ModelConfig wide_config() {
  ModelConfig config = *parse_config(testing::kTinyConfig, "x");
  config.vocab_size = (int64_t{5} << 20) / config.hidden_size;
  config.intermediate_size = 16 * ((int64_t{9} << 20) / config.hidden_size / 16);
  return config;
}

TEST(RepeatingSource, LargeTensorsAreViewsOfOneBlockAndSmallOnesTheirOwn) {
  const ModelConfig config = wide_config();
  const auto source = *RepeatingSource::create(config, CheckpointLayout::kNvfp4V2, 4);
  const auto plain = *SyntheticSource::create(config, CheckpointLayout::kNvfp4V2, 4);
  EXPECT_EQ(source->tensors().size(), plain->tensors().size());
  const TensorView head = *source->read("lm_head.weight");
  const TensorView table = *source->read("model.embed_tokens.weight");
  EXPECT_EQ(head.bytes.data(), table.bytes.data());
  EXPECT_EQ(head.shape, (Shape{config.vocab_size, config.hidden_size}));
  source->release("lm_head.weight");
  EXPECT_EQ(source->read("lm_head.weight")->bytes.data(), head.bytes.data());

  const char* const small = "model.layers.1.mlp.experts.2.up_proj.weight";
  const TensorView own = *source->read(small);
  const TensorView same = *plain->read(small);
  ASSERT_EQ(own.bytes.size(), same.bytes.size());
  EXPECT_EQ(std::memcmp(own.bytes.data(), same.bytes.data(), own.bytes.size()), 0);
  EXPECT_FALSE(source->read("no.such.tensor"));
}

TEST(RepeatingSource, EveryLinearWeightIsOneThatReadersTake) {
  const ModelConfig config = wide_config();
  for (const auto layout : {CheckpointLayout::kBf16, CheckpointLayout::kFp8,
                            CheckpointLayout::kNvfp4V1, CheckpointLayout::kNvfp4V2}) {
    const auto source = *RepeatingSource::create(config, layout, 3);
    for (const ModelTensor& tensor : model_tensors(config)) {
      if (!tensor.is_linear) continue;
      const auto linear = read_linear(*source, tensor.module(), tensor.shape[0], tensor.shape[1]);
      EXPECT_TRUE(linear) << linear.error().message;
    }
  }
}

class OpenSource : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = std::filesystem::path(::testing::TempDir()) / "open_source";
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_);
  }
  void write(std::string_view name, std::string_view text) const {
    std::ofstream(folder_ / name) << text;
  }
  Result<OpenedSource> open() const {
    return open_source(folder_, *parse_config(testing::kTinyConfig, "x"));
  }
  std::filesystem::path folder_;
};

TEST_F(OpenSource, MadeUpWeightsComeWithAWarning) {
  write(kDummyWeightsFile, R"({"layout": "fp8", "seed": 7})");
  const auto opened = open();
  ASSERT_TRUE(opened) << opened.error().message;
  ASSERT_EQ(opened->warnings.size(), 1U);
  EXPECT_NE(opened->warnings[0].find("MADE UP"), std::string::npos);
  EXPECT_NE(opened->source->find("model.layers.1.mlp.experts.2.up_proj.weight_scale_inv"), nullptr);
  write(kDummyWeightsFile, "{}");
  EXPECT_NE(open()->source->find("model.layers.1.mlp.experts.2.up_proj.weight_scale_2"), nullptr);
}

TEST_F(OpenSource, WhatIsWrongIsNamed) {
  const std::pair<const char*, const char*> cases[] = {
      {"[1]", "expected an object"},
      {"{\"layout\": \"int4\"}", "layout is \"int4\", expected nvfp4_v2"},
      {"{\"layout\": 4}", "layout is 4"},
      {"{\"seed\": -1}", "seed is -1"},
      {"{\"seeds\": 1}", "seeds is not known"},
      {"{", "dummy_weights.json"}};
  for (const auto& [text, expected] : cases) {
    write(kDummyWeightsFile, text);
    const auto opened = open();
    ASSERT_FALSE(opened) << text;
    EXPECT_NE(opened.error().message.find(expected), std::string::npos) << opened.error().message;
  }
  write(kDummyWeightsFile, "{}");
  write("model.safetensors", "");
  const auto both = open();
  ASSERT_FALSE(both);
  EXPECT_EQ(both.error().code, ErrorCode::kInvalidArgument);
  std::filesystem::remove(folder_ / kDummyWeightsFile);
  EXPECT_FALSE(open());
}

}  // namespace
}  // namespace nibble
