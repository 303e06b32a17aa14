#include "nibble/checkpoint/inspection.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cstring>
#include <set>

#include "nibble/base/error.h"
#include "nibble/base/interrupt.h"
#include "nibble/base/text.h"
#include "nibble/checkpoint/finite_values.h"
#include "nibble/checkpoint/linear_tensors.h"
#include "nibble/checkpoint/name_patterns.h"

namespace nibble {
namespace {

constexpr std::string_view kLayerPrefix = "model.layers.";

// "model.layers.17.mlp..." -> 17 and "mlp..."; -1 for other names.
int64_t split_layer(std::string_view name, std::string_view* rest) {
  if (!name.starts_with(kLayerPrefix)) return -1;
  name.remove_prefix(kLayerPrefix.size());
  int64_t layer = -1;
  const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), layer);
  const auto digits = static_cast<size_t>(end - name.data());
  if (error != std::errc() || layer < 0 || digits >= name.size() || name[digits] != '.') return -1;
  *rest = name.substr(digits + 1);
  return layer;
}

// The layer that has an eh_proj: the MTP layer when the config can't tell.
int64_t find_mtp_layer(const CheckpointSource& source) {
  for (const TensorInfo& info : source.tensors()) {
    std::string_view rest;
    const int64_t layer = split_layer(info.name, &rest);
    if (layer >= 0 && rest == "eh_proj.weight") return layer;
  }
  return -1;
}

void summarize(Inspection& inspection, int64_t mtp_layer) {
  const SafetensorsSource& source = *inspection.source;
  for (const TensorInfo& info : source.tensors()) {
    const auto module_class = classify_tensor(info.name, mtp_layer);
    ClassSummary& summary =
        module_class ? inspection.classes[static_cast<size_t>(*module_class)] : inspection.other;
    const int64_t bytes = info.shape.num_elements() * dtype_size(info.dtype);
    const int64_t parameters = stored_parameters(source, info);
    for (ClassSummary* sum : {&summary, &inspection.total}) {
      sum->num_bytes += bytes;
      sum->num_parameters += parameters;
      if (is_scale_name(info.name)) continue;
      ++sum->num_weights;
      ++sum->formats[stored_format(source, info)];
    }
    if (is_scale_name(info.name)) ++inspection.num_scales;
    std::string_view rest;
    if (split_layer(info.name, &rest) >= 0 &&
        (rest == "embed_tokens.weight" || rest == "shared_head.head.weight")) {
      inspection.num_copied_parameters += parameters;
    }
  }
}

// Compares the files with what the config asks for.
class Comparison {
 public:
  Comparison(Inspection& inspection, bool values, bool show_progress)
      : inspection_(inspection),
        source_(*inspection.source),
        config_(*inspection.config),
        expected_(model_tensors(config_)),
        values_(values),
        progress_("checking values", std::max<uint64_t>(linear_bytes(), 1), Progress::Unit::kBytes,
                  show_progress && values) {}

  Status run() {
    const bool mtp_absent = is_mtp_absent();
    for (const ModelTensor& tensor : expected_) {
      NIBBLE_TRY(check_interrupt());
      if (mtp_absent && tensor.layer >= config_.num_hidden_layers) continue;
      check(tensor);
    }
    progress_.finish();
    check_shared_scales();
    if (mtp_absent) {
      problem(fmt::format(
          "the MTP layer {}{} is missing, but num_nextn_predict_layers is {}; 0 in config.json "
          "would do without it",
          kLayerPrefix, config_.num_hidden_layers, config_.num_nextn_predict_layers));
    }
    for (const std::string& line : summarize_names(missing_)) problem("missing: " + line);
    find_unexpected();
    for (const std::string& line : summarize_names(excluded_)) {
      problem(fmt::format("{} is NVFP4, although {} excludes it", line, inspection_.quant->source));
    }
    for (const std::string& line : summarize_names(not_excluded_)) {
      problem(fmt::format("{} is not NVFP4, although {} does not exclude it", line,
                          inspection_.quant->source));
    }
    return {};
  }

 private:
  void problem(std::string text) { inspection_.problems.push_back(std::move(text)); }

  // Stored bytes of all linears, scales aside: what the progress counts.
  uint64_t linear_bytes() const {
    int64_t bytes = 0;
    for (const ModelTensor& tensor : expected_) {
      const TensorInfo* info = tensor.is_linear ? source_.find(tensor.name) : nullptr;
      if (info != nullptr) bytes += info->shape.num_elements() * dtype_size(info->dtype);
    }
    return static_cast<uint64_t>(bytes);
  }

  bool is_mtp_absent() const {
    if (config_.num_nextn_predict_layers == 0) return false;
    return std::none_of(source_.tensors().begin(), source_.tensors().end(), [&](const auto& info) {
      std::string_view rest;
      return split_layer(info.name, &rest) == config_.num_hidden_layers;
    });
  }

  // The names beside a linear's weight, in any layout that is read or refused by name.
  void expect_scales(const std::string& module) {
    for (const char* suffix :
         {".weight_packed", ".weight_scale", ".weight_scale_2", ".weight_scale_inv", ".input_scale",
          ".pre_quant_scale", ".weight_global_scale", ".input_global_scale"}) {
      known_.insert(module + suffix);
    }
  }

  void check(const ModelTensor& tensor) {
    const TensorInfo* info = source_.find(tensor.name);
    if (tensor.is_linear) expect_scales(std::string(tensor.module()));
    const bool repacked = tensor.is_linear &&
                          source_.find(std::string(tensor.module()) + ".weight_packed") != nullptr;
    if (info == nullptr && !repacked) {
      if (!tensor.is_optional) missing_.push_back(tensor.name);
      return;
    }
    known_.insert(tensor.name);
    if (tensor.is_linear) return check_linear(tensor);
    if (info->dtype != DType::kBf16 && info->dtype != DType::kF32) {
      problem(fmt::format("{} in {} has dtype {}, expected {}", info->name, info->shard,
                          dtype_name(info->dtype), tensor.is_f32 ? "F32" : "BF16 or F32"));
    }
    if (info->shape != tensor.shape) {
      return problem(fmt::format("{} in {} has shape {}, expected {}", info->name, info->shard,
                                 info->shape.to_string(), tensor.shape.to_string()));
    }
    if (values_ && tensor.shape.rank() == 1) {
      const auto view = source_.read(info->name);
      const Status finite = check_finite(*info, *view);
      if (!finite) problem(finite.error().message);
    }
  }

  // The block scales that an FP8 or 4-bit weight has lost with a shard, or "" when it has some. As
  // missing tensors, thousands of them become a line.
  std::string missing_scale(const std::string& module) const {
    const TensorInfo* weight = source_.find(module + ".weight");
    if (weight == nullptr) return "";
    for (const char* suffix : {".weight_scale", ".weight_scale_inv"}) {
      if (source_.find(module + suffix) != nullptr) return "";
    }
    if (weight->dtype == DType::kF8E4m3) return module + ".weight_scale_inv";
    return weight->dtype == DType::kU8 ? module + ".weight_scale" : "";
  }

  void check_linear(const ModelTensor& tensor) {
    const std::string module(tensor.module());
    if (const std::string scale = missing_scale(module); !scale.empty()) {
      return missing_.push_back(scale);
    }
    const auto format = check_linear_shapes(source_, module, tensor.shape[0], tensor.shape[1]);
    if (!format) return problem(format.error().message);
    // What does not belong to the format found is left over from another one.
    if (*format != WeightFormat::kFp8Block) known_.erase(module + ".weight_scale_inv");
    if (*format != WeightFormat::kNvfp4) {
      for (const char* suffix : {".weight_scale", ".weight_scale_2", ".input_scale"}) {
        known_.erase(module + suffix);
      }
    }
    cross_check(module, *format);
    if (values_) {
      const auto linear = read_linear(source_, module, tensor.shape[0], tensor.shape[1]);
      if (!linear) problem(linear.error().message);
      if (linear && *format == WeightFormat::kNvfp4) global_scales_[module] = *linear;
      progress_.add(linear ? linear->weight.bytes.size() : 0);
      release_linear(source_, module);
    }
  }

  // The exclusion list says which linears are not NVFP4 (nvfp4.md section 5). A stale or missing
  // quantization config has no list.
  void cross_check(const std::string& module, WeightFormat format) {
    const auto& quant = inspection_.quant;
    if (!quant || quant->algo != QuantAlgo::kNvfp4 || quant->exclude_modules.empty()) return;
    const bool excluded = is_excluded(*quant, module);
    if (format == WeightFormat::kNvfp4 && excluded) excluded_.push_back(module);
    if (format != WeightFormat::kNvfp4 && !excluded) not_excluded_.push_back(module);
  }

  // gate_proj and up_proj of one MLP share their scales (nvfp4.md section 4); a loader can keep
  // two.
  void check_shared_scales() {
    std::vector<std::string> unequal;
    for (const auto& [module, gate] : global_scales_) {
      if (!module.ends_with(".gate_proj")) continue;
      const auto up = global_scales_.find(module.substr(0, module.size() - 9) + "up_proj");
      if (up == global_scales_.end()) continue;
      if (gate.global_scale != up->second.global_scale ||
          gate.input_scale != up->second.input_scale) {
        unequal.push_back(module);
      }
    }
    for (const std::string& line : summarize_names(unequal)) {
      inspection_.warnings.push_back(
          fmt::format("{} has another weight_scale_2 or input_scale than its up_proj", line));
    }
  }

  void find_unexpected() {
    std::vector<std::string> unexpected;
    std::vector<std::string> ignored;
    for (const TensorInfo& info : source_.tensors()) {
      if (known_.contains(info.name)) continue;
      std::string_view rest;
      const int64_t layer = split_layer(info.name, &rest);
      const int64_t num_layers = config_.num_hidden_layers + config_.num_nextn_predict_layers;
      if (rest == "self_attn.k_proj.k_scale" || rest == "self_attn.v_proj.v_scale") {
        check_kv_scale(info);
      } else if (rest == "self_attn.rotary_emb.inv_freq" ||
                 (config_.num_nextn_predict_layers == 0 && layer == num_layers)) {
        ignored.push_back(info.name);
      } else {
        unexpected.push_back(info.name);
      }
    }
    for (const std::string& line : summarize_names(unexpected)) problem("unexpected: " + line);
    for (const std::string& line : summarize_names(ignored)) {
      inspection_.warnings.push_back("not used: " + line);
    }
  }

  // The latent cache is stored without scaling, so only 1 can be honoured.
  void check_kv_scale(const TensorInfo& info) {
    if (info.dtype != DType::kF32 || info.shape.num_elements() != 1) {
      return problem(fmt::format("{} in {} is {} {}, expected F32 []", info.name, info.shard,
                                 dtype_name(info.dtype), info.shape.to_string()));
    }
    const auto view = source_.read(info.name);
    float value = 0;
    std::memcpy(&value, view->bytes.data(), sizeof value);
    if (value != 1.0F) {
      problem(fmt::format("{} is {}; only 1 is supported for the KV cache", info.name, value));
    }
  }

  Inspection& inspection_;
  const SafetensorsSource& source_;
  const ModelConfig& config_;
  std::vector<ModelTensor> expected_;
  bool values_;
  Progress progress_;
  std::set<std::string, std::less<>> known_;
  std::vector<std::string> missing_;
  std::vector<std::string> excluded_;
  std::vector<std::string> not_excluded_;
  std::map<std::string, LinearTensors> global_scales_;  // only their scalars are used
};

void check_quant_config(Inspection& inspection, const std::filesystem::path& directory) {
  const bool nvfp4 = has_nvfp4_weights(*inspection.source);
  auto quant = load_quant_config(directory, nvfp4);
  if (!quant) {
    inspection.problems.push_back(quant.error().message);
    return;
  }
  for (std::string& warning : quant->warnings) inspection.warnings.push_back(warning);
  const auto formats = inspection.total.formats;
  if (quant->algo == QuantAlgo::kNvfp4 && !nvfp4 && !formats.empty()) {
    inspection.problems.push_back(
        fmt::format("{} says NVFP4, but no weight is (U8 with weight_scale)", quant->source));
  }
  if (quant->algo == QuantAlgo::kFp8Block && !formats.contains("FP8") && !formats.empty()) {
    inspection.warnings.push_back(
        fmt::format("{} says fp8, but no weight is F8_E4M3 with weight_scale_inv", quant->source));
  }
  if (quant->algo == QuantAlgo::kNone && formats.contains("FP8")) {
    inspection.warnings.push_back(
        "the weights are FP8, but config.json has no quantization_config");
  }
  inspection.quant = *std::move(quant);
}

}  // namespace

bool is_scale_name(std::string_view name) {
  for (const char* suffix :
       {".weight_scale", ".weight_scale_2", ".weight_scale_inv", ".input_scale", ".pre_quant_scale",
        ".k_scale", ".v_scale", ".weight_global_scale", ".input_global_scale"}) {
    if (name.ends_with(suffix)) return true;
  }
  return false;
}

std::optional<ModuleClass> classify_tensor(std::string_view name, int64_t mtp_layer) {
  if (name.starts_with("model.embed_tokens.")) return ModuleClass::kEmbedding;
  if (name.starts_with("lm_head.")) return ModuleClass::kHead;
  if (name == "model.norm.weight") return ModuleClass::kNorm;
  std::string_view rest;
  const int64_t layer = split_layer(name, &rest);
  if (layer < 0) return std::nullopt;
  if (layer == mtp_layer) return ModuleClass::kMtp;
  constexpr std::array<std::pair<std::string_view, ModuleClass>, 15> kPrefixes = {{
      {"self_attn.q_a_proj.", ModuleClass::kQAProj},
      {"self_attn.q_b_proj.", ModuleClass::kQBProj},
      {"self_attn.kv_a_proj_with_mqa.", ModuleClass::kKvAProj},
      {"self_attn.kv_b_proj.", ModuleClass::kKvBProj},
      {"self_attn.k_proj.k_scale", ModuleClass::kKvBProj},
      {"self_attn.v_proj.v_scale", ModuleClass::kKvBProj},
      {"self_attn.o_proj.", ModuleClass::kOProj},
      {"self_attn.q_a_layernorm.", ModuleClass::kNorm},
      {"self_attn.kv_a_layernorm.", ModuleClass::kNorm},
      {"input_layernorm.", ModuleClass::kNorm},
      {"post_attention_layernorm.", ModuleClass::kNorm},
      {"mlp.shared_experts.", ModuleClass::kSharedExperts},
      {"mlp.experts.", ModuleClass::kRoutedExperts},
      {"mlp.gate.", ModuleClass::kRouter},
      {"mlp.", ModuleClass::kDenseMlp},  // after the longer ones
  }};
  for (const auto& [prefix, module_class] : kPrefixes) {
    if (rest.starts_with(prefix)) return module_class;
  }
  return std::nullopt;
}

std::string stored_format(const CheckpointSource& source, const TensorInfo& weight) {
  if (weight.dtype == DType::kU8 && source.find(weight.name + "_scale") != nullptr) return "NVFP4";
  if (weight.dtype == DType::kF8E4m3 && source.find(weight.name + "_scale_inv") != nullptr) {
    return "FP8";
  }
  return std::string(dtype_name(weight.dtype));
}

int64_t stored_parameters(const CheckpointSource& source, const TensorInfo& info) {
  if (is_scale_name(info.name)) return 0;
  return info.shape.num_elements() * (stored_format(source, info) == "NVFP4" ? 2 : 1);
}

Result<Inspection> inspect_checkpoint(const std::filesystem::path& path, CheckValues check_values,
                                      bool show_progress) {
  std::error_code ignored;
  if (!std::filesystem::exists(path, ignored)) {
    return not_found(fmt::format("{} does not exist", path.string()));
  }
  const bool is_directory = std::filesystem::is_directory(path, ignored);
  Inspection inspection;
  std::vector<Error> errors;
  inspection.source = SafetensorsSource::open_damaged(path, errors);
  for (Error& error : errors) inspection.problems.push_back(std::move(error.message));
  inspection.warnings = inspection.source->warnings();

  if (is_directory) {
    auto config = load_config(path);
    if (config) {
      inspection.config = *std::move(config);
      if (inspection.config->eos_token_ids.empty()) {
        inspection.warnings.emplace_back(
            "neither config.json nor generation_config.json has an "
            "eos_token_id: answers end at their length limit");
      }
    } else {
      inspection.problems.push_back(std::move(config).error().message);
    }
  } else {
    inspection.warnings.emplace_back("a single file: not compared with a config.json");
  }
  int64_t mtp_layer = find_mtp_layer(*inspection.source);
  if (inspection.config) {
    mtp_layer = inspection.config->num_nextn_predict_layers > 0
                    ? inspection.config->num_hidden_layers
                    : mtp_layer;
  }
  summarize(inspection, mtp_layer);
  if (is_directory) check_quant_config(inspection, path);
  if (inspection.config && !inspection.source->tensors().empty()) {
    const bool values =
        check_values == CheckValues::kYes ||
        (check_values == CheckValues::kAuto && inspection.total.num_bytes <= kAutoCheckBytes);
    inspection.values_checked = values;
    NIBBLE_TRY(Comparison(inspection, values, show_progress).run());
  }
  return inspection;
}

}  // namespace nibble
