// The lists of tensors against the published checkpoints' totals.
#include "nibble/checkpoint/model_tensors.h"

#include <gtest/gtest.h>

#include <map>

#include "tests/checkpoint/test_configs.h"

namespace nibble {
namespace {

struct Totals {
  int64_t tensors = 0;
  int64_t elements = 0;
  int64_t bytes = 0;
  std::map<DType, int64_t> elements_by_dtype;
};

Totals totals_of(CheckpointLayout layout) {
  const auto config = parse_config(testing::kDeepseekR1Config, "config.json");
  EXPECT_TRUE(config) << config.error().message;
  const auto stored = stored_tensors(*config, layout);
  EXPECT_TRUE(stored) << stored.error().message;
  Totals totals;
  for (const TensorInfo& info : *stored) {
    ++totals.tensors;
    totals.elements += info.shape.num_elements();
    totals.bytes += info.shape.num_elements() * dtype_size(info.dtype);
    totals.elements_by_dtype[info.dtype] += info.shape.num_elements();
  }
  return totals;
}

// The three totals below are the published checkpoints' own, counted from their shards' headers.
TEST(ModelTensors, ListDeepseekR1AsReleasedInFp8) {
  const Totals totals = totals_of(CheckpointLayout::kFp8);
  EXPECT_EQ(totals.tensors, 91'991);
  EXPECT_EQ(totals.elements, 684'531'386'000);
  EXPECT_EQ(totals.bytes, 688'574'839'360);
}

TEST(ModelTensors, ListDeepseekR1AsPublishedInNvfp4V1) {
  const Totals totals = totals_of(CheckpointLayout::kNvfp4V1);
  EXPECT_EQ(totals.tensors, 180'488);
  EXPECT_EQ(totals.elements, 396'767'103'210);
  EXPECT_EQ(totals.bytes, 423'605'060'520);
}

TEST(ModelTensors, ListDeepseekR1AsPublishedInNvfp4V2) {
  Totals totals = totals_of(CheckpointLayout::kNvfp4V2);
  EXPECT_EQ(totals.tensors, 180'547);
  EXPECT_EQ(totals.elements, 393'632'909'544);
  EXPECT_EQ(totals.bytes, 413'306'995'616);
  EXPECT_EQ(totals.elements_by_dtype[DType::kU8], 332'408'029'184);
  EXPECT_EQ(totals.elements_by_dtype[DType::kF8E4m3], 41'551'003'648);
  EXPECT_EQ(totals.elements_by_dtype[DType::kBf16], 19'673'772'032);
  EXPECT_EQ(totals.elements_by_dtype[DType::kF32], 104'680);
}

TEST(ModelTensors, CountDeepseekR1sParameters) {
  const auto config = parse_config(testing::kDeepseekR1Config, "config.json");
  ASSERT_TRUE(config) << config.error().message;
  const auto tensors = model_tensors(*config);
  int64_t mtp = 0;
  int64_t copies = 0;
  for (const ModelTensor& tensor : tensors) {
    if (tensor.module_class == ModuleClass::kMtp) mtp += tensor.shape.num_elements();
    if (tensor.is_optional) copies += tensor.shape.num_elements();
  }
  EXPECT_EQ(num_parameters(tensors), 684'489'845'504);
  EXPECT_EQ(mtp, 13'463'426'304);
  EXPECT_EQ(mtp - copies, 11'610'068'224);
}

TEST(ModelTensors, WithoutPredictLayersHaveNoMtpLayer) {
  ModelConfig config = *parse_config(testing::kTinyConfig, "config.json");
  config.num_nextn_predict_layers = 0;
  for (const ModelTensor& tensor : model_tensors(config)) {
    EXPECT_NE(tensor.module_class, ModuleClass::kMtp) << tensor.name;
    EXPECT_LT(tensor.layer, config.num_hidden_layers) << tensor.name;
  }
}

TEST(ModelTensors, RefuseNvfp4ForColumnsThatAreNoMultipleOf16) {
  ModelConfig config = *parse_config(testing::kTinyConfig, "config.json");
  config.moe_intermediate_size = 24;  // down_proj's columns
  const auto stored = stored_tensors(config, CheckpointLayout::kNvfp4V2);
  ASSERT_FALSE(stored);
  EXPECT_EQ(stored.error().code, ErrorCode::kUnsupported);
  EXPECT_EQ(stored.error().message,
            "model.layers.1.mlp.shared_experts.down_proj.weight has 24 columns, but NVFP4 needs a "
            "multiple of 16");
}

}  // namespace
}  // namespace nibble
