#include "nibble/cli/serve_memory_plan.h"

#include <fmt/format.h>

#include <algorithm>

#include "nibble/base/error.h"
#include "nibble/base/text.h"
#include "nibble/checkpoint/config.h"
#include "nibble/checkpoint/linear_tensors.h"
#include "nibble/checkpoint/open_source.h"
#include "nibble/checkpoint/quant_config.h"
#include "nibble/engine/draft_policy.h"
#include "nibble/engine/expert_options.h"
#include "nibble/engine/kv_cache.h"
#include "nibble/kernels/registry.h"
#include "nibble/model/shard.h"
#include "nibble/offload/expert_file.h"
#include "nibble/offload/expert_preset.h"
#include "nibble/offload/tuner.h"

namespace nibble {
namespace {

// Of this rank, or of the host.
struct WeightBytes {
  uint64_t experts = 0;  // routed
  uint64_t others = 0;
};

// A packed folder has its experts in a file of their own.
Result<WeightBytes> stored_weights(const std::filesystem::path& directory,
                                   const CheckpointSource& source, const ModelConfig& config,
                                   const ModelOptions& options) {
  WeightBytes bytes;
  const std::string mtp = fmt::format("model.layers.{}.", config.num_hidden_layers);
  for (const TensorInfo& tensor : source.tensors()) {
    if (!options.load_mtp && tensor.name.starts_with(mtp)) continue;
    const bool is_expert = tensor.name.find(".mlp.experts.") != std::string::npos;
    (is_expert ? bytes.experts : bytes.others) +=
        static_cast<uint64_t>(tensor.shape.num_elements()) * dtype_size(tensor.dtype);
  }
  if (has_packed_experts(directory)) {
    const ExpertFile file = NIBBLE_TRY(ExpertFile::open(directory / kExpertFileName));
    for (const ExpertIndexEntry& entry : file.index()) {
      if (options.load_mtp || entry.layer != config.num_hidden_layers) bytes.experts += entry.bytes;
    }
  }
  return bytes;
}

// Routed experts in tiers count with the memory that they may take (expert_options.cpp).
Result<uint64_t> weight_bytes(const std::filesystem::path& directory,
                              const CheckpointSource& source, const ModelConfig& config,
                              const ModelOptions& options, bool on_host,
                              const DeviceMemory& memory) {
  const WeightBytes stored = NIBBLE_TRY(stored_weights(directory, source, config, options));
  const auto ranks = static_cast<uint64_t>(on_host ? 1 : std::max(1, options.shard.tp_size));
  const uint64_t experts = stored.experts / ranks;
  const uint64_t others = stored.others / ranks;
  OffloadTuning tuning;
  if (has_packed_experts(directory)) tuning = NIBBLE_TRY(load_tuning(directory));
  uint64_t limit = experts;
  if (on_host) {
    limit = options.experts.memory_bytes.value_or(tuning.expert_memory.value_or(experts));
  } else if (wants_tiers(directory, options.experts)) {
    const ExpertPreset preset =
        options.experts.preset.value_or(tuning.preset.value_or(ExpertPreset::kBalanced));
    const double free =
        static_cast<double>(memory.free_bytes - std::min(memory.free_bytes, others));
    limit = options.experts.gpu_memory_bytes.value_or(
        static_cast<uint64_t>(preset_values(preset).share_of_free * free));
  }
  return std::min(experts, limit) + others;
}

Status too_little(const ServeMemoryPlan& plan, const ServeOptions& options) {
  if (plan.weight_bytes >= plan.available_bytes) {
    return out_of_memory(fmt::format(
        "the weights take {}, and {} of {} are free on {}; --expert_memory keeps only some "
        "experts in memory, and nibble plan tells what holds the model",
        format_bytes(plan.weight_bytes), format_bytes(plan.available_bytes),
        format_bytes(plan.total_bytes), plan.device));
  }
  if (plan.weight_bytes + plan.kv_cache_bytes > plan.available_bytes) {
    return out_of_memory(fmt::format(
        "weights of {} and a KV cache of {} for {} tokens are more than the {} that are free on {}",
        format_bytes(plan.weight_bytes), format_bytes(plan.kv_cache_bytes), plan.kv_cache_tokens,
        format_bytes(plan.available_bytes), plan.device));
  }
  if (options.model_options.max_seq_len > plan.max_seq_len) {
    return out_of_memory(fmt::format(
        "max_seq_len is {} tokens, and the KV cache of {} holds {}; ask for less, or give the "
        "cache more memory",
        options.model_options.max_seq_len, format_bytes(plan.kv_cache_bytes),
        plan.kv_cache_tokens));
  }
  return {};
}

}  // namespace

Result<ServeMemoryPlan> plan_serve_memory(const std::filesystem::path& directory,
                                          const ServeOptions& options) {
  const ModelConfig config = NIBBLE_TRY(load_config(directory));
  const OpenedSource opened = NIBBLE_TRY(open_source(directory, config));
  const CheckpointSource& source = *opened.source;
  const QuantConfig quantization =
      NIBBLE_TRY(load_quant_config(directory, has_nvfp4_weights(source)));
  const ModelOptions& model = options.model_options;
  KernelOptions kernel_options;
  kernel_options.threads = 1;
  kernel_options.cuda = model.cuda;
  const auto kernels = NIBBLE_TRY(make_kernels(model.backend, kernel_options));
  Device& device = kernels->device();
  const DeviceMemory memory = NIBBLE_TRY(device.memory());

  ServeMemoryPlan plan;
  plan.device = device.name();
  plan.total_bytes = memory.total_bytes;
  plan.available_bytes = memory.free_bytes;
  plan.weight_bytes =
      NIBBLE_TRY(weight_bytes(directory, source, config, model, device.is_host(), memory));
  const EngineOptions& engine = options.engine;
  const DType dtype = engine.kv_cache_dtype.value_or(
      quantization.kv_cache_quant_algo == "FP8" ? DType::kF8E4m3 : DType::kBf16);
  const bool with_mtp = engine.num_drafts > 0;
  uint64_t block_bytes =
      KvCache::bytes_per_token(config, dtype, with_mtp) * static_cast<uint64_t>(engine.block_size);
  if (with_mtp) block_bytes += static_cast<uint64_t>(config.hidden_size) * sizeof(float);
  const int64_t context =
      model.max_seq_len > 0 ? model.max_seq_len : config.max_position_embeddings;
  const uint64_t left = plan.available_bytes - std::min(plan.available_bytes, plan.weight_bytes);
  int64_t blocks = engine.num_blocks;
  if (blocks == 0) {  // pass_plan.cpp
    blocks = static_cast<int64_t>(kv_cache_fraction(engine, device) * static_cast<double>(left) /
                                  static_cast<double>(block_bytes));
    const int64_t of_a_context = (context + kMaxDrafts + engine.block_size) / engine.block_size;
    blocks = std::clamp<int64_t>(blocks, 1, of_a_context * engine.max_batch_size);
  }
  plan.kv_cache_bytes = static_cast<uint64_t>(blocks) * block_bytes;
  plan.kv_cache_tokens = blocks * engine.block_size;
  plan.max_seq_len =
      std::min(context, plan.kv_cache_tokens - (with_mtp ? engine.num_drafts + 1 : 0));
  Shard shard = model.shard;  // 0 in both: the defaults
  shard.tp_size = std::max(1, shard.tp_size);
  if (shard.ep_size == 0) shard.ep_size = shard.enable_attention_dp ? shard.tp_size : 1;
  plan.outcome = check_shard(source, config, shard);
  if (plan.outcome) plan.outcome = too_little(plan, options);
  return plan;
}

}  // namespace nibble
