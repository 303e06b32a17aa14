#include "nibble/checkpoint/inspection.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "nibble/checkpoint/json.h"
#include "nibble/checkpoint/name_patterns.h"
#include "tests/checkpoint/test_configs.h"
#include "tests/checkpoint/test_files.h"

namespace nibble {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::patch_tensor;
using testing::TempFolder;
using testing::write_file;

Inspection inspect(const std::filesystem::path& path,
                   CheckValues check_values = CheckValues::kAuto) {
  auto inspection = inspect_checkpoint(path, check_values, false);
  EXPECT_TRUE(inspection) << inspection.error().message;
  return *std::move(inspection);
}

// A folder with the tiny config's weights in some layout.
class TinyCheckpoint {
 public:
  explicit TinyCheckpoint(CheckpointLayout layout, std::string_view config = testing::kTinyConfig) {
    testing::write_checkpoint(folder_.path(), config, layout);
  }
  const std::filesystem::path& path() const { return folder_.path(); }
  std::filesystem::path file() const { return folder_ / "model.safetensors"; }
  std::filesystem::path operator/(std::string_view name) const { return folder_ / name; }

 private:
  TempFolder folder_;
};

// The same file without the tensors that `drop` holds for, and with `extra`, all zeros.
void rewrite(const TinyCheckpoint& checkpoint, const std::function<bool(const std::string&)>& drop,
             const std::vector<TensorInfo>& extra = {}) {
  const auto source = *SafetensorsSource::open(checkpoint.path());
  std::vector<TensorInfo> tensors = extra;
  for (const TensorInfo& info : source->tensors()) {
    if (!drop(info.name)) tensors.push_back(info);
  }
  const auto new_path = checkpoint / "new";
  auto writer = SafetensorsWriter::create(new_path, tensors);
  ASSERT_TRUE(writer) << writer.error().message;
  for (const TensorInfo& info : tensors) {
    const std::vector<std::byte> zeros(
        static_cast<size_t>(info.shape.num_elements() * dtype_size(info.dtype)));
    const auto view = source->read(info.name);
    const bool keep = view && !drop(info.name);
    ASSERT_TRUE(writer->write(info.name, keep ? view->bytes : std::span(zeros)));
  }
  ASSERT_TRUE(writer->commit());
  std::filesystem::rename(new_path, checkpoint.file());
}

TEST(Inspection, FindsNoProblemInTheDemoCheckpoint) {
  const Inspection demo = inspect(NIBBLE_SOURCE_DIR "/models/demo");
  EXPECT_THAT(demo.problems, IsEmpty());
  EXPECT_THAT(demo.warnings, IsEmpty());
  EXPECT_TRUE(demo.values_checked);
  // 30.9 million, as its training script counts; the MTP layer's copies are stored beside that.
  EXPECT_EQ(demo.num_copied_parameters, 2 * 4096 * 384);
  EXPECT_EQ(demo.total.num_parameters - demo.num_copied_parameters, 30'893'120);
  EXPECT_EQ(demo.total.num_bytes, 40'665'924);  // total_size of its index
  EXPECT_EQ(demo.quant->algo, QuantAlgo::kFp8Block);
  const auto& experts = demo.classes[static_cast<size_t>(ModuleClass::kRoutedExperts)];
  EXPECT_EQ(experts.num_weights, 3 * 16 * 3);
  EXPECT_EQ(experts.num_parameters, 3 * 16 * 3 * 256 * 384);
}

TEST(Inspection, CountsTheSameParametersInEveryLayout) {
  const int64_t parameters =
      num_parameters(model_tensors(*parse_config(testing::kTinyConfig, "x")));
  for (const auto layout : {CheckpointLayout::kBf16, CheckpointLayout::kFp8,
                            CheckpointLayout::kNvfp4V1, CheckpointLayout::kNvfp4V2}) {
    const TinyCheckpoint checkpoint(layout);
    const Inspection inspection = inspect(checkpoint.path());
    EXPECT_THAT(inspection.problems, IsEmpty());
    EXPECT_EQ(inspection.total.num_parameters, parameters);
    EXPECT_EQ(inspection.other.num_weights, 0);
  }
}

TEST(Inspection, TellsThePrecisionOfEachClass) {
  const TinyCheckpoint checkpoint(CheckpointLayout::kNvfp4V2);
  const Inspection inspection = inspect(checkpoint.path());
  const auto formats = [&](ModuleClass module_class) {
    return inspection.classes[static_cast<size_t>(module_class)].formats;
  };
  using Formats = std::map<std::string, int64_t>;
  EXPECT_EQ(formats(ModuleClass::kOProj), (Formats{{"NVFP4", 2}}));
  EXPECT_EQ(formats(ModuleClass::kQAProj), (Formats{{"BF16", 2}}));
  EXPECT_EQ(formats(ModuleClass::kDenseMlp), (Formats{{"NVFP4", 3}}));
  EXPECT_EQ(formats(ModuleClass::kRoutedExperts), (Formats{{"NVFP4", 12}}));
  EXPECT_EQ(formats(ModuleClass::kRouter), (Formats{{"BF16", 1}, {"F32", 1}}));
  EXPECT_EQ(formats(ModuleClass::kNorm), (Formats{{"BF16", 9}}));
}

TEST(Inspection, ListsMissingUnexpectedAndMisshapenTensors) {
  const TinyCheckpoint checkpoint(CheckpointLayout::kBf16);
  rewrite(checkpoint,
          [](const std::string& name) {
            return name.find("layers.1.mlp.experts.1.") != std::string::npos ||
                   name.find("layers.1.mlp.experts.3.") != std::string::npos ||
                   name == "model.norm.weight" || name == "model.layers.0.input_layernorm.weight";
          },
          {{"model.layers.9.mlp.up_proj.weight", DType::kBf16, {2, 2}, {}},
           {"model.layers.0.input_layernorm.weight", DType::kF32, {31}, {}}});
  const Inspection inspection = inspect(checkpoint.path());
  EXPECT_THAT(
      inspection.problems,
      ElementsAre("model.layers.0.input_layernorm.weight in model.safetensors has shape [31], "
                  "expected [32]",
                  "missing: model.layers.1.mlp.experts.{1,3}.down_proj.weight (2 tensors)",
                  "missing: model.layers.1.mlp.experts.{1,3}.gate_proj.weight (2 tensors)",
                  "missing: model.layers.1.mlp.experts.{1,3}.up_proj.weight (2 tensors)",
                  "missing: model.norm.weight", "unexpected: model.layers.9.mlp.up_proj.weight"));
}

// What a lost shard leaves: weights without scales and scales without weights. One line for each
// kind of lost tensor, and nothing that is there is called unexpected.
TEST(Inspection, SummarizesWeightsAndScalesThatLostEachOther) {
  for (const auto& [layout, lost] : {std::pair(CheckpointLayout::kFp8, ".weight_scale_inv"),
                                     std::pair(CheckpointLayout::kNvfp4V2, ".weight_scale")}) {
    const TinyCheckpoint checkpoint(layout);
    rewrite(checkpoint, [lost = lost](const std::string& name) {
      return name == "model.layers.0.mlp.up_proj.weight" ||
             (name.starts_with("model.layers.1.mlp.experts.") &&
              name.ends_with(std::string(".down_proj") + lost));
    });
    const Inspection inspection = inspect(checkpoint.path());
    EXPECT_THAT(inspection.problems,
                ::testing::UnorderedElementsAre(
                    "missing: model.layers.0.mlp.up_proj.weight",
                    std::string("missing: model.layers.1.mlp.experts.{0-3}.down_proj") + lost +
                        " (4 tensors)"));
  }
}

TEST(Inspection, FindsBadValuesUnlessToldNotToLook) {
  const TinyCheckpoint checkpoint(CheckpointLayout::kNvfp4V2);
  patch_tensor(checkpoint.file(), "model.layers.1.mlp.experts.2.up_proj.weight_scale", 3, "\x7f");
  patch_tensor(checkpoint.file(), "model.layers.0.self_attn.o_proj.weight_scale_2", 0,
               std::string(4, '\0'));
  const Inspection inspection = inspect(checkpoint.path());
  EXPECT_TRUE(inspection.values_checked);
  EXPECT_THAT(inspection.problems,
              ElementsAre(HasSubstr("o_proj.weight_scale_2 in model.safetensors is 0"),
                          HasSubstr("0x7f (NaN) at row 1, column 1")));
  const Inspection headers = inspect(checkpoint.path(), CheckValues::kNo);
  EXPECT_FALSE(headers.values_checked);
  EXPECT_THAT(headers.problems, IsEmpty());
}

TEST(Inspection, FindsNormsThatAreNotFinite) {
  const TinyCheckpoint checkpoint(CheckpointLayout::kBf16);
  patch_tensor(checkpoint.file(), "model.layers.1.input_layernorm.weight", 2 * 7, "\x80\x7f");
  EXPECT_THAT(inspect(checkpoint.path()).problems,
              ElementsAre("model.layers.1.input_layernorm.weight in model.safetensors holds inf at "
                          "7, expected finite numbers"));
  EXPECT_THAT(inspect(checkpoint.path(), CheckValues::kNo).problems, IsEmpty());
}

TEST(Inspection, WarnsOfUnequalScalesOfGateAndUp) {
  const TinyCheckpoint checkpoint(CheckpointLayout::kNvfp4V2);
  const float other = 0.125F;
  patch_tensor(checkpoint.file(), "model.layers.0.mlp.up_proj.weight_scale_2", 0,
               {reinterpret_cast<const char*>(&other), sizeof other});
  const Inspection inspection = inspect(checkpoint.path());
  EXPECT_THAT(inspection.problems, IsEmpty());
  EXPECT_THAT(inspection.warnings,
              ::testing::Contains(HasSubstr("model.layers.0.mlp.gate_proj has another")));
}

TEST(Inspection, RefusesKvScalesOtherThanOne) {
  const TinyCheckpoint checkpoint(CheckpointLayout::kNvfp4V1);
  const float other = 0.5F;
  patch_tensor(checkpoint.file(), "model.layers.1.self_attn.v_proj.v_scale", 0,
               {reinterpret_cast<const char*>(&other), sizeof other});
  EXPECT_THAT(inspect(checkpoint.path()).problems,
              ElementsAre("model.layers.1.self_attn.v_proj.v_scale is 0.5; only 1 is supported for "
                          "the KV cache"));
}

TEST(Inspection, TellsWhereTheExclusionListAndTheWeightsDisagree) {
  const TinyCheckpoint checkpoint(CheckpointLayout::kNvfp4V2);
  write_file(checkpoint / "hf_quant_config.json",
             R"({"quantization":{"quant_algo":"NVFP4","group_size":16,"exclude_modules":
                 ["lm_head","model.layers.*.self_attn.[qk]*","model.layers.0.mlp*"]}})");
  EXPECT_THAT(inspect(checkpoint.path()).problems,
              ::testing::IsSupersetOf(
                  {HasSubstr("model.layers.0.mlp.gate_proj is NVFP4, although "
                             "hf_quant_config.json excludes it"),
                   HasSubstr("model.layers.2.mlp.experts.{0-3}.up_proj (4 tensors) is not NVFP4, "
                             "although hf_quant_config.json does not exclude it")}));
  write_file(checkpoint / "hf_quant_config.json",
             R"({"quantization":{"quant_algo":"NVFP4","group_size":16,"exclude_modules":
                 ["lm_head","model.layers.*.self_attn.[qk]*","model.layers.2*"]}})");
  EXPECT_THAT(inspect(checkpoint.path()).problems, IsEmpty());
}

TEST(Inspection, SaysOnceThatTheMtpLayerIsMissing) {
  const TinyCheckpoint checkpoint(CheckpointLayout::kFp8);
  rewrite(checkpoint, [](const std::string& name) { return name.starts_with("model.layers.2."); });
  EXPECT_THAT(inspect(checkpoint.path()).problems,
              ElementsAre(HasSubstr("the MTP layer model.layers.2 is missing")));
}

TEST(Inspection, DoesWithoutTheCopiesInTheMtpLayer) {
  const TinyCheckpoint checkpoint(CheckpointLayout::kFp8);
  rewrite(checkpoint, [](const std::string& name) {
    return name == "model.layers.2.embed_tokens.weight" ||
           name == "model.layers.2.shared_head.head.weight";
  });
  EXPECT_THAT(inspect(checkpoint.path()).problems, IsEmpty());
}

TEST(Inspection, WarnsOfAnMtpLayerThatTheConfigDoesNotUse) {
  const TinyCheckpoint checkpoint(CheckpointLayout::kBf16);
  JsonValue config = *parse_json(testing::kTinyConfig, "x");
  config.set("num_nextn_predict_layers", JsonValue::integer(0));
  write_file(checkpoint / "config.json", to_json(config));
  const Inspection inspection = inspect(checkpoint.path());
  EXPECT_THAT(inspection.problems, IsEmpty());
  EXPECT_THAT(inspection.warnings,
              ::testing::Contains(HasSubstr("not used: model.layers.2.eh_proj.weight")));
}

TEST(Inspection, ShowsWhatItCanOfABrokenCheckpoint) {
  const TempFolder empty;
  EXPECT_THAT(inspect(empty.path()).problems,
              ElementsAre(HasSubstr("has no *.safetensors files"), HasSubstr("config.json")));

  const TinyCheckpoint checkpoint(CheckpointLayout::kFp8);
  write_file(checkpoint / "config.json", "{");
  const Inspection inspection = inspect(checkpoint.path());
  EXPECT_FALSE(inspection.config);
  EXPECT_EQ(inspection.problems.size(), 2U);  // the config, and its quantization_config
  EXPECT_GT(inspection.classes[static_cast<size_t>(ModuleClass::kMtp)].num_weights, 0);

  EXPECT_EQ(inspect_checkpoint(empty / "nothing", CheckValues::kNo, false).error().code,
            ErrorCode::kNotFound);
}

// Every byte of a header changed: the inspection ends with findings, never a crash.
TEST(Inspection, SurvivesChangedBytesAnywhereInTheHeader) {
  const TinyCheckpoint checkpoint(CheckpointLayout::kNvfp4V2);
  const std::string file = testing::read_file(checkpoint.file());
  const size_t header_end = 8 + static_cast<unsigned char>(file[0]) +
                            256U * static_cast<unsigned char>(file[1]) +
                            65536U * static_cast<unsigned char>(file[2]);
  size_t refused = 0;
  size_t trials = 0;
  for (size_t at = 0; at < header_end; at += 97) {
    std::string changed = file;
    changed[at] = static_cast<char>(changed[at] ^ 1);
    write_file(checkpoint.file(), changed);
    ++trials;
    if (!inspect(checkpoint.path()).problems.empty()) ++refused;
  }
  // All but the padding, and "format":"pt", matter.
  EXPECT_GE(refused + 2, trials);
}

TEST(NamePattern, TellsRangesWithGaps) {
  EXPECT_THAT(summarize_names({"a.1.b", "a.2.b", "a.4.b", "c", "a.10.b", "a.x.b"}),
              ElementsAre("a.{1-2,4,10}.b (4 tensors)", "a.x.b", "c"));
  EXPECT_THAT(summarize_names({}), IsEmpty());
}

}  // namespace
}  // namespace nibble
