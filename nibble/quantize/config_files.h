// The small files of a quantized checkpoint: config.json, hf_quant_config.json, the index, and
// those that are copied.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/base/result.h"
#include "nibble/quantize/conversion_plan.h"

namespace nibble {

// hf_quant_config.json as NVIDIA Model Optimizer lays it out: quant_algo NVFP4, kv_cache_quant_algo
// FP8 (or null), group_size 16. `producer_version` is this program's.
std::string hf_quant_config_json(std::span<const std::string> exclude_modules,
                                 std::string_view producer_version, bool fp8_kv_cache = true);

// `source` (a config.json) with its quantization_config replaced by Model Optimizer's unified form,
// which says the same as hf_quant_config.json; all other members stay, in their order.
// Errors: kCorrupt for malformed JSON, naming `where`.
Result<std::string> quantized_config_json(std::string_view source, std::string_view where,
                                          std::span<const std::string> exclude_modules,
                                          std::string_view producer_version,
                                          bool fp8_kv_cache = true);

// model.safetensors.index.json: every tensor with its shard, metadata.total_size in bytes.
std::string index_json(const ConversionPlan& plan);

// The files of `directory` that go with the model whatever its format, by name, sorted: tokenizer,
// generation settings, chat template, Python files that config.json's auto_map may name, licence.
Result<std::vector<std::string>> companion_files(const std::filesystem::path& directory);

}  // namespace nibble
