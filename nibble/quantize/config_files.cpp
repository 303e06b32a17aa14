#include "nibble/quantize/config_files.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>

#include "nibble/base/error.h"
#include "nibble/checkpoint/json.h"
#include "nibble/numeric/nvfp4.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

JsonValue string_array(std::span<const std::string> items) {
  JsonValue array = JsonValue::array();
  for (const std::string& item : items) array.push_back(JsonValue::string(item));
  return array;
}

JsonValue producer(std::string_view version) {
  return JsonValue::object({{"name", JsonValue::string("nibble")},
                            {"version", JsonValue::string(std::string(version))}});
}

JsonValue nvfp4_operand() {
  return JsonValue::object({{"dynamic", JsonValue::boolean(false)},
                            {"num_bits", JsonValue::integer(4)},
                            {"type", JsonValue::string("float")},
                            {"group_size", JsonValue::integer(kNvfp4BlockSize)}});
}

bool is_companion(const std::string& name) {
  static constexpr std::string_view kNames[] = {
      "tokenizer.json",    "tokenizer_config.json",
      "tokenizer.model",   "special_tokens_map.json",
      "added_tokens.json", "vocab.json",
      "merges.txt",        "generation_config.json",
      "LICENSE",           "LICENSE.txt",
  };
  if (std::find(std::begin(kNames), std::end(kNames), name) != std::end(kNames)) return true;
  return name.starts_with("chat_template") || (name.ends_with(".py") && !name.starts_with("."));
}

}  // namespace

std::string hf_quant_config_json(std::span<const std::string> exclude_modules,
                                 std::string_view producer_version, bool fp8_kv_cache) {
  JsonValue kv_cache = fp8_kv_cache ? JsonValue::string("FP8") : JsonValue();
  JsonValue quantization = JsonValue::object({{"quant_algo", JsonValue::string("NVFP4")},
                                              {"kv_cache_quant_algo", std::move(kv_cache)},
                                              {"group_size", JsonValue::integer(kNvfp4BlockSize)},
                                              {"exclude_modules", string_array(exclude_modules)}});
  return to_json(JsonValue::object({{"producer", producer(producer_version)},
                                    {"quantization", std::move(quantization)}})) +
         "\n";
}

Result<std::string> quantized_config_json(std::string_view source, std::string_view where,
                                          std::span<const std::string> exclude_modules,
                                          std::string_view producer_version, bool fp8_kv_cache) {
  JsonValue config = NIBBLE_TRY(parse_json(source, where));
  if (config.as_object() == nullptr) {
    return corrupt(fmt::format("{} is {}, expected an object", where, config.kind_name()));
  }
  JsonValue group =
      JsonValue::object({{"input_activations", nvfp4_operand()},
                         {"weights", nvfp4_operand()},
                         {"targets", JsonValue::array({JsonValue::string("Linear")})}});
  JsonValue kv_cache = JsonValue::object({{"dynamic", JsonValue::boolean(false)},
                                          {"num_bits", JsonValue::integer(8)},
                                          {"type", JsonValue::string("float")}});
  if (!fp8_kv_cache) kv_cache = JsonValue();
  config.set(
      "quantization_config",
      JsonValue::object({{"config_groups", JsonValue::object({{"group_0", std::move(group)}})},
                         {"ignore", string_array(exclude_modules)},
                         {"quant_algo", JsonValue::string("NVFP4")},
                         {"kv_cache_scheme", std::move(kv_cache)},
                         {"producer", producer(producer_version)},
                         {"quant_method", JsonValue::string("modelopt")}}));
  return to_json(config) + "\n";
}

std::string index_json(const ConversionPlan& plan) {
  std::map<std::string, std::string> sorted;
  for (const ConversionJob& job : plan.jobs) {
    for (const TensorInfo& output : job.outputs) sorted.emplace(output.name, output.shard);
  }
  JsonValue::Object weight_map;
  for (auto& [name, shard] : sorted) weight_map.emplace_back(name, JsonValue::string(shard));
  JsonValue metadata = JsonValue::object(
      {{"total_size", JsonValue::integer(static_cast<int64_t>(plan.output_bytes))}});
  return to_json(JsonValue::object({{"metadata", std::move(metadata)},
                                    {"weight_map", JsonValue::object(std::move(weight_map))}})) +
         "\n";
}

Result<std::vector<std::string>> companion_files(const fs::path& directory) {
  std::vector<std::string> names;
  std::error_code error;
  for (fs::directory_iterator it(directory, error), end; !error && it != end; it.increment(error)) {
    std::error_code ignored;
    const std::string name = it->path().filename().string();
    if (is_companion(name) && it->is_regular_file(ignored)) names.push_back(name);
  }
  if (error) {
    return unavailable(fmt::format("cannot list {}: {}", directory.string(), error.message()));
  }
  std::sort(names.begin(), names.end());
  return names;
}

}  // namespace nibble
