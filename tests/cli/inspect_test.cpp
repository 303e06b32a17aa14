#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "nibble/checkpoint/json.h"
#include "tests/checkpoint/test_configs.h"
#include "tests/checkpoint/test_files.h"
#include "tests/cli/run_program.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;
using testing::ProgramRun;
using testing::run_nibble;
using testing::TempFolder;

TEST(InspectCommand, FindsTheDemoCheckpointInOrder) {
  const ProgramRun run = run_nibble({"inspect", "demo"});
  EXPECT_EQ(run.exit_code, 0) << run.err;
  EXPECT_THAT(run.out, HasSubstr("parameters    30,893,120 "));
  EXPECT_THAT(run.out, HasSubstr("problems: none"));
  EXPECT_THAT(run.out, HasSubstr("every scale, FP8 code, norm and bias checked"));
  EXPECT_THAT(run.out, HasSubstr("model.layers.{1-4}.mlp.experts.{0-15}.up_proj.weight  "));
}

TEST(InspectCommand, PrintsJsonThatSaysTheSame) {
  const ProgramRun run = run_nibble({"inspect", "--json", NIBBLE_SOURCE_DIR "/models/demo"});
  EXPECT_EQ(run.exit_code, 0) << run.err;
  const auto json = parse_json(run.out, "output");
  ASSERT_TRUE(json) << json.error().message;
  EXPECT_EQ(*json->find("totals")->find("parameters")->as_integer(), 34'038'848);
  EXPECT_EQ(*json->find("totals")->find("tensors")->as_integer(), 501);
  EXPECT_EQ(*json->find("config")->find("n_routed_experts")->as_integer(), 16);
  EXPECT_TRUE(json->find("problems")->as_array()->empty());
  EXPECT_EQ(json->find("files")->as_array()->size(), 4U);
}

TEST(InspectCommand, ListsEveryTensorOnRequest) {
  const ProgramRun run = run_nibble({"inspect", "demo", "--tensors"});
  EXPECT_THAT(run.out, HasSubstr("model.layers.3.mlp.experts.11.up_proj.weight_scale_inv"));
  EXPECT_THAT(run.out, HasSubstr("model-00003-of-00004.safetensors"));
}

TEST(InspectCommand, ShowsOneTensor) {
  const ProgramRun run = run_nibble({"inspect", "demo", "--tensor", "model.norm.weight", "--json"});
  EXPECT_EQ(run.exit_code, 0) << run.err;
  const auto json = parse_json(run.out, "output");
  ASSERT_TRUE(json) << json.error().message;
  EXPECT_EQ(*json->find("shape")->as_string(), "[384]");
  EXPECT_EQ(*json->find("nans")->as_integer(), 0);
  const ProgramRun typo = run_nibble({"inspect", "demo", "--tensor", "model.norm.wieght"});
  EXPECT_EQ(typo.exit_code, 1);
  EXPECT_THAT(typo.err, HasSubstr("did you mean 'model.norm.weight'?"));
}

TEST(InspectCommand, ListsEveryProblemAndExitsWithOne) {
  const TempFolder folder;
  testing::write_checkpoint(folder.path(), testing::kTinyConfig, CheckpointLayout::kNvfp4V2);
  testing::patch_tensor(folder / "model.safetensors", "model.layers.0.mlp.up_proj.weight_scale", 0,
                        "\x7f");
  testing::patch_tensor(folder / "model.safetensors",
                        "model.layers.1.mlp.experts.0.up_proj.weight_scale", 0, "\xff");
  const ProgramRun run = run_nibble({"inspect", folder.path().string(), "-q"});
  EXPECT_EQ(run.exit_code, 1);
  EXPECT_THAT(run.out, HasSubstr("problems (2):"));
  EXPECT_THAT(run.out, HasSubstr("model.layers.0.mlp.up_proj.weight_scale in model.safetensors "
                                 "holds the code 0x7f (NaN) at row 0, column 0"));
  EXPECT_EQ(run.err, "");
}

TEST(InspectCommand, WorksOnFoldersThatAreEmptyTruncatedOrMissing) {
  const TempFolder folder;
  const ProgramRun empty = run_nibble({"inspect", folder.path().string()});
  EXPECT_EQ(empty.exit_code, 1);
  EXPECT_THAT(empty.out, HasSubstr("has no *.safetensors files"));

  testing::write_checkpoint(folder.path(), testing::kTinyConfig, CheckpointLayout::kFp8);
  const auto size = std::filesystem::file_size(folder / "model.safetensors");
  std::filesystem::resize_file(folder / "model.safetensors", size - 1);
  const ProgramRun truncated = run_nibble({"inspect", folder.path().string()});
  EXPECT_EQ(truncated.exit_code, 1);
  EXPECT_THAT(truncated.out, HasSubstr("model.safetensors: truncated: its tensors need"));

  const ProgramRun missing = run_nibble({"inspect", (folder / "nothing").string()});
  EXPECT_EQ(missing.exit_code, 1);
  EXPECT_THAT(missing.err, HasSubstr("nothing does not exist"));
}

TEST(InspectCommand, PrintsNoControlCharactersFromFiles) {
  const TempFolder folder;
  testing::write_tensors(folder / "x.safetensors", {{"a\x1b[31m\xc2\x9b", DType::kU8, {1}, {}}});
  const ProgramRun run = run_nibble({"inspect", (folder / "x.safetensors").string()});
  EXPECT_EQ(run.exit_code, 0) << run.err;
  EXPECT_THAT(run.out, HasSubstr("a\\x1b[31m\\xc2\\x9b"));
  EXPECT_EQ(run.out.find('\x1b'), std::string::npos);
}

}  // namespace
}  // namespace nibble
