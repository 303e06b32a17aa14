#include "nibble/quantize/convert_config.h"

#include <fmt/format.h>

#include "nibble/base/error.h"
#include "nibble/checkpoint/json.h"
#include "nibble/checkpoint/quant_config.h"
#include "nibble/numeric/nvfp4.h"
#include "nibble/quantize/config_files.h"

namespace nibble {
namespace {

JsonValue text(std::string_view value) { return JsonValue::string(std::string(value)); }

// DeepSeek's own, form (a) of the format's description.
JsonValue fp8_config() {
  return JsonValue::object({{"activation_scheme", text("dynamic")},
                            {"fmt", text("e4m3")},
                            {"quant_method", text("fp8")},
                            {"weight_block_size", JsonValue::array({JsonValue::integer(128),
                                                                    JsonValue::integer(128)})}});
}

JsonValue packed_operand(JsonValue dynamic) {
  return JsonValue::object({{"num_bits", JsonValue::integer(4)},
                            {"type", text("float")},
                            {"strategy", text("tensor_group")},
                            {"group_size", JsonValue::integer(kNvfp4BlockSize)},
                            {"symmetric", JsonValue::boolean(true)},
                            {"dynamic", std::move(dynamic)}});
}

// "model.layers.61*" is "re:model\.layers\.61.*" there; without a wildcard a name is itself.
std::string to_ignore(const std::string& module) {
  if (module.find('*') == std::string::npos) return module;
  std::string pattern = "re:";
  for (const char c : module) {
    if (c == '.') pattern += '\\';
    if (c == '*') pattern += '.';
    pattern += c;
  }
  return pattern;
}

std::string from_ignore(const std::string& entry) {
  if (!entry.starts_with("re:")) return entry;
  std::string module;
  for (size_t i = 3; i < entry.size(); ++i) {
    if (entry[i] == '\\') continue;
    if (entry[i] == '.' && i + 1 < entry.size() && entry[i + 1] == '*') continue;
    module += entry[i];
  }
  return module;
}

Result<JsonValue> packed_config(const std::filesystem::path& source) {
  const QuantConfig config = NIBBLE_TRY(load_quant_config(source, true));
  JsonValue ignore = JsonValue::array();
  for (const std::string& module : config.exclude_modules)
    ignore.push_back(text(to_ignore(module)));
  JsonValue group = JsonValue::object({{"targets", JsonValue::array({text("Linear")})},
                                       {"weights", packed_operand(JsonValue::boolean(false))},
                                       {"input_activations", packed_operand(text("local"))},
                                       {"format", text("nvfp4-pack-quantized")}});
  return JsonValue::object({{"quant_method", text("compressed-tensors")},
                            {"format", text("nvfp4-pack-quantized")},
                            {"quantization_status", text("compressed")},
                            {"config_groups", JsonValue::object({{"group_0", std::move(group)}})},
                            {"ignore", std::move(ignore)}});
}

}  // namespace

Result<std::vector<std::pair<std::string, std::string>>> converted_configs(
    const std::filesystem::path& source, std::string_view config_text, ConvertFormat format) {
  const std::string where = (source / "config.json").string();
  JsonValue config = NIBBLE_TRY(parse_json(config_text, where));
  if (config.as_object() == nullptr) {
    return corrupt(fmt::format("{} is {}, expected an object", where, config.kind_name()));
  }
  std::vector<std::pair<std::string, std::string>> files;
  if (format == ConvertFormat::kModelOpt) {
    std::vector<std::string> excluded;
    const JsonValue* const old = config.find("quantization_config");
    const JsonValue* const ignore = old == nullptr ? nullptr : old->find("ignore");
    if (ignore != nullptr && ignore->as_array() != nullptr) {
      for (const JsonValue& entry : *ignore->as_array()) {
        if (entry.as_string() != nullptr) excluded.push_back(from_ignore(*entry.as_string()));
      }
    }
    std::string unified =
        NIBBLE_TRY(quantized_config_json(config_text, where, excluded, NIBBLE_VERSION));
    files.emplace_back("config.json", std::move(unified));
    files.emplace_back("hf_quant_config.json", hf_quant_config_json(excluded, NIBBLE_VERSION));
    return files;
  }
  if (format == ConvertFormat::kBf16) {
    config.remove("quantization_config");
  } else if (format == ConvertFormat::kFp8) {
    config.set("quantization_config", fp8_config());
  } else {
    JsonValue packed = NIBBLE_TRY(packed_config(source));
    config.set("quantization_config", std::move(packed));
  }
  files.emplace_back("config.json", to_json(config) + "\n");
  return files;
}

}  // namespace nibble
