#include "nibble/plan/model_source.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <filesystem>

#include "nibble/base/check.h"
#include "nibble/base/mapped_file.h"
#include "nibble/base/text.h"
#include "nibble/checkpoint/json.h"
#include "nibble/checkpoint/model_path.h"
#include "nibble/checkpoint/quant_config.h"
#include "nibble/checkpoint/safetensors_source.h"
#include "nibble/plan/gguf_header.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

// deepseek-ai/DeepSeek-R1's config.json, the fields that sizes depend on.
constexpr std::string_view kDeepseekV3Config = R"({
  "architectures": ["DeepseekV3ForCausalLM"], "vocab_size": 129280, "hidden_size": 7168,
  "intermediate_size": 18432, "moe_intermediate_size": 2048, "num_hidden_layers": 61,
  "num_nextn_predict_layers": 1, "num_attention_heads": 128, "num_key_value_heads": 128,
  "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
  "v_head_dim": 128, "n_routed_experts": 256, "n_shared_experts": 1, "num_experts_per_tok": 8,
  "n_group": 8, "topk_group": 4, "first_k_dense_replace": 3, "moe_layer_freq": 1,
  "norm_topk_prob": true, "routed_scaling_factor": 2.5, "rms_norm_eps": 1e-06,
  "rope_theta": 10000, "max_position_embeddings": 163840, "topk_method": "noaux_tc",
  "rope_scaling": {"beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 1.0,
                   "mscale_all_dim": 1.0, "original_max_position_embeddings": 4096,
                   "type": "yarn"},
  "scoring_func": "sigmoid", "hidden_act": "silu", "torch_dtype": "bfloat16",
  "tie_word_embeddings": false, "bos_token_id": 0, "eos_token_id": 1})";

struct Builtin {
  std::string_view id;
  std::string_view title;
};
constexpr auto kBuiltins = std::to_array<Builtin>({{"deepseek-r1", "DeepSeek-R1"},
                                                   {"deepseek-r1-0528", "DeepSeek-R1-0528"},
                                                   {"deepseek-r1-zero", "DeepSeek-R1-Zero"},
                                                   {"deepseek-v3", "DeepSeek-V3"},
                                                   {"deepseek-v3-0324", "DeepSeek-V3-0324"}});

std::string lower(std::string_view name) {
  std::string text(name);
  for (char& c : text) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return text;
}

// What a checkpoint of this quantization config is, by the planner's name for it.
std::string format_of(const QuantConfig& quant) {
  switch (quant.algo) {
    case QuantAlgo::kNvfp4:
      return is_excluded(quant, "model.layers.3.self_attn.o_proj") ? "nvfp4-v1" : "nvfp4-v2";
    case QuantAlgo::kFp8Block:
      return "fp8";
    case QuantAlgo::kNone:
      break;
  }
  return "bf16";
}

std::string format_of(const ModelWeights& weights) {
  switch (weights.cell(WeightKind::kRoutedExperts).storage) {
    case Storage::kNvfp4:
      if (weights.cell(WeightKind::kOProj).storage != Storage::kNvfp4) return "nvfp4-v1";
      return weights.cell(WeightKind::kQBProj).storage == Storage::kNvfp4 ? "nvfp4-attention"
                                                                          : "nvfp4-v2";
    case Storage::kFp8:
      return "fp8";
    default:
      return "bf16";
  }
}

// "metadata"."total_size" of the index, if it says so.
std::optional<int64_t> indexed_bytes(const fs::path& directory) {
  const auto text = read_text_file(directory / "model.safetensors.index.json");
  if (!text) return std::nullopt;
  const auto index = parse_json(*text, "model.safetensors.index.json");
  if (!index) return std::nullopt;
  const JsonValue* metadata = index->find("metadata");
  const JsonValue* size = metadata == nullptr ? nullptr : metadata->find("total_size");
  const int64_t* bytes = size == nullptr ? nullptr : size->as_integer();
  return bytes == nullptr || *bytes <= 0 ? std::nullopt : std::optional(*bytes);
}

// Sizes by the config and the quantization it names, when shards are missing.
PlanStatus count_from_config(const fs::path& directory, PlanModel& model) {
  const auto quant = load_quant_config(directory, false);
  if (!quant) return plan_error("bad_model", quant.error());
  model.stored_format = format_of(*quant);
  const PlanFormat format = NIBBLE_TRY(find_format(model.stored_format));
  model.stored = NIBBLE_TRY(weights_of(model.config, format));
  const auto total = indexed_bytes(directory);
  model.source = total ? fmt::format("config.json and the index, which says {}",
                                     format_bytes(static_cast<uint64_t>(*total)))
                       : "config.json alone";
  return {};
}

PlanStatus read_directory(const fs::path& directory, PlanModel& model) {
  auto config = load_config(directory);
  if (!config) return plan_error("bad_model", config.error());
  model.config = *std::move(config);
  model.directory = directory.string();
  const auto source = SafetensorsSource::open(directory);
  if (!source) {
    if (source.error().code != ErrorCode::kNotFound) {
      return plan_error("bad_model", source.error());
    }
    model.warnings.push_back(
        fmt::format("{}: counted from config.json instead", source.error().message));
    return count_from_config(directory, model);
  }
  std::vector<std::string> strangers;
  model.stored = weights_in(model.config, (*source)->tensors(), &strangers);
  model.stored_format = format_of(*model.stored);
  const size_t shards = (*source)->shard_names().size();
  model.source = fmt::format("headers of {} shard{}, {} tensors", shards, shards == 1 ? "" : "s",
                             format_count((*source)->tensors().size()));
  if (!strangers.empty()) {
    model.warnings.push_back(
        fmt::format("{} tensors are in no DeepSeek-V3 model ({}, ...); their bytes are counted",
                    strangers.size(), strangers.front()));
  }
  return {};
}

PlanStatus read_file(const fs::path& path, PlanModel& model) {
  if (path.extension() == ".gguf") {
    auto gguf = read_gguf_header(path);
    if (!gguf) return plan_error("bad_model", gguf.error());
    model.config = gguf->config;
    model.stored = gguf->weights;
    model.stored_format = "gguf";
    model.source = gguf->source;
    return {};
  }
  if (path.extension() != ".json") {
    return plan_error("bad_model",
                      fmt::format("{} is neither a checkpoint's folder nor a config.json nor a "
                                  ".gguf file",
                                  path.string()),
                      "give the folder that holds config.json");
  }
  const auto text = read_text_file(path);
  if (!text) return plan_error("bad_model", text.error());
  auto config = parse_config(*text, path.string());
  if (!config) return plan_error("bad_model", config.error());
  model.config = *std::move(config);
  model.source = "config.json alone";
  return {};
}

}  // namespace

std::vector<std::string> builtin_model_names() {
  std::vector<std::string> names;
  names.reserve(kBuiltins.size());
  for (const Builtin& builtin : kBuiltins) names.emplace_back(builtin.id);
  return names;
}

PlanResult<PlanModel> load_plan_model(std::string_view name) {
  PlanModel model;
  fs::path path(name);
  std::error_code ignored;
  if (!fs::exists(path, ignored)) {
    std::string wanted = lower(name);
    if (wanted.starts_with("deepseek-ai/")) wanted.erase(0, 12);
    for (const Builtin& builtin : kBuiltins) {
      if (wanted != builtin.id) continue;
      auto config = parse_config(kDeepseekV3Config, "the built-in config");
      NIBBLE_CHECK(config.has_value());
      model.config = *std::move(config);
      model.name = builtin.title;
      model.source = "built in";
      return model;
    }
    const auto resolved = resolve_model(name);
    if (!resolved) {
      return plan_error(
          "model_not_found",
          fmt::format("no model '{}'{}: it is no path, no built-in name, and {}", name,
                      did_you_mean(name, builtin_model_names()), resolved.error().message),
          "built-in names: deepseek-r1, deepseek-r1-0528, deepseek-v3");
    }
    path = *resolved;
  }
  if (fs::is_directory(path, ignored)) {
    NIBBLE_TRY(read_directory(path, model));
  } else {
    NIBBLE_TRY(read_file(path, model));
  }
  const fs::path clean = fs::absolute(path, ignored).lexically_normal();
  const fs::path last = clean.has_filename() ? clean : clean.parent_path();
  model.name = last.filename() == "config.json" ? last.parent_path().filename().string()
                                                : last.filename().string();
  return model;
}

}  // namespace nibble
