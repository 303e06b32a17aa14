// Rules: nvfp4.md sections 5.1 and 5.2.
#include "nibble/checkpoint/quant_config.h"

#include <fmt/format.h>

#include "nibble/base/error.h"
#include "nibble/base/mapped_file.h"
#include "nibble/checkpoint/json.h"

namespace nibble {
namespace {

constexpr const char* kSupported =
    "supported are NVFP4 in Model Optimizer's layout (group_size 16), DeepSeek's fp8 with "
    "weight_block_size [128, 128], and BF16";

// The member as a string; empty when missing or null.
Result<std::string> optional_string(const JsonValue& json, std::string_view name,
                                    std::string_view where) {
  const JsonValue* value = json.find(name);
  if (value == nullptr || value->is_null()) return std::string();
  if (value->as_string() == nullptr) {
    return corrupt(
        fmt::format("{}: {} is {}, expected a string", where, name, to_json(*value, -1)));
  }
  return *value->as_string();
}

Result<std::vector<std::string>> string_list(const JsonValue& json, std::string_view name,
                                             std::string_view where) {
  std::vector<std::string> strings;
  const JsonValue* value = json.find(name);
  if (value == nullptr || value->is_null()) return strings;
  if (value->as_array() == nullptr) {
    return corrupt(fmt::format("{}: {} is {}, expected a list", where, name, value->kind_name()));
  }
  for (const JsonValue& item : *value->as_array()) {
    if (item.as_string() == nullptr) {
      return corrupt(
          fmt::format("{}: {} holds {}, expected strings", where, name, to_json(item, -1)));
    }
    strings.push_back(*item.as_string());
  }
  return strings;
}

Status check_group_size(const JsonValue& json, std::string_view where) {
  const JsonValue* value = json.find("group_size");
  if (value == nullptr || value->is_null()) return {};
  if (value->as_integer() == nullptr || *value->as_integer() != 16) {
    return unsupported(fmt::format("{}: group_size {} is not supported for NVFP4, only 16", where,
                                   to_json(*value, -1)));
  }
  return {};
}

Status check_algo(const std::string& algo, std::string_view where) {
  if (algo == "NVFP4") return {};
  return unsupported(
      fmt::format("{}: quant_algo '{}' is not supported; {}", where, algo, kSupported));
}

// MIXED_PRECISION lists each module's algorithm; it is plain NVFP4 when all of them say that.
Status check_mixed(const JsonValue& json, std::string_view where) {
  const JsonValue* layers = json.find("quantized_layers");
  if (layers == nullptr || layers->as_object() == nullptr || layers->as_object()->empty()) {
    return unsupported(fmt::format(
        "{}: quant_algo 'MIXED_PRECISION' without quantized_layers is not supported; {}", where,
        kSupported));
  }
  for (const auto& [module, entry] : *layers->as_object()) {
    const std::string module_where = fmt::format("{}: quantized_layers {}", where, module);
    const std::string algo = NIBBLE_TRY(optional_string(entry, "quant_algo", module_where));
    if (algo != "NVFP4") {
      return unsupported(
          fmt::format("{}: quant_algo 'MIXED_PRECISION' is supported only when every layer is "
                      "NVFP4, but {} is '{}'",
                      where, module, algo));
    }
    NIBBLE_TRY(check_group_size(entry, module_where));
  }
  return {};
}

Status read_kv_cache_algo(const JsonValue& json, std::string_view where, QuantConfig& config) {
  std::string algo = NIBBLE_TRY(optional_string(json, "kv_cache_quant_algo", where));
  if (!algo.empty() && algo != "FP8") {
    return unsupported(fmt::format(
        "{}: kv_cache_quant_algo '{}' is not supported, only FP8 or none", where, algo));
  }
  config.kv_cache_quant_algo = std::move(algo);
  return {};
}

// {"name": "modelopt", "version": "0.34.1.dev3"} -> "modelopt 0.34.1.dev3".
std::string producer_text(const JsonValue& json) {
  const JsonValue* producer = json.find("producer");
  if (producer == nullptr) return {};
  std::string text;
  for (const char* name : {"name", "version"}) {
    const JsonValue* part = producer->find(name);
    if (part == nullptr || part->as_string() == nullptr) continue;
    if (!text.empty()) text += ' ';
    text += *part->as_string();
  }
  return text;
}

Result<QuantConfig> parse_hf_quant_config(const JsonValue& json, std::string_view where) {
  const JsonValue* quantization = json.find("quantization");
  if (quantization == nullptr || quantization->as_object() == nullptr) {
    return corrupt(fmt::format("{}: quantization is {}, expected an object", where,
                               quantization == nullptr ? "missing" : quantization->kind_name()));
  }
  QuantConfig config;
  config.source = "hf_quant_config.json";
  config.producer = producer_text(json);
  const std::string algo = NIBBLE_TRY(optional_string(*quantization, "quant_algo", where));
  if (algo == "MIXED_PRECISION") {
    NIBBLE_TRY(check_mixed(*quantization, where));
    config.algo = QuantAlgo::kNvfp4;
  } else if (!algo.empty()) {
    NIBBLE_TRY(check_algo(algo, where));
    NIBBLE_TRY(check_group_size(*quantization, where));
    config.algo = QuantAlgo::kNvfp4;
  }
  NIBBLE_TRY(read_kv_cache_algo(*quantization, where, config));
  config.exclude_modules = NIBBLE_TRY(string_list(*quantization, "exclude_modules", where));
  return config;
}

// weights of a config group: {"num_bits": 4, "type": "float", "group_size": 16}.
Status check_group_weights(const JsonValue& group, std::string_view where) {
  const JsonValue* weights = group.find("weights");
  if (weights == nullptr) return {};
  const JsonValue* bits = weights->find("num_bits");
  const JsonValue* type = weights->find("type");
  const bool is_fp4 = bits != nullptr && bits->as_integer() != nullptr &&
                      *bits->as_integer() == 4 && type != nullptr && type->as_string() != nullptr &&
                      *type->as_string() == "float";
  if (!is_fp4) {
    return unsupported(fmt::format("{}: weights {} are not supported; {}", where,
                                   to_json(*weights, -1), kSupported));
  }
  return check_group_size(*weights, where);
}

// Form (b): quantization_config with quant_method "modelopt".
Result<QuantConfig> parse_unified(const JsonValue& json, std::string_view where) {
  QuantConfig config;
  config.source = "config.json";
  config.algo = QuantAlgo::kNvfp4;
  config.producer = producer_text(json);
  const std::string algo = NIBBLE_TRY(optional_string(json, "quant_algo", where));
  const JsonValue* groups = json.find("config_groups");
  if (algo == "MIXED_PRECISION") {
    NIBBLE_TRY(check_mixed(json, where));
  } else if (!algo.empty() || groups == nullptr) {
    NIBBLE_TRY(check_algo(algo, where));
  }
  if (groups != nullptr && groups->as_object() != nullptr) {
    for (const auto& [name, group] : *groups->as_object()) {
      NIBBLE_TRY(check_group_weights(group, fmt::format("{}: config_groups {}", where, name)));
    }
  }
  NIBBLE_TRY(check_group_size(json, where));
  config.exclude_modules = NIBBLE_TRY(string_list(json, "ignore", where));
  if (config.exclude_modules.empty()) {
    config.exclude_modules = NIBBLE_TRY(string_list(json, "exclude_modules", where));
  }

  const JsonValue* kv_cache = json.find("kv_cache_scheme");
  if (kv_cache != nullptr && !kv_cache->is_null()) {
    const JsonValue* bits = kv_cache->find("num_bits");
    const JsonValue* type = kv_cache->find("type");
    const bool is_fp8 = bits != nullptr && bits->as_integer() != nullptr &&
                        *bits->as_integer() == 8 && type != nullptr &&
                        type->as_string() != nullptr && *type->as_string() == "float";
    if (!is_fp8) {
      return unsupported(
          fmt::format("{}: kv_cache_scheme {} is not supported, only FP8 (num_bits "
                      "8, type float) or none",
                      where, to_json(*kv_cache, -1)));
    }
    config.kv_cache_quant_algo = "FP8";
  } else {
    NIBBLE_TRY(read_kv_cache_algo(json, where, config));
  }
  return config;
}

// Form (a): DeepSeek's {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]}.
Result<QuantConfig> parse_fp8(const JsonValue& json, std::string_view where) {
  const std::string format = NIBBLE_TRY(optional_string(json, "fmt", where));
  if (!format.empty() && format != "e4m3") {
    return unsupported(fmt::format("{}: fmt '{}' is not supported, only 'e4m3'", where, format));
  }
  const JsonValue* block = json.find("weight_block_size");
  const std::string found = block == nullptr ? "missing" : to_json(*block, -1);
  if (found != "[128,128]") {
    return unsupported(
        fmt::format("{}: weight_block_size is {}; only [128, 128] is supported", where, found));
  }
  QuantConfig config;
  config.source = "config.json";
  config.algo = QuantAlgo::kFp8Block;
  return config;
}

Result<QuantConfig> parse_quantization_config(const JsonValue& json, std::string_view where,
                                              bool has_nvfp4) {
  if (json.as_object() == nullptr) {
    return corrupt(fmt::format("{} is {}, expected an object", where, json.kind_name()));
  }
  const std::string method = NIBBLE_TRY(optional_string(json, "quant_method", where));
  if (method.starts_with("modelopt")) return parse_unified(json, where);
  if (method == "fp8" && has_nvfp4) {
    QuantConfig config;
    config.algo = QuantAlgo::kNvfp4;
    config.source = "the weights' dtypes";
    config.warnings.push_back(
        fmt::format("{} says fp8, but the weights are NVFP4: it is stale and ignored", where));
    return config;
  }
  if (method == "fp8") return parse_fp8(json, where);
  return unsupported(
      fmt::format("{}: quant_method '{}' is not supported; {}", where, method, kSupported));
}

}  // namespace

Result<QuantConfig> load_quant_config(const std::filesystem::path& directory, bool has_nvfp4) {
  const auto config_path = directory / "config.json";
  const auto hf_path = directory / "hf_quant_config.json";
  std::error_code ignored;

  JsonValue quantization;  // config.json's quantization_config, or null
  const std::string where = fmt::format("{}: quantization_config", config_path.string());
  if (std::filesystem::exists(config_path, ignored)) {
    const std::string text = NIBBLE_TRY(read_text_file(config_path));
    const JsonValue json = NIBBLE_TRY(parse_json(text, config_path.string()));
    if (const JsonValue* found = json.find("quantization_config")) quantization = *found;
  }
  if (std::filesystem::exists(hf_path, ignored)) {
    const std::string text = NIBBLE_TRY(read_text_file(hf_path));
    const JsonValue json = NIBBLE_TRY(parse_json(text, hf_path.string()));
    QuantConfig config = NIBBLE_TRY(parse_hf_quant_config(json, hf_path.string()));
    const JsonValue* method = quantization.find("quant_method");
    if (method != nullptr && method->as_string() != nullptr && *method->as_string() == "fp8" &&
        config.algo == QuantAlgo::kNvfp4) {
      config.warnings.push_back(
          fmt::format("{} says fp8, but {} says NVFP4: the first is stale "
                      "and ignored",
                      where, hf_path.string()));
    }
    return config;
  }
  if (!quantization.is_null()) return parse_quantization_config(quantization, where, has_nvfp4);
  QuantConfig config;
  config.source = "the weights' dtypes";
  if (has_nvfp4) {
    config.algo = QuantAlgo::kNvfp4;
    config.warnings.push_back(
        fmt::format("the weights are NVFP4, but neither {} nor config.json says so",
                    hf_path.filename().string()));
  }
  return config;
}

namespace {

// Length of the bracket expression at pattern[0] == '[', 0 when it has no end (a literal then), and
// whether it matches c. As Python's fnmatch: "!" negates, "-" makes ranges, "]" may come first.
size_t match_bracket(std::string_view pattern, char c, bool* matches) {
  size_t i = 1;
  const bool negated = i < pattern.size() && pattern[i] == '!';
  if (negated) ++i;
  const size_t end = pattern.find(']', i + 1);
  if (end == std::string_view::npos) return 0;
  bool found = false;
  while (i < end) {
    if (i + 2 < end && pattern[i + 1] == '-') {
      found = found || (pattern[i] <= c && c <= pattern[i + 2]);
      i += 3;
    } else {
      found = found || pattern[i] == c;
      ++i;
    }
  }
  *matches = found != negated;
  return end + 1;
}

// Without recursion: after a mismatch only the last '*' takes one more character, which suffices,
// so a hostile pattern costs pattern * text steps at most.
bool wildcard_match(std::string_view pattern, std::string_view text) {
  size_t p = 0;
  size_t t = 0;
  size_t star = std::string_view::npos;
  size_t star_text = 0;
  while (t < text.size()) {
    size_t step = 0;
    bool matches = false;
    if (p < pattern.size()) {
      if (pattern[p] == '*') {
        star = p++;
        star_text = t;
        continue;
      }
      if (pattern[p] == '[') step = match_bracket(pattern.substr(p), text[t], &matches);
      if (step == 0) {
        step = 1;
        matches = pattern[p] == '?' || pattern[p] == text[t];
      }
    }
    if (matches) {
      p += step;
      ++t;
    } else if (star != std::string_view::npos) {
      p = star + 1;
      t = ++star_text;
    } else {
      return false;
    }
  }
  while (p < pattern.size() && pattern[p] == '*') ++p;
  return p == pattern.size();
}

}  // namespace

bool is_excluded(const QuantConfig& config, std::string_view module) {
  for (const std::string& pattern : config.exclude_modules) {
    if (wildcard_match(pattern, module)) return true;
  }
  return false;
}

}  // namespace nibble
