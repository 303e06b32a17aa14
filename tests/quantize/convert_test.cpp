// nibble convert: formats there and back.
#include "nibble/quantize/convert.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "nibble/checkpoint/inspection.h"
#include "nibble/checkpoint/quant_config.h"
#include "nibble/numeric/nvfp4.h"
#include "nibble/quantize/quantize.h"
#include "nibble/quantize/weight_comparison.h"
#include "tests/base/temporary_folder.h"
#include "tests/quantize/test_checkpoint.h"

namespace nibble {
namespace {

using testing::TemporaryFolder;

// The demo in NVFP4, once.
std::filesystem::path nvfp4_demo() {
  static const TemporaryFolder kFolder;
  auto path = kFolder / "nvfp4";
  if (!std::filesystem::exists(path)) {
    EXPECT_TRUE(quantize_checkpoint(testing::demo_source(), path, {}).has_value());
  }
  return path;
}

Status convert(const std::filesystem::path& in, const std::filesystem::path& out,
               ConvertFormat format) {
  ConvertOptions options;
  options.format = format;
  options.shard_bytes = 7'000'000;
  const auto report = convert_checkpoint(in, out, options);
  if (!report) return tl::unexpected(report.error());
  return {};
}

TEST(Convert, Nvfp4ToBf16IsTheDequantizedValueRoundedOnce) {
  const TemporaryFolder folder;
  ASSERT_TRUE(convert(nvfp4_demo(), folder / "bf16", ConvertFormat::kBf16).has_value());
  const auto in = SafetensorsSource::open(nvfp4_demo()).value();
  const auto out = SafetensorsSource::open(folder / "bf16").value();
  const std::string module = "model.layers.2.mlp.experts.5.down_proj";
  const auto codes = testing::tensor_bytes_of(*in, module + ".weight");
  const auto scales = testing::tensor_bytes_of(*in, module + ".weight_scale");
  float global = 0;
  std::memcpy(&global, testing::tensor_bytes_of(*in, module + ".weight_scale_2").data(), 4);
  const auto rows = static_cast<int64_t>(codes.size() * 2 / 256);
  std::vector<float> values(codes.size() * 2);
  ASSERT_TRUE(dequantize_nvfp4_rows(reinterpret_cast<const uint8_t*>(codes.data()),
                                    reinterpret_cast<const uint8_t*>(scales.data()), global, rows,
                                    256, values.data())
                  .has_value());
  const auto halves = testing::tensor_bytes_of(*out, module + ".weight");
  for (size_t i = 0; i < values.size(); ++i) {
    uint16_t bits = 0;
    std::memcpy(&bits, halves.data() + 2 * i, 2);
    ASSERT_EQ(bits, float_to_bf16(values[i])) << i;
  }
  const auto inspection = inspect_checkpoint(folder / "bf16", CheckValues::kYes, false).value();
  EXPECT_THAT(inspection.problems, ::testing::IsEmpty());
  EXPECT_EQ(load_quant_config(folder / "bf16", false).value().algo, QuantAlgo::kNone);
}

TEST(Convert, ToFp8AndBackToBf16StaysWithinFp8sError) {
  const TemporaryFolder folder;
  ASSERT_TRUE(convert(nvfp4_demo(), folder / "fp8", ConvertFormat::kFp8).has_value());
  const auto inspection = inspect_checkpoint(folder / "fp8", CheckValues::kYes, false).value();
  EXPECT_THAT(inspection.problems, ::testing::IsEmpty());
  EXPECT_EQ(load_quant_config(folder / "fp8", false).value().algo, QuantAlgo::kFp8Block);
  const auto a = SafetensorsSource::open(nvfp4_demo()).value();
  const auto b = SafetensorsSource::open(folder / "fp8").value();
  const auto config = load_config(testing::demo_source()).value();
  const auto comparisons = compare_weights(*a, *b, config, 2).value();
  EXPECT_GT(comparisons.size(), 200u);
  for (const LinearComparison& linear : comparisons)
    EXPECT_GT(linear.sqnr_db(), 29) << linear.module;
}

TEST(Convert, CompressedTensorsAndBackIsTheSameButForLastPlacesOfScales) {
  const TemporaryFolder folder;
  ASSERT_TRUE(
      convert(nvfp4_demo(), folder / "packed", ConvertFormat::kCompressedTensors).has_value());
  ASSERT_TRUE(convert(folder / "packed", folder / "back", ConvertFormat::kModelOpt).has_value());
  const auto first = SafetensorsSource::open(nvfp4_demo()).value();
  const auto packed = SafetensorsSource::open(folder / "packed").value();
  const auto back = SafetensorsSource::open(folder / "back").value();
  EXPECT_EQ(packed->find("model.layers.0.mlp.up_proj.weight_packed")->dtype, DType::kU8);
  EXPECT_EQ(packed->find("model.layers.0.mlp.up_proj.weight_global_scale")->shape, Shape({1}));
  ASSERT_EQ(first->tensors().size(), back->tensors().size());
  for (const TensorInfo& info : first->tensors()) {
    SCOPED_TRACE(info.name);
    const auto a = testing::tensor_bytes_of(*first, info.name);
    const auto b = testing::tensor_bytes_of(*back, info.name);
    if (!info.name.ends_with("weight_scale_2")) {
      EXPECT_EQ(a, b);
      continue;
    }
    int32_t bits_a = 0;
    int32_t bits_b = 0;
    std::memcpy(&bits_a, a.data(), 4);
    std::memcpy(&bits_b, b.data(), 4);
    EXPECT_LE(std::abs(bits_a - bits_b), 1);
  }
  const auto config = testing::json_file(folder / "packed" / "config.json");
  EXPECT_EQ(config["quantization_config"]["format"], "nvfp4-pack-quantized");
  EXPECT_EQ(config["quantization_config"]["ignore"].back(), "re:model\\.layers\\.4.*");
  EXPECT_EQ(load_quant_config(folder / "back", true).value().exclude_modules,
            load_quant_config(nvfp4_demo(), true).value().exclude_modules);
  EXPECT_THAT(inspect_checkpoint(folder / "back", CheckValues::kYes, false)->problems,
              ::testing::IsEmpty());
}

TEST(Convert, RefusesWhatHasNothingToConvertAndBadPlaces) {
  const TemporaryFolder folder;
  EXPECT_THAT(convert(testing::demo_source(), folder / "x", ConvertFormat::kCompressedTensors)
                  .error()
                  .message,
              ::testing::HasSubstr("nothing to convert"));
  EXPECT_EQ(convert(nvfp4_demo(), nvfp4_demo() / "x", ConvertFormat::kBf16).error().code,
            ErrorCode::kInvalidArgument);
  EXPECT_FALSE(parse_convert_format("gguf").has_value());
  EXPECT_EQ(folder.num_entries(), 0);
}

TEST(WeightComparison, CountsZeroAndSaturatedBlocksAndNamesTheError) {
  const TemporaryFolder folder;
  const auto a = SafetensorsSource::open(testing::demo_source()).value();
  const auto b = SafetensorsSource::open(nvfp4_demo()).value();
  const auto config = load_config(testing::demo_source()).value();
  const auto comparisons = compare_weights(*a, *b, config, 2).value();
  // 160 are NVFP4, the others went from FP8 to BF16 without an error of their own.
  int64_t nvfp4 = 0;
  for (const LinearComparison& linear : comparisons) {
    if (linear.format != "NVFP4") {
      EXPECT_EQ(linear.error, 0) << linear.module;
      continue;
    }
    ++nvfp4;
    EXPECT_GT(linear.sqnr_db(), 18);
    EXPECT_LT(linear.sqnr_db(), 25);
    // The block with the matrix's largest value, or its partner's, has scale 448 in mode max.
    EXPECT_LT(linear.saturated_blocks, linear.num_blocks / 50);
  }
  EXPECT_EQ(nvfp4, 160);
}

}  // namespace
}  // namespace nibble
