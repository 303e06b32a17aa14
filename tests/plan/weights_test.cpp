// Parameters, bytes and splits against planner.json.
#include <gtest/gtest.h>

#include <map>
#include <set>

#include "nibble/checkpoint/model_tensors.h"
#include "nibble/plan/catalogue.h"
#include "nibble/plan/device_memory.h"
#include "nibble/plan/kv_cache_size.h"
#include "nibble/plan/model_weights.h"
#include "nibble/plan/page_method.h"
#include "tests/plan/golden.h"

namespace nibble {
namespace {

using testing::at;
using testing::flag;
using testing::golden;
using testing::golden_weights;
using testing::integer;
using testing::num;
using testing::r1;
using testing::str;

// The golden classes of the MTP layer join what the planner keeps apart.
std::map<std::string, int64_t> by_golden_class(const ModelWeights& weights, bool mtp, bool bytes) {
  static const std::set<WeightKind> attention = {WeightKind::kQAProj, WeightKind::kQBProj,
                                                 WeightKind::kKvAProj, WeightKind::kKvBProj,
                                                 WeightKind::kOProj};
  std::map<std::string, int64_t> sums;
  for (const WeightKind kind : kAllWeightKinds) {
    std::string name(weight_kind_name(kind));
    if (mtp) name = "mtp_" + (attention.contains(kind) ? std::string("attn") : name);
    const WeightCell& cell = weights.cell(kind, mtp);
    if (cell.parameters > 0) sums[name] += bytes ? cell.bytes : cell.parameters;
  }
  return sums;
}

TEST(PlanWeights, CountsParametersByClassAsTheGoldenFile) {
  const JsonValue& counts = at(golden(), "counts");
  const ModelWeights weights = golden_weights("bf16");
  EXPECT_EQ(weights.main_parameters(), integer(counts, "main_parameters"));
  EXPECT_EQ(weights.main_parameters() - weights.cell(WeightKind::kRouterBias).parameters,
            integer(counts, "main_parameters_without_router_bias"));
  EXPECT_EQ(weights.mtp_parameters(), integer(counts, "mtp_parameters_stored"));
  EXPECT_EQ(weights.mtp_block_parameters(),
            integer(counts, "mtp_parameters_without_shared_embed_and_head"));
  EXPECT_EQ(weights.main_parameters() + weights.mtp_parameters(),
            integer(counts, "stored_parameters"));
  EXPECT_EQ(weights.active_parameters(r1()), integer(counts, "active_parameters_read_per_token"));
  EXPECT_EQ(weights.active_parameters(r1()) + weights.cell(WeightKind::kEmbedding).parameters,
            integer(counts, "active_parameters_with_embedding"));
  for (const bool mtp : {false, true}) {
    const JsonValue& classes = at(counts, mtp ? "mtp_by_class" : "main_by_class");
    const auto sums = by_golden_class(weights, mtp, false);
    EXPECT_EQ(sums.size(), classes.as_object()->size());
    for (const auto& [name, value] : *classes.as_object()) {
      ASSERT_TRUE(sums.contains(name)) << name;
      EXPECT_EQ(sums.at(name), *value.as_integer()) << name;
    }
  }
}

TEST(PlanWeights, CountsBytesOfEveryPublishedRecipeAsTheGoldenFile) {
  const JsonValue& checkpoints = at(at(golden(), "counts"), "checkpoints");
  ASSERT_EQ(checkpoints.as_object()->size(), 5u);
  for (const auto& [name, expected] : *checkpoints.as_object()) {
    SCOPED_TRACE(name);
    const ModelWeights weights = golden_weights(name);
    EXPECT_EQ(weights.file_bytes(), integer(expected, "file_bytes"));
    EXPECT_EQ(weights.resident_bytes(false), integer(expected, "resident_bytes_no_mtp"));
    EXPECT_EQ(weights.resident_bytes(true), integer(expected, "resident_bytes_mtp"));
    EXPECT_EQ(weights.elements.total(), integer(expected, "stored_elements"));
    const JsonValue& dtypes = at(expected, "elements_by_dtype");
    EXPECT_EQ(weights.elements.u8, integer(dtypes, "U8"));
    EXPECT_EQ(weights.elements.f8_e4m3, integer(dtypes, "F8_E4M3"));
    EXPECT_EQ(weights.elements.bf16, integer(dtypes, "BF16"));
    EXPECT_EQ(weights.elements.f32, integer(dtypes, "F32"));
    auto sums = by_golden_class(weights, false, true);
    sums.merge(by_golden_class(weights, true, true));
    for (const auto& [kind, bytes] : *at(expected, "bytes_by_class").as_object()) {
      EXPECT_EQ(sums.at(kind), *bytes.as_integer()) << kind;
    }
    EXPECT_NEAR(static_cast<double>(weights.resident_bytes(false)) * 8 /
                    static_cast<double>(weights.main_parameters()),
                num(expected, "mean_bits_per_main_parameter"), 1e-4);
    EXPECT_NEAR(static_cast<double>(weights.file_bytes()) / 1e9, num(expected, "file_gb"), 0.005);
    EXPECT_NEAR(static_cast<double>(weights.file_bytes()) / 1073741824.0, num(expected, "file_gib"),
                0.005);
  }
}

TEST(PlanWeights, OneExpertTakesTheGoldenBytes) {
  for (const auto& [name, bytes] : *at(golden(), "unit_expert_bytes").as_object()) {
    EXPECT_EQ(golden_weights(name).expert_bytes, *bytes.as_integer()) << name;
  }
}

// The list of tensors is another piece of code, checked against the published checkpoints.
TEST(PlanWeights, AgreeWithTheListOfTensors) {
  int64_t listed = 0;
  for (const ModelTensor& tensor : model_tensors(r1())) listed += tensor.shape.num_elements();
  int64_t grouped = 0;
  for (const MatrixGroup& group : matrix_groups(r1())) grouped += group.parameters();
  EXPECT_EQ(grouped, listed);
  const auto stored = stored_tensors(r1(), CheckpointLayout::kNvfp4V2).value();
  std::vector<std::string> strangers;
  const ModelWeights from_headers = weights_in(r1(), stored, &strangers);
  const ModelWeights from_config = golden_weights("v2");
  EXPECT_TRUE(strangers.empty());
  EXPECT_EQ(from_headers.elements.total(), from_config.elements.total());
  EXPECT_EQ(from_headers.expert_bytes, from_config.expert_bytes);
  for (const bool mtp : {false, true}) {
    for (const WeightKind kind : kAllWeightKinds) {
      EXPECT_EQ(from_headers.cell(kind, mtp).bytes, from_config.cell(kind, mtp).bytes)
          << weight_kind_name(kind) << (mtp ? " of the MTP layer" : "");
      if (kind != WeightKind::kOther && from_config.cell(kind, mtp).bytes > 0) {
        EXPECT_EQ(from_headers.cell(kind, mtp).storage, from_config.cell(kind, mtp).storage)
            << weight_kind_name(kind);
      }
    }
  }
}

TEST(PlanWeights, NameTensorsThatNoSuchModelHas) {
  const std::vector<TensorInfo> tensors = {{"model.vision.patch.bias", DType::kBf16, {4, 2}, {}}};
  std::vector<std::string> strangers;
  const ModelWeights weights = weights_in(r1(), tensors, &strangers);
  EXPECT_EQ(strangers, std::vector<std::string>{"model.vision.patch.bias"});
  EXPECT_EQ(weights.cell(WeightKind::kOther).bytes, 16);
  EXPECT_EQ(weights.file_bytes(), 16);
}

TEST(PlanWeights, RefuseNvfp4ForColumnsThatAreNoMultipleOf16) {
  ModelConfig config = r1();
  config.moe_intermediate_size = 2056;  // down_proj's columns, a multiple of 8
  const auto weights = weights_of(config, find_format("nvfp4-v2").value());
  ASSERT_FALSE(weights);
  EXPECT_EQ(weights.error().exit_status, 4);
  EXPECT_NE(weights.error().message.find("2056 columns"), std::string::npos);
  EXPECT_TRUE(weights_of(config, find_format("bf16").value()));
}

TEST(PlanFormats, HaveTheGoldenBlockTypes) {
  const auto& expected = *at(golden(), "block_types").as_array();
  ASSERT_EQ(block_types().size(), expected.size());
  for (size_t i = 0; i < expected.size(); ++i) {
    EXPECT_EQ(block_types()[i].name, str(expected[i], "type"));
    EXPECT_EQ(block_types()[i].elements, integer(expected[i], "elements"));
    EXPECT_EQ(block_types()[i].bytes, integer(expected[i], "bytes"));
    EXPECT_DOUBLE_EQ(block_types()[i].bits(), num(expected[i], "bits_per_weight"));
  }
}

TEST(PlanFormats, HaveTheGoldenPublishedFiles) {
  const auto& expected = *at(golden(), "gguf_published").as_array();
  ASSERT_EQ(published_ggufs().size(), expected.size());
  for (size_t i = 0; i < expected.size(); ++i) {
    const PublishedGguf& file = published_ggufs()[i];
    EXPECT_EQ(file.publisher, str(expected[i], "publisher"));
    EXPECT_EQ(file.level, str(expected[i], "quant"));
    EXPECT_DOUBLE_EQ(file.file_gb, num(expected[i], "file_gb"));
    EXPECT_NEAR(file.bits(), num(expected[i], "bits_per_weight"), 1e-4);
    EXPECT_EQ(file.stated, str(expected[i], "precision") == "stated");
    // What the page says of the same level stands beside it.
    if (at(expected[i], "page_bits").is_null()) continue;
    const PageLevel* level = nullptr;
    for (const PageLevel& l : page_levels()) level = l.name == file.level ? &l : level;
    ASSERT_NE(level, nullptr);
    EXPECT_DOUBLE_EQ(level->bits, num(expected[i], "page_bits"));
    EXPECT_DOUBLE_EQ(page_row(page_model(r1(), 393632909544), *level).file_gb,
                     num(expected[i], "page_file_gb"));
  }
}

TEST(PlanFormats, PreferTheFilePublishedForR10528) {
  const auto q8 = find_format("Q8_0").value();
  EXPECT_EQ(gguf_weights(r1(), q8.gguf_bits).file_bytes(), 713'290'000'000);
  EXPECT_FALSE(q8.estimate);
  const auto iq2 = find_format("iq2-xxs").value();
  EXPECT_TRUE(iq2.estimate);
  EXPECT_NEAR(iq2.gguf_bits, 2.0625 * 1.02, 1e-12);
}

TEST(PlanFormats, EveryLevelOfThePageIsThere) {
  for (const PageLevel& level : page_levels()) EXPECT_TRUE(find_format(level.name)) << level.name;
}

TEST(PlanKv, TakesTheGoldenBytes) {
  for (const JsonValue& row : *at(golden(), "kv_mla").as_array()) {
    const std::string cache = str(row, "cache");
    const auto kv = parse_kv_format(cache == "fp8_ds_656" ? "fp8-ds" : cache).value();
    const bool mtp = integer(row, "layers") == 62;
    EXPECT_EQ(kv_bytes_per_token_and_layer(r1(), kv), integer(row, "bytes_per_token_per_layer"));
    const int64_t bytes = kv_bytes_per_token(r1(), kv, mtp);
    EXPECT_EQ(bytes, integer(row, "bytes_per_token"));
    for (const auto& [tokens, gb] : *at(row, "gb").as_object()) {
      EXPECT_NEAR(static_cast<double>(bytes * std::stoll(tokens)) / 1e9, *gb.as_number(), 5e-7);
    }
  }
}

TEST(PlanKv, IsFarBelowWhatThePageSays) {
  const JsonValue& contrast = at(golden(), "kv_contrast");
  const double page = page_kv_bytes_per_token(page_model(r1(), 1));
  const auto bf16 = static_cast<double>(kv_bytes_per_token(r1(), KvFormat::kBf16, false));
  const auto fp8 = static_cast<double>(kv_bytes_per_token(r1(), KvFormat::kFp8, false));
  EXPECT_DOUBLE_EQ(page, num(contrast, "page_formula_bytes_per_token"));
  EXPECT_DOUBLE_EQ(page * 163840 / 1e9, num(contrast, "page_formula_gb_163840"));
  EXPECT_DOUBLE_EQ(bf16 * 163840 / 1e9, num(contrast, "mla_bf16_gb_163840"));
  EXPECT_DOUBLE_EQ(fp8 * 163840 / 1e9, num(contrast, "mla_fp8_gb_163840"));
  EXPECT_NEAR(page / bf16, num(contrast, "ratio_page_to_mla_bf16"), 5e-4);
  EXPECT_NEAR(page / fp8, num(contrast, "ratio_page_to_mla_fp8"), 5e-4);
  // Without absorption: keys of 192 and values of 128 for each of 128 heads, in BF16.
  EXPECT_EQ((192 + 128) * 128 * 61 * 2, integer(contrast, "unabsorbed_mha_bf16_bytes_per_token"));
}

TEST(PlanKv, RoundsUpToBlocks) {
  EXPECT_EQ(round_up_to_blocks(0), 0);
  EXPECT_EQ(round_up_to_blocks(1), 64);
  EXPECT_EQ(round_up_to_blocks(64), 64);
  EXPECT_EQ(round_up_to_blocks(163841), 163904);
}

ParallelMode golden_mode(const JsonValue& row) {
  return str(row, "mode") == "tp" ? ParallelMode::kTp : ParallelMode::kAdp;
}

TEST(PlanSplit, PutsTheGoldenWeightsOnEachGpu) {
  for (const JsonValue& row : *at(golden(), "per_gpu_weights").as_array()) {
    const auto split = make_split(golden_mode(row), static_cast<int>(integer(row, "gpus")));
    const int64_t bytes =
        weights_per_device(r1(), golden_weights(str(row, "format")), split, flag(row, "mtp"));
    EXPECT_NEAR(static_cast<double>(bytes) / 1e9, num(row, "weights_gb_per_gpu"), 6e-4)
        << to_json(row, -1);
  }
}

TEST(PlanMemory, LaysOutTheGoldenPlans) {
  for (const JsonValue& row : *at(golden(), "plans").as_array()) {
    SCOPED_TRACE(to_json(row, -1));
    const JsonValue& expect = at(row, "expect");
    MemoryRequest request;
    request.device_bytes = integer(row, "device_bytes");
    request.max_num_tokens = integer(row, "max_num_tokens");
    request.max_batch = integer(row, "max_batch");
    request.kv_fraction = num(row, "kv_fraction");
    request.kv = integer(row, "kv_bytes_per_element") == 1 ? KvFormat::kFp8 : KvFormat::kBf16;
    request.mtp = flag(row, "mtp");
    const auto gpus = static_cast<int>(integer(row, "gpus"));
    const RankMemory memory =
        device_memory(r1(), golden_weights(str(row, "format")), make_split(golden_mode(row), gpus),
                      request, MemoryConstants{});
    // Exact but for the rounding of each class to whole bytes a rank.
    EXPECT_NEAR(static_cast<double>(memory.weights), num(expect, "weights_bytes"), 32);
    EXPECT_EQ(memory.workspace, integer(expect, "workspace_bytes"));
    EXPECT_EQ(memory.fixed, integer(expect, "fixed_bytes"));
    EXPECT_NEAR(static_cast<double>(memory.free), num(expect, "free_after_load_bytes"), 32);
    EXPECT_NEAR(static_cast<double>(memory.pool), num(expect, "kv_pool_bytes"), 32);
    EXPECT_EQ(memory.kv_bytes_per_token, integer(expect, "kv_bytes_per_token"));
    EXPECT_EQ(memory.tokens, integer(expect, "kv_tokens_per_gpu"));
    const bool adp = golden_mode(row) == ParallelMode::kAdp;
    const int64_t ranks = adp ? gpus : 1;
    EXPECT_EQ(memory.tokens * ranks, integer(expect, "kv_tokens_total"));
    EXPECT_EQ(memory.tokens / integer(row, "context") * ranks, integer(expect, "max_sequences"));
    EXPECT_EQ(memory.tokens < integer(row, "context"), str(expect, "verdict") == "does_not_fit");
  }
}

// Three configurations that ran in public must be possible here too.
TEST(PlanMemory, HoldsWhatRanInPublic) {
  for (const JsonValue& row : *at(golden(), "capacity_checks").as_array()) {
    SCOPED_TRACE(str(row, "name"));
    const PlanDevice device =
        device_of(Catalogue::builtin().find(str(row, "device")).value()).value();
    MemoryRequest request;
    request.device_bytes = device.memory_bytes;
    request.max_num_tokens = integer(row, "max_num_tokens");
    request.max_batch = integer(row, "batch_per_gpu");
    request.kv_fraction = num(row, "kv_fraction");
    request.kv = integer(row, "kv_bytes_per_element") == 1 ? KvFormat::kFp8 : KvFormat::kBf16;
    const Split split = make_split(golden_mode(row), static_cast<int>(integer(row, "gpus")));
    const RankMemory memory =
        device_memory(r1(), golden_weights(str(row, "format")), split, request, MemoryConstants{});
    EXPECT_EQ(memory.tokens, integer(row, "expect_tokens_per_gpu"));
    EXPECT_GE(memory.tokens, integer(row, "needed_tokens_per_gpu"));
    EXPECT_EQ(integer(row, "needed_tokens_per_gpu"),
              integer(row, "batch_per_gpu") * (integer(row, "isl") + integer(row, "osl")));
    EXPECT_NEAR(static_cast<double>(memory.weights) / 1e9, num(row, "weights_gb_per_gpu"), 0.005);
  }
}

TEST(PlanSplit, RefusesWhatDoesNotDivide) {
  const ModelWeights v2 = golden_weights("v2");
  const ModelWeights fp8 = golden_weights("fp8");
  const auto message = [&](const ModelWeights& weights, const Split& split) {
    const auto status = check_split(r1(), weights, split);
    return status ? std::string("fine") : status.error().message;
  };
  EXPECT_NE(message(v2, make_split(ParallelMode::kTp, 3)).find("128 heads"), std::string::npos);
  EXPECT_NE(message(v2, make_split(ParallelMode::kAdp, 6)).find("256 experts"), std::string::npos);
  // 2,048 columns in blocks of 128 are 16 blocks: FP8 splits an expert 16 ways, not 32.
  EXPECT_EQ(message(fp8, make_split(ParallelMode::kTp, 16)), "fine");
  EXPECT_NE(message(fp8, make_split(ParallelMode::kTp, 32)).find("blocks of 128"),
            std::string::npos);
  EXPECT_EQ(message(v2, make_split(ParallelMode::kTp, 128)), "fine");
  Split mixed = make_split(ParallelMode::kTp, 32);
  mixed.ep = 2;
  EXPECT_EQ(message(fp8, mixed), "fine");
  EXPECT_EQ(next_valid_count(r1(), v2, ParallelMode::kTp, 3), 4);
  EXPECT_EQ(next_valid_count(r1(), v2, ParallelMode::kAdp, 5), 8);
}

// Whole layers on each of five devices: no device holds less than the mean, none more than the mean
// and one layer, and all of the model is somewhere.
TEST(PlanSplit, SplitsLayersEvenly) {
  const ModelWeights v2 = golden_weights("v2");
  const int64_t whole = v2.resident_bytes(false);
  const int64_t layer = v2.cell(WeightKind::kRoutedExperts).bytes / 58 + 500'000'000;
  for (const int gpus : {2, 3, 5, 7, 16}) {
    const int64_t fullest =
        weights_per_device(r1(), v2, make_split(ParallelMode::kLayer, gpus), false);
    EXPECT_GE(fullest, whole / gpus) << gpus;
    EXPECT_LE(fullest, whole / gpus + layer + 2'000'000'000) << gpus;
  }
}

}  // namespace
}  // namespace nibble
