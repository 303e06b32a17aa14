// What a conversion refuses, and that it leaves nothing behind when it does.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/file.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <thread>

#include "nibble/numeric/nvfp4.h"
#include "nibble/quantize/output_directory.h"
#include "nibble/quantize/quantize.h"
#include "tests/base/temporary_folder.h"
#include "tests/quantize/test_checkpoint.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using testing::entries_in;
using ::testing::HasSubstr;
using testing::TemporaryFolder;
using testing::TestCheckpoint;
using testing::TestTensor;
using testing::tiny_checkpoint;

constexpr const char* kExpert = "model.layers.1.mlp.experts.3.up_proj";
constexpr const char* kQuantizedWeight = "model.layers.1.mlp.experts.3.up_proj.weight";
constexpr const char* kQuantizedScale = "model.layers.1.mlp.experts.3.up_proj.weight_scale_inv";
constexpr const char* kKeptWeight = "model.layers.1.self_attn.q_a_proj.weight";

// Converts `checkpoint`, expects a refusal and an empty output folder, and gives the message.
Error refusal(const TestCheckpoint& checkpoint, const QuantizeOptions& options = {}) {
  const TemporaryFolder folder;
  fs::create_directory(folder / "results");
  checkpoint.write(folder / "in");
  const auto report = quantize_checkpoint(folder / "in", folder / "results" / "out", options);
  EXPECT_EQ(entries_in(folder / "results"), 0);
  if (report) {
    ADD_FAILURE() << "not refused";
    return {ErrorCode::kCancelled, ""};
  }
  return report.error();
}

TEST(QuantizeTiny, AWholeTinyModelIsConverted) {
  const TemporaryFolder folder;
  tiny_checkpoint().write(folder / "in");
  const auto report = quantize_checkpoint(folder / "in", folder / "out", {});
  ASSERT_TRUE(report.has_value()) << report.error().message;
  // o_proj twice, one dense MLP, four experts and a shared one.
  EXPECT_EQ(report->num_quantized_linears, 2 + 3 + 5 * 3);
  EXPECT_EQ(folder.num_entries(), 2);
}

TEST(QuantizeTiny, ABf16SourceOfTheSameValuesGivesTheSameBytes) {
  const TemporaryFolder folder;
  TestCheckpoint fp8 = tiny_checkpoint();
  TestCheckpoint bf16 = fp8;
  for (auto& [name, tensor] : fp8.tensors) {
    if (tensor.dtype != DType::kF8E4m3) continue;
    // One 128 x 128 block covers each matrix of the tiny model.
    const float scale = fp8.tensors.at(name + "_scale_inv").data<float>()[0];
    TestTensor rounded{DType::kBf16, tensor.shape, {}};
    rounded.bytes.resize(2 * tensor.bytes.size());
    for (size_t i = 0; i < tensor.bytes.size(); ++i) {
      rounded.data<uint16_t>()[i] = float_to_bf16(kE4m3Values[tensor.data<uint8_t>()[i]] * scale);
    }
    bf16.tensors.at(name) = rounded;
    bf16.tensors.erase(name + "_scale_inv");
  }
  fp8.write(folder / "fp8");
  bf16.write(folder / "bf16");
  ASSERT_TRUE(quantize_checkpoint(folder / "fp8", folder / "a", {}).has_value());
  const auto report = quantize_checkpoint(folder / "bf16", folder / "b", {});
  ASSERT_TRUE(report.has_value()) << report.error().message;
  EXPECT_EQ(report->source_format, "BF16");
  const auto a = SafetensorsSource::open(folder / "a").value();
  const auto b = SafetensorsSource::open(folder / "b").value();
  ASSERT_EQ(a->tensors().size(), b->tensors().size());
  for (const TensorInfo& info : a->tensors()) {
    EXPECT_EQ(testing::tensor_bytes_of(*a, info.name), testing::tensor_bytes_of(*b, info.name))
        << info.name;
  }
}

TEST(QuantizeTiny, AnAllZeroMatrixGetsUnitScalesAndZeroCodes) {
  const TemporaryFolder folder;
  TestCheckpoint checkpoint = tiny_checkpoint();
  for (const char* projection : {"gate_proj", "up_proj"}) {
    const std::string module = std::string("model.layers.0.mlp.") + projection;
    auto& bytes = checkpoint.tensors.at(module + ".weight").bytes;
    std::fill(bytes.begin(), bytes.end(), std::byte{0});
  }
  checkpoint.write(folder / "in");
  ASSERT_TRUE(quantize_checkpoint(folder / "in", folder / "out", {}).has_value());
  const auto out = SafetensorsSource::open(folder / "out").value();
  EXPECT_THAT(testing::tensor_bytes_of(*out, "model.layers.0.mlp.gate_proj.weight"),
              ::testing::Each(std::byte{0}));
  EXPECT_THAT(testing::tensor_bytes_of(*out, "model.layers.0.mlp.gate_proj.weight_scale"),
              ::testing::Each(std::byte{0x38}));
}

TEST(QuantizeTiny, TheMlpSchemeLeavesAttentionInBf16) {
  const TemporaryFolder folder;
  tiny_checkpoint().write(folder / "in");
  QuantizeOptions options;
  options.recipe.scheme = QuantizeScheme::kNvfp4Mlp;
  ASSERT_TRUE(quantize_checkpoint(folder / "in", folder / "out", options).has_value());
  const auto out = SafetensorsSource::open(folder / "out").value();
  EXPECT_EQ(out->find("model.layers.0.self_attn.o_proj.weight")->dtype, DType::kBf16);
  EXPECT_EQ(out->find("model.layers.0.mlp.gate_proj.weight")->dtype, DType::kU8);
}

TEST(QuantizeRefuses, NanWeights) {
  TestCheckpoint fp8 = tiny_checkpoint();
  fp8.tensors.at(kQuantizedWeight).data<uint8_t>()[37] = 0x7f;
  EXPECT_THAT(refusal(fp8).message, HasSubstr(kQuantizedWeight));
  fp8 = tiny_checkpoint();
  fp8.tensors.at(kKeptWeight).data<uint8_t>()[5] = 0xff;
  EXPECT_THAT(refusal(fp8).message, HasSubstr("model.layers.1.self_attn.q_a_proj"));
  TestCheckpoint bf16 = tiny_checkpoint(CheckpointLayout::kBf16);
  bf16.tensors.at(kQuantizedWeight).data<uint16_t>()[37] = 0x7fc0;
  const Error error = refusal(bf16);
  EXPECT_THAT(error.message,
              AllOf(HasSubstr(kQuantizedWeight), HasSubstr("row 1"), HasSubstr("nan")));
}

TEST(QuantizeRefuses, CopiedMatricesThatAreNotFinite) {
  for (const char* name :
       {"model.embed_tokens.weight", "lm_head.weight", "model.layers.1.mlp.gate.weight"}) {
    TestCheckpoint checkpoint = tiny_checkpoint();
    checkpoint.tensors.at(name).data<uint16_t>()[21] = 0xff80;
    EXPECT_THAT(refusal(checkpoint).message, AllOf(HasSubstr(name), HasSubstr("-inf at 21")));
  }
}

TEST(QuantizeRefuses, NormsAndRouterBiasesThatAreNotFinite) {
  constexpr const char* kNorm = "model.layers.0.input_layernorm.weight";
  TestCheckpoint checkpoint = tiny_checkpoint();
  checkpoint.tensors.at(kNorm).data<uint16_t>()[3] = 0x7fc0;
  EXPECT_THAT(refusal(checkpoint).message, AllOf(HasSubstr(kNorm), HasSubstr("nan at 3")));
  constexpr const char* kBias = "model.layers.1.mlp.gate.e_score_correction_bias";
  checkpoint = tiny_checkpoint();
  checkpoint.tensors.at(kBias).data<float>()[1] = -HUGE_VALF;
  EXPECT_THAT(refusal(checkpoint).message, AllOf(HasSubstr(kBias), HasSubstr("-inf at 1")));
}

TEST(QuantizeRefuses, InfiniteWeights) {
  TestCheckpoint bf16 = tiny_checkpoint(CheckpointLayout::kBf16);
  bf16.tensors.at(kQuantizedWeight).data<uint16_t>()[0] = 0xff80;
  EXPECT_THAT(refusal(bf16).message, AllOf(HasSubstr(kQuantizedWeight), HasSubstr("inf")));
  TestCheckpoint fp8 = tiny_checkpoint();
  fp8.tensors.at(kQuantizedScale).data<float>()[0] = 3e38f;  // overflows in the product
  EXPECT_THAT(refusal(fp8).message, HasSubstr(kExpert));
}

TEST(QuantizeRefuses, ScalesThatAreNotPositiveAndFinite) {
  for (const float bad : {std::nanf(""), HUGE_VALF, -1.0f}) {
    TestCheckpoint fp8 = tiny_checkpoint();
    fp8.tensors.at(kQuantizedScale).data<float>()[0] = bad;
    EXPECT_THAT(refusal(fp8).message, HasSubstr(kQuantizedScale)) << bad;
  }
}

TEST(QuantizeRefuses, WrongShapes) {
  TestCheckpoint checkpoint = tiny_checkpoint();
  TestTensor& tensor = checkpoint.tensors.at(kQuantizedWeight);
  tensor.shape = Shape({tensor.shape[1], tensor.shape[0]});
  const Error error = refusal(checkpoint);
  EXPECT_EQ(error.code, ErrorCode::kCorrupt);
  EXPECT_THAT(error.message,
              AllOf(HasSubstr(kQuantizedWeight), HasSubstr("[32, 16]"), HasSubstr("[16, 32]")));

  checkpoint = tiny_checkpoint();
  TestTensor& scale = checkpoint.tensors.at(kQuantizedScale);
  scale.shape = Shape({1, 2});
  scale.bytes.resize(8);
  EXPECT_THAT(refusal(checkpoint).message, AllOf(HasSubstr(kQuantizedScale), HasSubstr("[1, 2]")));
}

TEST(QuantizeRefuses, MissingAndSurplusTensors) {
  TestCheckpoint missing = tiny_checkpoint();
  missing.tensors.erase(kQuantizedWeight);
  missing.tensors.erase(kQuantizedScale);
  Error error = refusal(missing);
  EXPECT_EQ(error.code, ErrorCode::kNotFound);
  EXPECT_THAT(error.message, HasSubstr(kQuantizedWeight));

  TestCheckpoint without_norm = tiny_checkpoint();
  without_norm.tensors.erase("model.norm.weight");
  EXPECT_THAT(refusal(without_norm).message, HasSubstr("model.norm.weight"));

  TestCheckpoint without_scale = tiny_checkpoint();
  without_scale.tensors.erase(kQuantizedScale);
  EXPECT_THAT(refusal(without_scale).message, HasSubstr(kQuantizedScale));

  TestCheckpoint orphan = tiny_checkpoint();
  orphan.tensors["model.layers.0.mlp.nothing.weight_scale_inv"] =
      orphan.tensors.at(kQuantizedScale);
  EXPECT_THAT(refusal(orphan).message, HasSubstr("nothing"));

  TestCheckpoint surplus = tiny_checkpoint();
  surplus.tensors["model.layers.1.mlp.experts.4.up_proj.weight"] =
      surplus.tensors.at(kQuantizedWeight);
  surplus.tensors["model.layers.1.mlp.experts.4.up_proj.weight_scale_inv"] =
      surplus.tensors.at(kQuantizedScale);
  EXPECT_THAT(refusal(surplus).message,
              AllOf(HasSubstr("experts.4"), HasSubstr("n_routed_experts")));
}

TEST(QuantizeRefuses, OtherTypes) {
  TestCheckpoint checkpoint = tiny_checkpoint(CheckpointLayout::kBf16);
  checkpoint.tensors.at(kQuantizedWeight).dtype = DType::kF16;
  const Error error = refusal(checkpoint);
  EXPECT_EQ(error.code, ErrorCode::kUnsupported);
  EXPECT_THAT(error.message, AllOf(HasSubstr(kQuantizedWeight), HasSubstr("F16")));
}

TEST(QuantizeRefuses, ColumnsThatAreNoMultipleOf16) {
  // moe_intermediate_size 24 makes down_proj [32, 24].
  TestCheckpoint checkpoint;
  const std::string from = "\"moe_intermediate_size\": 16";
  std::string config(testing::kTinyConfig);
  config.replace(config.find(from), from.size(), "\"moe_intermediate_size\": 24");
  checkpoint.config = config;
  const auto parsed = parse_config(config, "config.json").value();
  const auto stored = stored_tensors(parsed, CheckpointLayout::kBf16).value();
  for (const TensorInfo& info : stored) {
    TestTensor tensor{info.dtype, info.shape, {}};
    tensor.bytes.resize(static_cast<size_t>(info.shape.num_elements() * dtype_size(info.dtype)));
    checkpoint.tensors.emplace(info.name, tensor);
  }
  const Error error = refusal(checkpoint);
  EXPECT_THAT(error.message, AllOf(HasSubstr("down_proj"), HasSubstr("24"), HasSubstr("16")));
}

TEST(QuantizeRefuses, ASourceThatIsNvfp4Already) {
  const TemporaryFolder folder;
  tiny_checkpoint().write(folder / "in");
  ASSERT_TRUE(quantize_checkpoint(folder / "in", folder / "once", {}).has_value());
  const auto twice = quantize_checkpoint(folder / "once", folder / "twice", {});
  ASSERT_FALSE(twice.has_value());
  EXPECT_EQ(twice.error().code, ErrorCode::kUnsupported);
  EXPECT_FALSE(fs::exists(folder / "twice"));
}

TEST(QuantizeRefuses, ATruncatedShard) {
  const TemporaryFolder folder;
  tiny_checkpoint().write(folder / "in");
  const fs::path shard = folder / "in" / "model.safetensors";
  fs::resize_file(shard, fs::file_size(shard) - 1);
  const auto report = quantize_checkpoint(folder / "in", folder / "out", {});
  ASSERT_FALSE(report.has_value());
  EXPECT_EQ(report.error().code, ErrorCode::kCorrupt);
  EXPECT_THAT(report.error().message, HasSubstr("model.safetensors"));
  EXPECT_EQ(folder.num_entries(), 1);
}

TEST(QuantizeRefuses, SourcesThatAreNoCheckpoint) {
  const TemporaryFolder folder;
  EXPECT_EQ(quantize_checkpoint(folder / "none", folder / "out", {}).error().code,
            ErrorCode::kNotFound);
  fs::create_directory(folder / "empty");
  EXPECT_FALSE(quantize_checkpoint(folder / "empty", folder / "out", {}).has_value());
  tiny_checkpoint().write(folder / "no-config");
  fs::remove(folder / "no-config" / "config.json");
  EXPECT_THAT(quantize_checkpoint(folder / "no-config", folder / "out", {}).error().message,
              HasSubstr("config.json"));
}

TEST(QuantizeRefuses, OutputAndSourceInsideEachOther) {
  const TemporaryFolder folder;
  tiny_checkpoint().write(folder / "in");
  QuantizeOptions options;
  options.overwrite = true;
  fs::create_directory_symlink(folder / "in", folder / "link");
  for (const fs::path& out : {folder / "in", folder / "in" / "out", folder / "in" / ".." / "in",
                              folder / "link", folder / "link" / "out", folder.path()}) {
    const auto report = quantize_checkpoint(folder / "in", out, options);
    ASSERT_FALSE(report.has_value()) << out;
    EXPECT_EQ(report.error().code, ErrorCode::kInvalidArgument) << out;
  }
  EXPECT_EQ(entries_in(folder / "in"), 3);
}

TEST(QuantizeRefuses, AFolderWhoseNameOnlyStartsLikeTheSourcesIsFine) {
  const TemporaryFolder folder;
  tiny_checkpoint().write(folder / "in");
  EXPECT_TRUE(quantize_checkpoint(folder / "in", folder / "in-nvfp4", {}).has_value());
}

TEST(QuantizeRefuses, AnExistingOutputUnlessToldToOverwrite) {
  const TemporaryFolder folder;
  tiny_checkpoint().write(folder / "in");
  tiny_checkpoint(CheckpointLayout::kBf16, 2).write(folder / "out");
  std::ofstream(folder / "out" / "old-file") << "old";
  const auto refused = quantize_checkpoint(folder / "in", folder / "out", {});
  ASSERT_FALSE(refused.has_value());
  EXPECT_THAT(refused.error().message, HasSubstr("--overwrite"));
  EXPECT_TRUE(fs::exists(folder / "out" / "old-file"));

  QuantizeOptions options;
  options.overwrite = true;
  // A trailing slash is how shells complete folders.
  const fs::path with_slash = (folder / "out").string() + "/";
  const auto report = quantize_checkpoint(folder / "in", with_slash, options);
  ASSERT_TRUE(report.has_value()) << report.error().message;
  EXPECT_FALSE(fs::exists(folder / "out" / "old-file"));
  EXPECT_TRUE(fs::exists(folder / "out" / "hf_quant_config.json"));
  EXPECT_EQ(folder.num_entries(), 2);
}

TEST(QuantizeRefuses, AFailedOverwriteLeavesTheOldFolderAsItWas) {
  const TemporaryFolder folder;
  TestCheckpoint broken = tiny_checkpoint();
  broken.tensors.at(kQuantizedWeight).data<uint8_t>()[0] = 0x7f;
  broken.write(folder / "in");
  tiny_checkpoint(CheckpointLayout::kBf16, 2).write(folder / "out");
  QuantizeOptions options;
  options.overwrite = true;
  EXPECT_FALSE(quantize_checkpoint(folder / "in", folder / "out", options).has_value());
  EXPECT_TRUE(fs::exists(folder / "out" / "model.safetensors"));
  EXPECT_EQ(folder.num_entries(), 2);
}

TEST(QuantizeRefuses, ToOverwriteAFolderThatIsNoCheckpoint) {
  const TemporaryFolder folder;
  tiny_checkpoint().write(folder / "in");
  fs::create_directory(folder / "home");
  std::ofstream(folder / "home" / "letter.txt") << "dear";
  QuantizeOptions options;
  options.overwrite = true;
  EXPECT_FALSE(quantize_checkpoint(folder / "in", folder / "home", options).has_value());
  EXPECT_TRUE(fs::exists(folder / "home" / "letter.txt"));
  std::ofstream(folder / "file") << "x";
  EXPECT_FALSE(quantize_checkpoint(folder / "in", folder / "file", options).has_value());
}

// config.json alone is in many a project, and what lies in a folder below was not written by us.
TEST(QuantizeRefuses, ToOverwriteAFolderThatHoldsMoreThanACheckpoint) {
  const TemporaryFolder folder;
  tiny_checkpoint().write(folder / "in");
  QuantizeOptions options;
  options.overwrite = true;

  fs::create_directory(folder / "project");
  std::ofstream(folder / "project" / "config.json") << "{}";
  std::ofstream(folder / "project" / "main.c") << "int x;";
  const auto project = quantize_checkpoint(folder / "in", folder / "project", options);
  ASSERT_FALSE(project.has_value());
  EXPECT_THAT(project.error().message, HasSubstr("no *.safetensors"));
  EXPECT_TRUE(fs::exists(folder / "project" / "main.c"));

  tiny_checkpoint().write(folder / "models");
  tiny_checkpoint().write(folder / "models" / "other");
  const auto models = quantize_checkpoint(folder / "in", folder / "models", options);
  ASSERT_FALSE(models.has_value());
  EXPECT_THAT(models.error().message, HasSubstr("the folder other"));
  EXPECT_TRUE(fs::exists(folder / "models" / "other" / "config.json"));
}

TEST(QuantizeRefuses, AnOutputInAFolderThatIsMissing) {
  const TemporaryFolder folder;
  tiny_checkpoint().write(folder / "in");
  const auto report = quantize_checkpoint(folder / "in", folder / "no" / "out", {});
  ASSERT_FALSE(report.has_value());
  EXPECT_EQ(report.error().code, ErrorCode::kNotFound);
}

TEST(QuantizeRefuses, OptionsOutOfRange) {
  const TemporaryFolder folder;
  QuantizeOptions options;
  options.threads = -1;
  EXPECT_FALSE(quantize_checkpoint(folder / "in", folder / "out", options).has_value());
  options.threads = 1;
  options.shard_bytes = 0;
  EXPECT_FALSE(quantize_checkpoint(folder / "in", folder / "out", options).has_value());
}

// A small file system of its own; needs the right to mount.
class TinyDisk {
 public:
  TinyDisk(const fs::path& path, const char* options) : path_(path) {
    fs::create_directory(path);
    mounted_ = ::mount("tmpfs", path.c_str(), "tmpfs", 0, options) == 0;
  }
  ~TinyDisk() {
    if (mounted_) (void)::umount2(path_.c_str(), MNT_DETACH);
  }
  TinyDisk(const TinyDisk&) = delete;
  TinyDisk& operator=(const TinyDisk&) = delete;
  bool mounted() const { return mounted_; }

 private:
  fs::path path_;
  bool mounted_ = false;
};

TEST(QuantizeDiskFull, TooLittleRoomIsSeenBeforehand) {
  const TemporaryFolder folder;
  const TinyDisk disk(folder / "disk", "size=1M");
  if (!disk.mounted()) GTEST_SKIP() << "mounting a tmpfs is not permitted here";
  const auto report = quantize_checkpoint(testing::demo_source(), folder / "disk" / "out", {});
  ASSERT_FALSE(report.has_value());
  EXPECT_EQ(report.error().code, ErrorCode::kUnavailable);
  EXPECT_THAT(report.error().message, AllOf(HasSubstr("needs 44."), HasSubstr("1.0 MB are free")));
  EXPECT_EQ(entries_in(folder / "disk"), 0);
}

TEST(QuantizeDiskFull,
     ADiskThatFillsUpMeanwhileIsReportedWithTheFileAndTheWorkGoesOnWhenThereIsRoom) {
  const TemporaryFolder folder;
  const TinyDisk disk(folder / "disk", "size=46M");
  if (!disk.mounted()) GTEST_SKIP() << "mounting a tmpfs is not permitted here";
  // Someone else takes 20 MB of 46 as soon as the conversion has begun.
  std::atomic<bool> done{false};
  std::thread other([&] {
    while (!done && entries_in(folder / "disk") == 0) std::this_thread::yield();
    const int fd = ::open((folder / "disk" / "other").c_str(), O_CREAT | O_WRONLY, 0600);
    // Or what the conversion has left, where it has been faster.
    off_t size = 20'000'000;
    while (size > 0 && ::posix_fallocate(fd, 0, size) != 0) size /= 2;
    EXPECT_GT(size, 100'000);
    ::close(fd);
  });
  const auto report = quantize_checkpoint(testing::demo_source(), folder / "disk" / "out", {});
  done = true;
  other.join();
  ASSERT_FALSE(report.has_value());
  EXPECT_EQ(report.error().code, ErrorCode::kUnavailable);
  EXPECT_THAT(report.error().message,
              AllOf(HasSubstr("model-00001-of-00001.safetensors"), HasSubstr("No space left")));
  EXPECT_TRUE(fs::exists(folder / "disk" / "out.partial"));
  fs::remove(folder / "disk" / "other");
  const auto again = quantize_checkpoint(testing::demo_source(), folder / "disk" / "out", {});
  ASSERT_TRUE(again.has_value()) << again.error().message;
  EXPECT_TRUE(again->resumed);
  EXPECT_EQ(entries_in(folder / "disk"), 1);
}

// Bytes of a file.
std::string content(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

// A conversion that fails at its last layer for want of room: everything before is done.
class QuantizeResumes : public ::testing::Test {
 protected:
  QuantizeResumes() {
    options_.shard_bytes = 12'000;
    options_.threads = 1;
    tiny_checkpoint().write(folder_ / "in");
    EXPECT_TRUE(quantize_checkpoint(folder_ / "in", folder_ / "whole", options_).has_value());
  }
  // What a killed run leaves, put together from a whole one and its own journal: the last shard is
  // missing, and the one before it is not renamed yet.
  void leave_partial() {
    fs::create_directory(partial());
    const pid_t child = ::fork();
    if (child == 0) {
      // Ends by a signal at the first write into the last shard.
      ::setrlimit(RLIMIT_FSIZE, &limit_);
      (void)quantize_checkpoint(folder_ / "in", folder_ / "out", options_);
      ::_exit(0);
    }
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFSIGNALED(status)) << "the file size limit did not end it";
    ASSERT_TRUE(fs::exists(partial() / "journal"));
  }
  fs::path partial() const { return folder_ / "out.partial"; }
  void expect_whole() {
    for (const auto& entry : fs::directory_iterator(folder_ / "whole")) {
      EXPECT_EQ(content(entry.path()), content(folder_ / "out" / entry.path().filename().string()))
          << entry.path();
    }
    EXPECT_EQ(entries_in(folder_ / "whole"), entries_in(folder_ / "out"));
  }

  TemporaryFolder folder_;
  QuantizeOptions options_;
  rlimit limit_{13'500, 13'500};
};

TEST_F(QuantizeResumes, WhereAnotherRunWasKilled) {
  leave_partial();
  const auto report = quantize_checkpoint(folder_ / "in", folder_ / "out", options_);
  ASSERT_TRUE(report.has_value()) << report.error().message;
  EXPECT_TRUE(report->resumed);
  EXPECT_GT(report->reused_bytes, 0u);
  expect_whole();
}

TEST_F(QuantizeResumes, AndDoesAgainWhatIsNotAsTheJournalSays) {
  leave_partial();
  // What a power cut may leave: old zeros where data was written, and a torn line.
  for (const auto& entry : fs::directory_iterator(partial())) {
    if (entry.path().filename() == "journal") continue;
    std::fstream file(entry.path(), std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(static_cast<std::streamoff>(fs::file_size(entry.path())) - 600);
    file.write(std::string(300, '\0').data(), 300);
  }
  std::ofstream(partial() / "journal", std::ios::app) << "job 1";
  const auto report = quantize_checkpoint(folder_ / "in", folder_ / "out", options_);
  ASSERT_TRUE(report.has_value()) << report.error().message;
  expect_whole();
}

TEST_F(QuantizeResumes, NotWithAChangedSourceOrOtherOptions) {
  leave_partial();
  QuantizeOptions other = options_;
  other.algorithm.mode = Nvfp4Mode::kMse;
  const auto refused = quantize_checkpoint(folder_ / "in", folder_ / "out", other);
  ASSERT_FALSE(refused.has_value());
  EXPECT_THAT(refused.error().message, AllOf(HasSubstr("out.partial"), HasSubstr("--no-resume")));
  tiny_checkpoint(CheckpointLayout::kFp8, 2).write(folder_ / "in");
  const auto changed = quantize_checkpoint(folder_ / "in", folder_ / "out", options_);
  ASSERT_FALSE(changed.has_value());
  EXPECT_THAT(changed.error().message, HasSubstr("another source"));
  EXPECT_TRUE(fs::exists(partial()));
  options_.resume = false;
  const auto fresh = quantize_checkpoint(folder_ / "in", folder_ / "out", options_);
  ASSERT_TRUE(fresh.has_value()) << fresh.error().message;
  EXPECT_FALSE(fresh->resumed);
  EXPECT_FALSE(fs::exists(partial()));
}

TEST_F(QuantizeResumes, NotBesideAnotherProcess) {
  leave_partial();
  const int fd = ::open((partial() / "journal").c_str(), O_RDWR);
  ASSERT_EQ(::flock(fd, LOCK_EX), 0);
  const auto report = quantize_checkpoint(folder_ / "in", folder_ / "out", options_);
  ::close(fd);
  ASSERT_FALSE(report.has_value());
  EXPECT_THAT(report.error().message, HasSubstr("another process"));
  EXPECT_TRUE(fs::exists(partial()));
}

TEST(QuantizeMemory, TheResultDoesNotDependOnMemoryAndThreads) {
  const TemporaryFolder folder;
  QuantizeOptions options;
  options.threads = 1;
  options.max_memory = 52'000'000;
  ASSERT_TRUE(quantize_checkpoint(testing::demo_source(), folder / "small", options).has_value());
  options.threads = 3;
  options.max_memory = 0;
  ASSERT_TRUE(quantize_checkpoint(testing::demo_source(), folder / "large", options).has_value());
  EXPECT_EQ(content(folder / "small" / "SHA256SUMS"), content(folder / "large" / "SHA256SUMS"));
  options.max_memory = 1'000'000;
  const auto refused = quantize_checkpoint(testing::demo_source(), folder / "none", options);
  ASSERT_FALSE(refused.has_value());
  EXPECT_THAT(refused.error().message, AllOf(HasSubstr("--max-memory"), HasSubstr("1.0 MB")));
}

TEST(OutputDirectories, AFolderThatAppearsMeanwhileIsNotReplaced) {
  const TemporaryFolder folder;
  auto directory = OutputDirectory::create(folder / "out", false).value();
  std::ofstream(directory.partial_path() / "file") << "new";
  fs::create_directory(folder / "out");
  std::ofstream(folder / "out" / "file") << "theirs";
  EXPECT_FALSE(directory.commit().has_value());
  std::ifstream file(folder / "out" / "file");
  std::string text;
  file >> text;
  EXPECT_EQ(text, "theirs");
}

TEST(OutputDirectories, GoWithoutATraceWhenNotCommitted) {
  const TemporaryFolder folder;
  {
    const auto directory = OutputDirectory::create(folder / "out", false).value();
    std::ofstream(directory.partial_path() / "file") << "x";
    EXPECT_EQ(folder.num_entries(), 1);
  }
  EXPECT_EQ(folder.num_entries(), 0);
}

}  // namespace
}  // namespace nibble
