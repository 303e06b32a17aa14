// The demo checkpoint converted, against NVIDIA Model Optimizer's own conversion of it and against
// plain arithmetic for what is not quantized.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <openssl/evp.h>

#include "nibble/checkpoint/config.h"
#include "nibble/checkpoint/quant_config.h"
#include "nibble/quantize/quantize.h"
#include "nibble/quantize/source_rows.h"
#include "tests/base/temporary_folder.h"
#include "tests/quantize/test_checkpoint.h"

namespace nibble {
namespace {

using testing::demo_source;
using testing::json_file;
using testing::TemporaryFolder;
using testing::tensor_bytes_of;

std::string sha256(const std::vector<std::byte>& bytes) {
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned size = 0;
  EXPECT_EQ(EVP_Digest(bytes.data(), bytes.size(), digest, &size, EVP_sha256(), nullptr), 1);
  std::string text;
  for (unsigned i = 0; i < size; ++i) {
    constexpr char kDigits[] = "0123456789abcdef";
    text += {kDigits[digest[i] >> 4], kDigits[digest[i] & 15]};
  }
  return text;
}

uint32_t scalar_bits(const CheckpointSource& source, const std::string& name) {
  EXPECT_EQ(source.find(name)->shape, Shape());
  uint32_t bits = 0;
  std::memcpy(&bits, tensor_bytes_of(source, name).data(), sizeof bits);
  return bits;
}

// The demo is converted once for the tests that only look at the result.
class DemoConversion : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    folder_ = new TemporaryFolder;
    QuantizeOptions options;
    options.algorithm.mode = Nvfp4Mode::kMax;
    options.shard_bytes = 9'000'000;
    options.threads = 2;
    auto report = quantize_checkpoint(demo_source(), out(), options);
    ASSERT_TRUE(report.has_value()) << report.error().message;
    report_ = new QuantizeReport(*report);
    source_ = SafetensorsSource::open(demo_source()).value().release();
    result_ = SafetensorsSource::open(out()).value().release();
  }
  static void TearDownTestSuite() {
    delete result_;
    delete source_;
    delete report_;
    delete folder_;
  }
  static std::filesystem::path out() { return *folder_ / "out"; }

  static TemporaryFolder* folder_;
  static QuantizeReport* report_;
  static SafetensorsSource* source_;
  static SafetensorsSource* result_;
};
TemporaryFolder* DemoConversion::folder_ = nullptr;
QuantizeReport* DemoConversion::report_ = nullptr;
SafetensorsSource* DemoConversion::source_ = nullptr;
SafetensorsSource* DemoConversion::result_ = nullptr;

TEST_F(DemoConversion, EveryQuantizedTensorHasModelOptimizersBytes) {
  const auto golden = json_file(NIBBLE_SOURCE_DIR "/tests/golden/demo/modelopt_nvfp4.json");
  ASSERT_EQ(golden.size(), 160u);
  for (const auto& [name, expected] : golden.items()) {
    SCOPED_TRACE(name);
    const TensorInfo* const info = result_->find(name);
    ASSERT_NE(info, nullptr);
    EXPECT_EQ(info->dtype, DType::kU8);
    EXPECT_EQ(info->shape[0], expected["shape"][0].get<int64_t>());
    EXPECT_EQ(2 * info->shape[1], expected["shape"][1].get<int64_t>());
    EXPECT_EQ(sha256(tensor_bytes_of(*result_, name)), expected["weight"]);
    EXPECT_EQ(sha256(tensor_bytes_of(*result_, name + "_scale")), expected["weight_scale"]);
    EXPECT_EQ(scalar_bits(*result_, name + "_scale_2"), expected["weight_scale_2"]);
  }
  EXPECT_EQ(report_->num_quantized_linears, 160);
}

TEST_F(DemoConversion, InputScaleIsOneForEveryQuantizedLinear) {
  int count = 0;
  for (const TensorInfo& info : result_->tensors()) {
    if (!info.name.ends_with(".input_scale")) continue;
    EXPECT_EQ(scalar_bits(*result_, info.name), 0x3f800000u);
    ++count;
  }
  EXPECT_EQ(count, 160);
}

TEST_F(DemoConversion, Fp8MatricesThatAreNotQuantizedBecomeBf16) {
  int matrices = 0;
  for (const TensorInfo& info : source_->tensors()) {
    const TensorInfo* const written = result_->find(info.name);
    if (info.dtype != DType::kF8E4m3 || written->dtype == DType::kU8) continue;
    ++matrices;
    SCOPED_TRACE(info.name);
    ASSERT_EQ(written->dtype, DType::kBf16);
    ASSERT_EQ(written->shape, info.shape);
    const auto codes = tensor_bytes_of(*source_, info.name);
    const auto scales = tensor_bytes_of(*source_, info.name + "_scale_inv");
    const auto values = tensor_bytes_of(*result_, info.name);
    const int64_t cols = info.shape[1];
    for (int64_t i = 0; i < info.shape.num_elements(); ++i) {
      const int64_t block = i / cols / 128 * ((cols + 127) / 128) + i % cols / 128;
      float scale = 0;
      std::memcpy(&scale, scales.data() + 4 * block, 4);
      uint16_t bits = 0;
      std::memcpy(&bits, values.data() + 2 * i, 2);
      // One multiplication in binary64 (exact), rounded to binary32 and then to BF16.
      const double product =
          double{kE4m3Values[static_cast<uint8_t>(codes[static_cast<size_t>(i)])]} * scale;
      ASSERT_EQ(bits, float_to_bf16(static_cast<float>(product))) << i;
    }
  }
  // 4 attention matrices in 4 layers; in the MTP layer those, o_proj and (16 + 1) * 3 of the MLPs.
  EXPECT_EQ(matrices, 4 * 4 + 5 + 17 * 3);
}

TEST_F(DemoConversion, OtherTensorsAreCopiedBitForBit) {
  int copied = 0;
  for (const TensorInfo& info : source_->tensors()) {
    if (info.dtype == DType::kF8E4m3 || info.name.ends_with("_scale_inv")) continue;
    const TensorInfo* const written = result_->find(info.name);
    ASSERT_NE(written, nullptr) << info.name;
    EXPECT_EQ(written->dtype, info.dtype) << info.name;
    EXPECT_EQ(written->shape, info.shape) << info.name;
    EXPECT_EQ(tensor_bytes_of(*result_, info.name), tensor_bytes_of(*source_, info.name));
    ++copied;
  }
  EXPECT_GT(copied, 0);
  EXPECT_EQ(result_->find("model.layers.1.mlp.gate.e_score_correction_bias")->dtype, DType::kF32);
}

TEST_F(DemoConversion, NothingOfTheFp8ScalesIsLeft) {
  for (const TensorInfo& info : result_->tensors()) {
    EXPECT_FALSE(info.name.ends_with("_scale_inv")) << info.name;
  }
}

TEST_F(DemoConversion, TheTensorsAreThoseOfThePublishedLayout) {
  const auto config = load_config(demo_source()).value();
  auto expected = stored_tensors(config, CheckpointLayout::kNvfp4V2).value();
  // The lists hold the optional copies of embedding and head in the MTP layer; the demo may not.
  std::erase_if(expected, [](const TensorInfo& info) {
    return info.name.starts_with("model.layers.4.") && source_->find(info.name) == nullptr &&
           result_->find(info.name) == nullptr;
  });
  ASSERT_EQ(result_->tensors().size(), expected.size());
  for (size_t i = 0; i < expected.size(); ++i) {
    EXPECT_EQ(result_->tensors()[i].name, expected[i].name);
    EXPECT_EQ(result_->tensors()[i].dtype, expected[i].dtype) << expected[i].name;
    EXPECT_EQ(result_->tensors()[i].shape, expected[i].shape) << expected[i].name;
  }
}

TEST_F(DemoConversion, QuantizedLinearsShrinkAtLeastBySixteenTenths) {
  EXPECT_GE(report_->quantized_ratio(), 1.6);
  // Counted from the files: 8 bits and a float per 128 x 128 against 4.5 bits and two floats.
  uint64_t before = 0;
  uint64_t after = 0;
  const auto golden = json_file(NIBBLE_SOURCE_DIR "/tests/golden/demo/modelopt_nvfp4.json");
  for (const auto& [name, expected] : golden.items()) {
    before += source_->read(name)->bytes.size() + source_->read(name + "_scale_inv")->bytes.size();
    const std::string module = name.substr(0, name.size() - 7);
    for (const char* suffix : {".weight", ".weight_scale", ".weight_scale_2", ".input_scale"}) {
      after += result_->read(module + suffix)->bytes.size();
    }
  }
  EXPECT_EQ(report_->quantized_source_bytes, before);
  EXPECT_EQ(report_->quantized_output_bytes, after);
}

TEST_F(DemoConversion, TheIndexListsEveryTensorWithItsShardAndTheTotalSize) {
  const auto index = json_file(out() / "model.safetensors.index.json");
  const auto& map = index["weight_map"];
  EXPECT_EQ(map.size(), result_->tensors().size());
  uint64_t total = 0;
  for (const TensorInfo& info : result_->tensors()) {
    EXPECT_EQ(map.value(info.name, ""), info.shard) << info.name;
    total += result_->read(info.name)->bytes.size();
  }
  EXPECT_EQ(index["metadata"]["total_size"].get<uint64_t>(), total);
  EXPECT_EQ(report_->output_bytes, total);
  EXPECT_TRUE(result_->warnings().empty());
}

TEST_F(DemoConversion, ShardsAreNumberedAndKeepToTheirSize) {
  const auto num_shards = static_cast<size_t>(report_->num_shards);
  EXPECT_GE(num_shards, 5u);
  for (size_t i = 1; i <= num_shards; ++i) {
    char name[64];
    (void)std::snprintf(name, sizeof name, "model-%05zu-of-%05zu.safetensors", i, num_shards);
    ASSERT_TRUE(std::filesystem::exists(out() / name)) << name;
    EXPECT_LE(std::filesystem::file_size(out() / name), 9'000'000u + 200'000u) << name;
  }
}

TEST_F(DemoConversion, AllTensorsOfALinearLieInOneShard) {
  for (const TensorInfo& info : result_->tensors()) {
    if (!info.name.ends_with(".weight_scale")) continue;
    const std::string weight = info.name.substr(0, info.name.size() - 6);
    EXPECT_EQ(info.shard, result_->find(weight)->shard);
    EXPECT_EQ(info.shard, result_->find(info.name + "_2")->shard);
  }
}

TEST_F(DemoConversion, GateAndUpShareTheirGlobalScale) {
  int pairs = 0;
  for (const TensorInfo& info : result_->tensors()) {
    constexpr std::string_view kGate = "gate_proj.weight_scale_2";
    if (!info.name.ends_with(kGate)) continue;
    const std::string up =
        info.name.substr(0, info.name.size() - kGate.size()) + "up_proj.weight_scale_2";
    EXPECT_EQ(scalar_bits(*result_, info.name), scalar_bits(*result_, up)) << info.name;
    ++pairs;
  }
  EXPECT_EQ(pairs, 1 + 3 * 17);
}

TEST_F(DemoConversion, HfQuantConfigSaysWhatWasDone) {
  const auto config = json_file(out() / "hf_quant_config.json");
  const auto& quantization = config["quantization"];
  EXPECT_EQ(quantization["quant_algo"], "NVFP4");
  EXPECT_EQ(quantization["kv_cache_quant_algo"], "FP8");
  EXPECT_EQ(quantization["group_size"], 16);
  const auto& excluded = quantization["exclude_modules"];
  ASSERT_EQ(excluded.size(), 1u + 4 * 4 + 1);
  EXPECT_EQ(excluded[0], "lm_head");
  EXPECT_EQ(excluded[1], "model.layers.0.self_attn.kv_a_proj_with_mqa");
  EXPECT_EQ(excluded[4], "model.layers.0.self_attn.q_b_proj");
  EXPECT_EQ(excluded[17], "model.layers.4*");
  const auto read = load_quant_config(out(), true).value();
  EXPECT_EQ(read.algo, QuantAlgo::kNvfp4);
  EXPECT_TRUE(read.warnings.empty());
  for (const TensorInfo& info : result_->tensors()) {
    if (!info.name.ends_with("proj.weight") && !info.name.ends_with("with_mqa.weight")) continue;
    const std::string module = info.name.substr(0, info.name.size() - 7);
    EXPECT_EQ(is_excluded(read, module), info.dtype != DType::kU8) << module;
  }
}

TEST_F(DemoConversion, ConfigJsonChangesOnlyItsQuantizationConfig) {
  auto before = json_file(demo_source() / "config.json");
  auto after = json_file(out() / "config.json");
  const auto quantization = after["quantization_config"];
  EXPECT_EQ(quantization["quant_method"], "modelopt");
  EXPECT_EQ(quantization["quant_algo"], "NVFP4");
  EXPECT_EQ(quantization["ignore"],
            json_file(out() / "hf_quant_config.json")["quantization"]["exclude_modules"]);
  const auto& group = quantization["config_groups"]["group_0"];
  for (const char* operand : {"weights", "input_activations"}) {
    EXPECT_EQ(group[operand]["num_bits"], 4);
    EXPECT_EQ(group[operand]["type"], "float");
    EXPECT_EQ(group[operand]["group_size"], 16);
    EXPECT_EQ(group[operand]["dynamic"], false);
  }
  EXPECT_EQ(group["targets"], nlohmann::ordered_json::array({"Linear"}));
  EXPECT_EQ(quantization["kv_cache_scheme"]["num_bits"], 8);
  before.erase("quantization_config");
  after.erase("quantization_config");
  EXPECT_EQ(after.dump(), before.dump());
}

TEST_F(DemoConversion, TokenizerAndGenerationSettingsAreCopied) {
  for (const char* name : {"tokenizer.json", "tokenizer_config.json", "generation_config.json"}) {
    EXPECT_EQ(json_file(out() / name), json_file(demo_source() / name)) << name;
  }
}

TEST_F(DemoConversion, DryRunToldTheSameSizesBeforehand) {
  QuantizeOptions options;
  options.shard_bytes = 9'000'000;
  options.dry_run = true;
  const auto planned = quantize_checkpoint(demo_source(), *folder_ / "dry", options).value();
  EXPECT_FALSE(std::filesystem::exists(*folder_ / "dry"));
  EXPECT_EQ(planned.output_bytes, report_->output_bytes);
  EXPECT_EQ(planned.num_shards, report_->num_shards);
  uint64_t on_disk = 0;
  for (const auto& entry : std::filesystem::directory_iterator(out())) on_disk += entry.file_size();
  EXPECT_GE(planned.needed_disk_bytes, on_disk);
  EXPECT_LE(planned.needed_disk_bytes, on_disk + 400'000);
}

TEST_F(DemoConversion, ThreadsAndShardsDoNotChangeABit) {
  QuantizeOptions options;
  options.threads = 7;
  ASSERT_TRUE(quantize_checkpoint(demo_source(), *folder_ / "one-shard", options).has_value());
  const auto other = SafetensorsSource::open(*folder_ / "one-shard").value();
  ASSERT_EQ(other->tensors().size(), result_->tensors().size());
  for (const TensorInfo& info : result_->tensors()) {
    ASSERT_EQ(tensor_bytes_of(*other, info.name), tensor_bytes_of(*result_, info.name))
        << info.name;
  }
}

// tests/golden/demo/nvfp4_modes.json: the same matrices by an independent implementation in Python,
// made by tools/golden/make_nvfp4_modes.py.
class DemoModes : public ::testing::TestWithParam<Nvfp4Mode> {};

double squared_error(const CheckpointSource& source, const CheckpointSource& result,
                     const std::string& module, const nlohmann::ordered_json& rows) {
  const Shape shape = source.find(module + ".weight")->shape;
  const auto original = SourceRows::open(source, module, shape[0], shape[1]).value();
  const auto quantized = SourceRows::open(result, module, shape[0], shape[1]).value();
  std::vector<float> a(static_cast<size_t>(shape[1]));
  std::vector<float> b(a.size());
  double error = 0;
  for (const int64_t row : rows) {
    EXPECT_TRUE(original.read(row, row + 1, a.data()).has_value());
    EXPECT_TRUE(quantized.read(row, row + 1, b.data()).has_value());
    for (size_t i = 0; i < a.size(); ++i) {
      const double difference = double{a[i]} - double{b[i]};
      error += difference * difference;
    }
  }
  return error;
}

TEST_P(DemoModes, EveryTensorAgreesWithTheIndependentImplementation) {
  const TemporaryFolder folder;
  QuantizeOptions options;
  options.algorithm.mode = GetParam();
  ASSERT_TRUE(quantize_checkpoint(demo_source(), folder / "out", options).has_value());
  const auto source = SafetensorsSource::open(demo_source()).value();
  const auto result = SafetensorsSource::open(folder / "out").value();
  const auto golden = json_file(NIBBLE_SOURCE_DIR "/tests/golden/demo/nvfp4_modes.json");
  ASSERT_EQ(golden.size(), 160u);
  for (const auto& [name, modes] : golden.items()) {
    SCOPED_TRACE(name);
    const auto& expected = modes[options.algorithm.name()];
    if (GetParam() == Nvfp4Mode::kMse) {
      const std::string module = name.substr(0, name.size() - 7);
      EXPECT_NEAR(squared_error(*source, *result, module, expected["rows"]),
                  expected["squared_error"], 1e-9);
      continue;
    }
    EXPECT_EQ(sha256(tensor_bytes_of(*result, name)), expected["weight"]);
    EXPECT_EQ(sha256(tensor_bytes_of(*result, name + "_scale")), expected["weight_scale"]);
    EXPECT_EQ(scalar_bits(*result, name + "_scale_2"), expected["weight_scale_2"]);
  }
}

INSTANTIATE_TEST_SUITE_P(All, DemoModes,
                         ::testing::Values(Nvfp4Mode::kMax, Nvfp4Mode::kFourOverSix,
                                           Nvfp4Mode::kMse));

}  // namespace
}  // namespace nibble
