#include "nibble/quantize/conversion_plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <limits>
#include <unordered_set>

#include "nibble/base/check.h"
#include "nibble/base/error.h"
#include "nibble/checkpoint/model_tensors.h"
#include "nibble/numeric/fp8_block.h"
#include "nibble/numeric/nvfp4.h"

namespace nibble {
namespace {

constexpr std::string_view kWeight = ".weight";
constexpr std::string_view kScaleInv = ".weight_scale_inv";

bool is_digit(char c) { return c >= '0' && c <= '9'; }

uint64_t tensor_bytes(const TensorInfo& info) {
  return static_cast<uint64_t>(info.shape.num_elements() * dtype_size(info.dtype));
}

std::string describe(const TensorInfo& info) {
  return info.shard.empty() ? info.name : fmt::format("{}: {}", info.shard, info.name);
}

// The order of a forward pass: embeddings, layers by number, then what follows them.
std::pair<int, std::string_view> model_order(std::string_view name) {
  const int layer = layer_of(name);
  if (layer >= 0) return {layer, name};
  if (name.starts_with("model.embed_tokens")) return {-1, name};
  return {std::numeric_limits<int>::max(), name};
}

bool model_less(std::string_view a, std::string_view b) {
  const auto [layer_a, name_a] = model_order(a);
  const auto [layer_b, name_b] = model_order(b);
  return layer_a != layer_b ? layer_a < layer_b : natural_less(name_a, name_b);
}

// Collects the jobs of a plan; holds what more than one of its steps needs.
class Planner {
 public:
  Planner(const CheckpointSource& source, const ModelConfig& config, const QuantizeRecipe& recipe)
      : source_(source), config_(config), recipe_(recipe) {
    const auto tensors = source.tensors();
    has_mtp_ = std::any_of(tensors.begin(), tensors.end(), [&](const TensorInfo& info) {
      return layer_of(info.name) >= config.num_hidden_layers;
    });
  }

  Result<ConversionPlan> run(uint64_t shard_bytes, bool kv_scales) {
    NIBBLE_TRY(refuse_quantized_source());
    NIBBLE_TRY(check_complete());
    auto groups = NIBBLE_TRY(quantized_groups(config_, recipe_));
    for (LinearGroup& group : groups) {
      const bool is_mtp = layer_of(group.front().module) >= config_.num_hidden_layers;
      if (!is_mtp || has_mtp_) NIBBLE_TRY(add_quantize_job(std::move(group)));
    }
    if (kv_scales) add_kv_scales();
    for (const TensorInfo& info : source_.tensors()) NIBBLE_TRY(add_remaining(info));
    std::stable_sort(plan_.jobs.begin(), plan_.jobs.end(),
                     [](const ConversionJob& a, const ConversionJob& b) {
                       return model_less(a.outputs.front().name, b.outputs.front().name);
                     });
    assign_shards(shard_bytes);
    plan_.num_source_tensors = static_cast<int64_t>(source_.tensors().size());
    return std::move(plan_);
  }

 private:
  Status refuse_quantized_source() const {
    for (const TensorInfo& info : source_.tensors()) {
      if (info.name.ends_with(".weight_scale") || info.name.ends_with(".weight_scale_2") ||
          info.name.ends_with(".weight_packed")) {
        return unsupported(fmt::format(
            "{}: the checkpoint is quantized to 4 bits already, expected FP8 or BF16 weights",
            describe(info)));
      }
    }
    return {};
  }

  // Every tensor that config.json implies has to be there in its shape. A source may come without
  // its MTP layer, as some conversions leave it out, but not with a part of it.
  Status check_complete() {
    for (const ModelTensor& expected : model_tensors(config_)) {
      known_.emplace(expected.module());
      const TensorInfo* const found = source_.find(expected.name);
      if (found == nullptr) {
        if (expected.is_optional || (expected.module_class == ModuleClass::kMtp && !has_mtp_))
          continue;
        return not_found(fmt::format("tensor {} is missing, config.json implies it with shape {}",
                                     expected.name, expected.shape.to_string()));
      }
      if (found->shape != expected.shape) {
        return corrupt(fmt::format("{} has shape {}, expected {}", describe(*found),
                                   found->shape.to_string(), expected.shape.to_string()));
      }
    }
    return {};
  }

  // Checks one matrix's type and, for FP8, its scales; adds both to the job's source bytes.
  Status add_source(const LinearSpec& linear, ConversionJob* job) {
    const TensorInfo* const weight = source_.find(linear.module + std::string(kWeight));
    NIBBLE_CHECK(weight != nullptr && weight->shape == Shape({linear.rows, linear.cols}));
    job->source_bytes += tensor_bytes(*weight);
    if (weight->dtype == DType::kBf16 || weight->dtype == DType::kF32) return {};
    if (weight->dtype != DType::kF8E4m3) {
      return unsupported(fmt::format("{} has type {}, expected F8_E4M3, BF16 or F32",
                                     describe(*weight), dtype_name(weight->dtype)));
    }
    const TensorInfo* const scale = source_.find(linear.module + std::string(kScaleInv));
    if (scale == nullptr) {
      return corrupt(fmt::format("{} is FP8, but {}{} is missing", describe(*weight), linear.module,
                                 kScaleInv));
    }
    const Shape blocks({num_fp8_blocks(linear.rows), num_fp8_blocks(linear.cols)});
    if (scale->dtype != DType::kF32 || scale->shape != blocks) {
      return corrupt(fmt::format("{} is {} {}, expected F32 {} for a matrix {}", describe(*scale),
                                 dtype_name(scale->dtype), scale->shape.to_string(),
                                 blocks.to_string(), weight->shape.to_string()));
    }
    job->source_bytes += tensor_bytes(*scale);
    plan_.source_is_fp8 = true;
    return {};
  }

  Status add_quantize_job(LinearGroup group) {
    ConversionJob job;
    job.kind = JobKind::kQuantize;
    for (const LinearSpec& linear : group) {
      NIBBLE_TRY(add_source(linear, &job));
      if (linear.cols % kNvfp4BlockSize != 0) {
        return invalid_argument(fmt::format("{} has {} columns, NVFP4 needs a multiple of {}",
                                            linear.module, linear.cols, kNvfp4BlockSize));
      }
      const auto add = [&](std::string_view suffix, DType dtype, Shape shape) {
        job.outputs.push_back({linear.module + std::string(suffix), dtype, std::move(shape), {}});
      };
      add(kWeight, DType::kU8, {linear.rows, linear.cols / 2});
      add(".weight_scale", DType::kF8E4m3, {linear.rows, linear.cols / kNvfp4BlockSize});
      add(".weight_scale_2", DType::kF32, {});
      add(".input_scale", DType::kF32, {});
      quantized_.insert(linear.module);
    }
    plan_.num_quantized_linears += static_cast<int64_t>(group.size());
    job.linears = std::move(group);
    add_job(std::move(job));
    return {};
  }

  // Any tensor of the source that no quantized group has taken.
  Status add_remaining(const TensorInfo& info) {
    const std::string_view name = info.name;
    if (name.ends_with(kScaleInv)) {
      const std::string module(name.substr(0, name.size() - kScaleInv.size()));
      const TensorInfo* const weight = source_.find(module + std::string(kWeight));
      if (weight != nullptr && weight->dtype == DType::kF8E4m3) return {};  // goes with its weight
      return corrupt(fmt::format("{} has no FP8 matrix {}{}", describe(info), module, kWeight));
    }
    if (name.ends_with(kWeight)) {
      const std::string module(name.substr(0, name.size() - kWeight.size()));
      if (quantized_.contains(module)) return {};
      NIBBLE_TRY(check_known(info, module));
      if (info.dtype == DType::kF8E4m3) return add_bf16_job(info, module);
    }
    if (info.dtype != DType::kBf16 && info.dtype != DType::kF32) {
      return unsupported(fmt::format(
          "{} has type {}, expected BF16 or F32{}", describe(info), dtype_name(info.dtype),
          name.ends_with(kWeight) ? ", or F8_E4M3 with weight_scale_inv" : ""));
    }
    ConversionJob job;
    job.tensor = info.name;
    job.source_bytes = tensor_bytes(info);
    job.outputs.push_back({info.name, info.dtype, info.shape, {}});
    add_job(std::move(job));
    return {};
  }

  // A projection of an MLP that config.json knows nothing of (an expert too many) would be left in
  // BF16 without a word otherwise.
  Status check_known(const TensorInfo& info, std::string_view module) const {
    const int layer = layer_of(module);
    if (layer < 0 || layer >= config_.num_hidden_layers) return {};
    if (known_.contains(std::string(module))) return {};  // left out by an override
    if (!module.ends_with(".gate_proj") && !module.ends_with(".up_proj") &&
        !module.ends_with(".down_proj")) {
      return {};
    }
    return corrupt(fmt::format(
        "{} is not part of a model with n_routed_experts = {} and first_k_dense_replace = {}, as "
        "config.json has it",
        describe(info), config_.n_routed_experts, config_.first_k_dense_replace));
  }

  Status add_bf16_job(const TensorInfo& info, const std::string& module) {
    if (info.shape.rank() != 2) {
      return corrupt(fmt::format("{} is FP8 of shape {}, expected a matrix", describe(info),
                                 info.shape.to_string()));
    }
    ConversionJob job;
    job.kind = JobKind::kToBf16;
    job.linears.push_back({module, info.shape[0], info.shape[1]});
    NIBBLE_TRY(add_source(job.linears.front(), &job));
    job.outputs.push_back({info.name, DType::kBf16, info.shape, {}});
    add_job(std::move(job));
    return {};
  }

  void add_kv_scales() {
    const int layers =
        config_.num_hidden_layers + (has_mtp_ ? config_.num_nextn_predict_layers : 0);
    for (int layer = 0; layer < layers; ++layer) {
      for (const char* name : {"k_proj.k_scale", "v_proj.v_scale"}) {
        ConversionJob job;
        job.kind = JobKind::kUnitScale;
        job.outputs.push_back(
            {fmt::format("model.layers.{}.self_attn.{}", layer, name), DType::kF32, {}, {}});
        add_job(std::move(job));
      }
    }
  }

  void add_job(ConversionJob job) {
    job.layer = layer_of(job.outputs.front().name);
    for (const TensorInfo& output : job.outputs) job.output_bytes += tensor_bytes(output);
    plan_.num_output_tensors += static_cast<int64_t>(job.outputs.size());
    plan_.source_bytes += job.source_bytes;
    plan_.output_bytes += job.output_bytes;
    if (job.kind == JobKind::kQuantize) {
      plan_.quantized_source_bytes += job.source_bytes;
      plan_.quantized_output_bytes += job.output_bytes;
    }
    plan_.jobs.push_back(std::move(job));
  }

  void assign_shards(uint64_t shard_bytes) {
    size_t shard = 0;
    uint64_t filled = 0;
    for (ConversionJob& job : plan_.jobs) {
      if (filled > 0 && filled + job.output_bytes > shard_bytes) {
        ++shard;
        filled = 0;
      }
      filled += job.output_bytes;
      job.shard = shard;
    }
    const size_t num_shards = plan_.jobs.empty() ? 0 : shard + 1;
    for (size_t i = 1; i <= num_shards; ++i) {
      plan_.shard_names.push_back(fmt::format("model-{:05}-of-{:05}.safetensors", i, num_shards));
    }
    for (ConversionJob& job : plan_.jobs) {
      for (TensorInfo& output : job.outputs) output.shard = plan_.shard_names[job.shard];
    }
  }

  const CheckpointSource& source_;
  const ModelConfig& config_;
  const QuantizeRecipe& recipe_;
  bool has_mtp_ = false;
  ConversionPlan plan_;
  std::unordered_set<std::string> known_;      // modules that config.json implies
  std::unordered_set<std::string> quantized_;  // modules
};

}  // namespace

Result<ConversionPlan> plan_conversion(const CheckpointSource& source, const ModelConfig& config,
                                       const QuantizeRecipe& recipe, uint64_t shard_bytes,
                                       bool kv_scales) {
  return Planner(source, config, recipe).run(shard_bytes, kv_scales);
}

bool natural_less(std::string_view a, std::string_view b) {
  size_t i = 0;
  size_t j = 0;
  while (i < a.size() && j < b.size()) {
    if (!is_digit(a[i]) || !is_digit(b[j])) {
      if (a[i] != b[j]) return a[i] < b[j];
      ++i;
      ++j;
      continue;
    }
    const size_t end_i = std::min(a.find_first_not_of("0123456789", i), a.size());
    const size_t end_j = std::min(b.find_first_not_of("0123456789", j), b.size());
    const std::string_view digits_a = a.substr(i, end_i - i);
    const std::string_view digits_b = b.substr(j, end_j - j);
    if (digits_a.size() != digits_b.size()) return digits_a.size() < digits_b.size();
    if (digits_a != digits_b) return digits_a < digits_b;
    i = end_i;
    j = end_j;
  }
  return a.size() - i < b.size() - j;
}

int layer_of(std::string_view name) {
  constexpr std::string_view kPrefix = "model.layers.";
  if (!name.starts_with(kPrefix)) return -1;
  int layer = -1;
  const auto [end, error] =
      std::from_chars(name.data() + kPrefix.size(), name.data() + name.size(), layer);
  if (error != std::errc() || end == name.data() + name.size() || *end != '.') return -1;
  return layer;
}

}  // namespace nibble
