// Models from headers, configs, names and GGUF files, good and damaged.
#include "nibble/plan/model_source.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <fstream>

#include "nibble/checkpoint/model_tensors.h"
#include "nibble/plan/calibration.h"
#include "tests/base/temporary_folder.h"
#include "tests/plan/golden.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;
using testing::kR1Config;
using testing::r1;
using testing::TemporaryFolder;

void write(const std::filesystem::path& path, std::string_view bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

// Shards with real headers whose data is a hole: hundreds of GB that take no disk. False where the
// file system has no holes.
bool write_header_only_checkpoint(const std::filesystem::path& folder,
                                  const std::vector<TensorInfo>& tensors, size_t num_shards) {
  write(folder / "config.json", kR1Config);
  for (size_t shard = 0; shard < num_shards; ++shard) {
    std::string header = "{";
    int64_t offset = 0;
    for (size_t i = shard * tensors.size() / num_shards;
         i < (shard + 1) * tensors.size() / num_shards; ++i) {
      const TensorInfo& info = tensors[i];
      const int64_t end = offset + info.shape.num_elements() * dtype_size(info.dtype);
      if (header.size() > 1) header += ",";
      header += "\"" + info.name + "\":{\"dtype\":\"" + std::string(dtype_name(info.dtype)) +
                "\",\"shape\":[";
      for (int d = 0; d < info.shape.rank(); ++d) {
        header += (d == 0 ? "" : ",") + std::to_string(info.shape[d]);
      }
      header += "],\"data_offsets\":[" + std::to_string(offset) + "," + std::to_string(end) + "]}";
      offset = end;
    }
    header += "}";
    char name[64];
    (void)std::snprintf(name, sizeof name, "model-%05zu-of-%05zu.safetensors", shard + 1,
                        num_shards);
    std::string start(8, '\0');
    for (size_t i = 0; i < 8; ++i) start[i] = static_cast<char>(header.size() >> (8 * i) & 0xff);
    write(folder / name, start + header);
    std::error_code error;
    std::filesystem::resize_file(folder / name, 8 + header.size() + static_cast<uint64_t>(offset),
                                 error);
    if (error) return false;
  }
  return true;
}

// DeepSeek-R1 as released: 91,991 tensors in 163 shards, 688,574,839,360 bytes.
TEST(PlanModel, PlansTheHeadersOfR1InASecond) {
  const TemporaryFolder folder;
  const auto tensors = stored_tensors(r1(), CheckpointLayout::kFp8).value();
  ASSERT_EQ(tensors.size(), 91'991u);
  if (!write_header_only_checkpoint(folder.path(), tensors, 163)) {
    GTEST_SKIP() << "no files with holes here";
  }
  const auto start = std::chrono::steady_clock::now();
  const auto model = load_plan_model(folder.path().string());
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  ASSERT_TRUE(model) << model.error().message;
  RecordProperty("seconds", std::to_string(seconds));
  EXPECT_EQ(model->stored->file_bytes(), 688'574'839'360);
  EXPECT_EQ(model->stored->elements.total(), 684'531'386'000);
  EXPECT_EQ(model->stored->resident_bytes(false), 673'150'611'808);
  EXPECT_EQ(model->stored->main_parameters(), 671'026'419'200);
  EXPECT_EQ(model->stored_format, "fp8");
  EXPECT_EQ(model->source, "headers of 163 shards, 91,991 tensors");
  EXPECT_TRUE(model->warnings.empty());
#if defined(__OPTIMIZE__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
  EXPECT_LT(seconds, 1.0);
#endif
}

// NVFP4 v1 as published has 496 bytes of cache scales that a recipe doesn't count.
TEST(PlanModel, ReadsTheLayoutFromHeaders) {
  const TemporaryFolder folder;
  const auto tensors = stored_tensors(r1(), CheckpointLayout::kNvfp4V1).value();
  if (!write_header_only_checkpoint(folder.path(), tensors, 80)) {
    GTEST_SKIP() << "no files with holes here";
  }
  const auto model = load_plan_model((folder.path() / "").string()).value();
  EXPECT_EQ(model.stored_format, "nvfp4-v1");
  EXPECT_EQ(model.stored->file_bytes(), 423'605'060'520);
  EXPECT_EQ(model.stored->file_bytes() - testing::golden_weights("v1").file_bytes(), 496);
  EXPECT_EQ(model.name, folder.path().filename().string());
}

// The header-derived bytes are the files' sizes without their headers.
TEST(PlanModel, CountsTheDemoToTheByte) {
  const std::filesystem::path folder = NIBBLE_SOURCE_DIR "/models/demo";
  int64_t expected = 0;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    if (entry.path().extension() != ".safetensors") continue;
    std::ifstream file(entry.path(), std::ios::binary);
    uint64_t header = 0;
    file.read(reinterpret_cast<char*>(&header), 8);
    expected += static_cast<int64_t>(entry.file_size() - 8 - header);
  }
  const auto model = load_plan_model(folder.string()).value();
  EXPECT_EQ(model.stored->file_bytes(), expected);
  EXPECT_EQ(model.stored_format, "fp8");
  EXPECT_EQ(model.name, "demo");
}

TEST(PlanModel, KnowsNamesAndConfigFiles) {
  EXPECT_EQ(load_plan_model("DeepSeek-R1-0528")->name, "DeepSeek-R1-0528");
  EXPECT_EQ(load_plan_model("deepseek-ai/DeepSeek-V3")->name, "DeepSeek-V3");
  const TemporaryFolder folder;
  write(folder / "config.json", kR1Config);
  const auto model = load_plan_model((folder / "config.json").string());
  ASSERT_TRUE(model) << model.error().message;
  EXPECT_FALSE(model->stored);
  EXPECT_EQ(model->config.num_hidden_layers, 61);
}

TEST(PlanModel, CountsFromTheConfigWhenShardsAreMissing) {
  const TemporaryFolder folder;
  write(folder / "config.json", kR1Config);
  write(folder / "model.safetensors.index.json",
        R"({"metadata": {"total_size": 413306995616},
            "weight_map": {"lm_head.weight": "model-00001-of-00080.safetensors"}})");
  write(folder / "hf_quant_config.json",
        R"({"producer": {"name": "modelopt", "version": "0.34"},
            "quantization": {"quant_algo": "NVFP4", "kv_cache_quant_algo": "FP8", "group_size": 16,
                             "exclude_modules": ["lm_head", "model.layers.61*"]}})");
  const auto model = load_plan_model(folder.path().string());
  ASSERT_TRUE(model) << model.error().message;
  EXPECT_EQ(model->stored->file_bytes(), 413'306'995'616);
  EXPECT_EQ(model->stored_format, "nvfp4-v2");
  ASSERT_EQ(model->warnings.size(), 1u);
  EXPECT_THAT(model->warnings.front(), HasSubstr("model-00001-of-00080.safetensors"));
  EXPECT_THAT(model->source, HasSubstr("413.3 GB"));
}

TEST(PlanModel, RefusesWhatItCannotRead) {
  const auto error = [](const std::filesystem::path& path) {
    const auto model = load_plan_model(path.string());
    return model ? PlanError{"fine", "", "", 0} : model.error();
  };
  EXPECT_EQ(error("/no/such/dir").code, "model_not_found");
  EXPECT_THAT(error("/no/such/dir").message, HasSubstr("/no/such/dir"));
  EXPECT_THAT(error("deepsek-r1").message, HasSubstr("did you mean 'deepseek-r1'"));
  EXPECT_EQ(error("").code, "model_not_found");

  const TemporaryFolder folder;
  EXPECT_EQ(error(folder.path()).code, "bad_model");  // no config.json
  write(folder / "config.json", R"({"architectures": ["LlamaForCausalLM"], "hidden_size": 4096})");
  EXPECT_EQ(error(folder.path()).exit_status, 3);
  EXPECT_THAT(error(folder.path()).message, HasSubstr("LlamaForCausalLM"));
  write(folder / "config.json",
        R"({"architectures": ["DeepseekV3ForCausalLM"], "vocab_size": 64, "hidden_size": 32})");
  EXPECT_THAT(error(folder.path()).message, HasSubstr("missing"));
  write(folder / "config.json", "{\"architectures\": [");
  EXPECT_THAT(error(folder.path()).message, HasSubstr("malformed JSON"));

  write(folder / "config.json", kR1Config);
  // A header that claims to be longer than the file.
  write(folder / "model.safetensors", std::string("\xff\xff\x00\x00\x00\x00\x00\x00{}", 10));
  EXPECT_EQ(error(folder.path()).code, "bad_model");
  EXPECT_THAT(error(folder.path()).message, HasSubstr("model.safetensors"));
  // Two tensors of one name.
  const std::string twice = R"({"a.weight":{"dtype":"BF16","shape":[1],"data_offsets":[0,2]},)"
                            R"("a.weight":{"dtype":"BF16","shape":[1],"data_offsets":[2,4]}})";
  std::string start(8, '\0');
  start[0] = static_cast<char>(twice.size());
  write(folder / "model.safetensors", start + twice + "1234");
  EXPECT_EQ(error(folder.path()).code, "bad_model");
  write(folder / "notes.txt", "hello");
  EXPECT_EQ(error(folder / "notes.txt").code, "bad_model");
}

// A small GGUF by hand: one metadata block, four tensors.
class GgufWriter {
 public:
  void raw(const void* bytes, size_t size) { data.append(static_cast<const char*>(bytes), size); }
  void u32(uint32_t value) { raw(&value, 4); }
  void u64(uint64_t value) { raw(&value, 8); }
  void text(std::string_view value) {
    u64(value.size());
    data += value;
  }
  void entry(std::string_view key, uint32_t value) {
    text(key);
    u32(4);
    u32(value);
  }
  void entry(std::string_view key, std::string_view value) {
    text(key);
    u32(8);
    text(value);
  }
  void tensor(std::string_view name, uint64_t cols, uint64_t rows, uint32_t type) {
    text(name);
    u32(2);
    u64(cols);
    u64(rows);
    u32(type);
    u64(0);
  }
  std::string data;
};

std::string small_gguf(std::string_view architecture) {
  GgufWriter gguf;
  gguf.data = "GGUF";
  gguf.u32(3);
  gguf.u64(4);   // tensors
  gguf.u64(18);  // entries
  gguf.entry("general.architecture", architecture);
  gguf.text("tokenizer.ggml.tokens");
  gguf.u32(9);
  gguf.u32(8);
  gguf.u64(2);
  gguf.text("a");
  gguf.text("b");
  for (const auto& [key, value] :
       std::vector<std::pair<std::string, uint32_t>>{{"block_count", 2},
                                                     {"embedding_length", 256},
                                                     {"feed_forward_length", 512},
                                                     {"leading_dense_block_count", 1},
                                                     {"expert_count", 4},
                                                     {"expert_used_count", 2},
                                                     {"expert_shared_count", 1},
                                                     {"expert_feed_forward_length", 256},
                                                     {"attention.head_count", 2},
                                                     {"attention.q_lora_rank", 64},
                                                     {"attention.kv_lora_rank", 32},
                                                     {"attention.key_length", 24},
                                                     {"attention.value_length", 16},
                                                     {"rope.dimension_count", 8},
                                                     {"vocab_size", 64},
                                                     {"context_length", 128}}) {
    gguf.entry("deepseek2." + key, value);
  }
  gguf.tensor("token_embd.weight", 256, 64, 8);            // Q8_0: 64 * 8 blocks of 34 bytes
  gguf.tensor("output.weight", 256, 64, 14);               // Q6_K: 64 blocks of 210
  gguf.tensor("blk.1.ffn_up_exps.weight", 256, 1024, 12);  // Q4_K: 1024 blocks of 144
  gguf.tensor("blk.0.attn_norm.weight", 256, 1, 0);        // F32
  return gguf.data;
}

TEST(PlanModel, ReadsTheHeaderOfAGguf) {
  const TemporaryFolder folder;
  write(folder / "m.gguf", small_gguf("deepseek2"));
  const auto model = load_plan_model((folder / "m.gguf").string());
  ASSERT_TRUE(model) << model.error().message;
  EXPECT_EQ(model->stored->cell(WeightKind::kEmbedding).bytes, 64 * 8 * 34);
  EXPECT_EQ(model->stored->cell(WeightKind::kHead).bytes, 64 * 210);
  EXPECT_EQ(model->stored->cell(WeightKind::kRoutedExperts).bytes, 1024 * 144);
  EXPECT_EQ(model->stored->cell(WeightKind::kNorms).bytes, 256 * 4);
  EXPECT_EQ(model->config.qk_nope_head_dim, 16);
  EXPECT_EQ(model->stored_format, "gguf");
}

TEST(PlanModel, RefusesADamagedGguf) {
  const TemporaryFolder folder;
  const std::string good = small_gguf("deepseek2");
  const auto error = [&](std::string_view bytes) {
    write(folder / "m.gguf", bytes);
    const auto model = load_plan_model((folder / "m.gguf").string());
    return model ? std::string("fine") : model.error().message;
  };
  EXPECT_THAT(error("GGML"), HasSubstr("does not begin with 'GGUF'"));
  EXPECT_THAT(error(small_gguf("llama")), HasSubstr("only 'deepseek2'"));
  // Cut anywhere it is refused, never accepted and never a crash.
  for (size_t size = 0; size < good.size(); size += 7) {
    EXPECT_NE(error(std::string_view(good).substr(0, size)), "fine") << size;
  }
  write(folder / "m-00001-of-00002.gguf", good);
  const auto part = load_plan_model((folder / "m-00001-of-00002.gguf").string());
  ASSERT_FALSE(part);
  EXPECT_THAT(part.error().message, HasSubstr("m-00002-of-00002.gguf"));
}

TEST(PlanCalibration, ReplacesConstants) {
  const auto calibration = parse_calibration(R"({"schema": "nibble.calibration/1",
    "memory": {"context_bytes": 524288000, "expert_imbalance": 1.1},
    "speed": {"eta_mem_gpu": 0.81}})",
                                             "c.json", r1(), Catalogue::builtin());
  ASSERT_TRUE(calibration) << calibration.error().message;
  EXPECT_EQ(calibration->constants.memory.context_bytes, 524288000);
  EXPECT_DOUBLE_EQ(calibration->constants.memory.expert_imbalance, 1.1);
  EXPECT_DOUBLE_EQ(calibration->constants.speed.eta_mem_gpu, 0.81);
  EXPECT_DOUBLE_EQ(calibration->constants.speed.eta_compute, 0.3);
}

// A peak that was 2 GB above the plan makes the next plan 2 GB larger: the gap is closed.
TEST(PlanCalibration, ClosesTheGapToAMeasuredPeak) {
  const Split split = make_split(ParallelMode::kTp, 8);
  const int64_t weights = 50'101'653'236;
  const MemoryConstants defaults;
  const int64_t planned = weights + fixed_bytes(defaults, 8, true) +
                          workspace_bytes(r1(), split, 8192, 16, defaults.expert_imbalance);
  const auto calibration = parse_calibration(
      R"({"schema": "nibble.calibration/1", "peak": {"weights_bytes": 50101653236, "ranks": 8,
          "tp": 8, "max_num_tokens": 8192, "max_batch": 16, "device_bytes_used": )" +
          std::to_string(planned + 2'000'000'000) + "}}",
      "c.json", r1(), Catalogue::builtin());
  ASSERT_TRUE(calibration) << calibration.error().message;
  const MemoryConstants& memory = calibration->constants.memory;
  EXPECT_EQ(weights + fixed_bytes(memory, 8, true) +
                workspace_bytes(r1(), split, 8192, 16, memory.expert_imbalance),
            planned + 2'000'000'000);
}

// Measurements of a machine that reaches 0.4 of its memory's rate bring the constants there.
TEST(PlanCalibration, FitsMeasurements) {
  SpeedConstants truth;
  truth.eta_mem_gpu = 0.4;
  std::string rows;
  for (const double batch : {8.0, 64.0, 256.0}) {
    for (const char* format : {"fp8", "nvfp4-v2"}) {
      Measurement m;
      m.device = "h200-sxm";
      m.format = format;
      m.gpus = 8;
      m.load.batch = batch;
      m.load.mean_context = 2048;
      m.measured = predict(m, r1(), Catalogue::builtin(), truth)->tokens_per_second;
      rows += std::string(rows.empty() ? "" : ",") + R"({"device": "h200-sxm", "format": ")" +
              format + R"(", "gpus": 8, "mean_context": 2048, "concurrency": )" +
              std::to_string(batch) + R"(, "measured": )" + std::to_string(m.measured) + "}";
    }
  }
  const auto calibration =
      parse_calibration(R"({"schema": "nibble.calibration/1", "measurements": [)" + rows + "]}",
                        "c.json", r1(), Catalogue::builtin());
  ASSERT_TRUE(calibration) << calibration.error().message;
  EXPECT_NEAR(calibration->constants.speed.eta_mem_gpu, 0.4, 0.05);
}

TEST(PlanCalibration, RefusesWhatItDoesNotKnow) {
  const auto message = [](std::string_view json) {
    const auto parsed = parse_calibration(json, "c.json", r1(), Catalogue::builtin());
    return parsed ? std::string("fine") : parsed.error().message;
  };
  EXPECT_THAT(message("{"), HasSubstr("malformed JSON"));
  EXPECT_THAT(message("[]"), HasSubstr("expected an object"));
  EXPECT_THAT(message("{}"), HasSubstr("schema is missing"));
  EXPECT_THAT(message(R"({"schema": "other"})"), HasSubstr("expected nibble.calibration/1"));
  const std::string head = R"({"schema": "nibble.calibration/1", )";
  EXPECT_THAT(message(head + R"("sped": {}})"), HasSubstr("did you mean 'speed'"));
  EXPECT_THAT(message(head + R"("speed": {"eta_compute": 1.5}})"), HasSubstr("eta_compute is 1.5"));
  EXPECT_THAT(message(head + R"("speed": {"eta_compute": 0}})"), HasSubstr("expected a number"));
  EXPECT_THAT(message(head + R"("memory": {"context_bytes": -1}})"),
              HasSubstr("context_bytes is -1"));
  EXPECT_THAT(message(head + R"("memory": 5})"), HasSubstr("expected an object"));
  EXPECT_THAT(message(head + R"("measurements": [{"device": "h200"}]})"),
              HasSubstr("format is missing"));
  EXPECT_THAT(
      message(head + R"("measurements": [{"device": "h201", "format": "fp8", "measured": 1}]})"),
      HasSubstr("no device 'h201'"));
  EXPECT_THAT(message(head + R"("measurements": 7})"), HasSubstr("expected an array"));
}

}  // namespace
}  // namespace nibble
