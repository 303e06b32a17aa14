#include "nibble/api/load_options.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "nibble/base/error.h"
#include "nibble/base/log.h"
#include "nibble/engine/kv_cache.h"

namespace nibble {
namespace {

Result<int> rank_count(std::string_view name, int64_t value) {
  if (value >= 1 && value <= 1024) return static_cast<int>(value);
  return invalid_argument(fmt::format("{} is {}, expected 1..1024", name, value));
}

Result<std::string> backend_of(const api::LLMOptions& options) {
  constexpr std::array kDevices = {"auto", "cpu", "cuda"};
  if (std::find(kDevices.begin(), kDevices.end(), options.device) == kDevices.end()) {
    return invalid_argument(
        fmt::format("device is '{}', expected auto, cuda or cpu", options.device));
  }
  constexpr std::array kOwn = {"auto", "cpu", "cuda", "reference"};
  if (std::find(kOwn.begin(), kOwn.end(), options.backend) != kOwn.end()) {
    return backend_on_device(options.backend, options.device);
  }
  constexpr std::array kForeign = {"pytorch", "_torch", "tensorrt", "trt", "_autodeploy"};
  if (std::find(kForeign.begin(), kForeign.end(), options.backend) != kForeign.end()) {
    log_info(fmt::format("backend '{}' is accepted and means auto", options.backend));
    return options.device;
  }
  return invalid_argument(
      fmt::format("backend is '{}', expected auto, cpu, cuda or reference (pytorch, tensorrt, trt "
                  "and _autodeploy "
                  "are taken as auto)",
                  options.backend));
}

Status apply_speculation(const api::SpeculativeConfig& config, EngineOptions* options) {
  std::string type = config.decoding_type;
  std::transform(type.begin(), type.end(), type.begin(),
                 [](char c) { return c >= 'a' && c <= 'z' ? static_cast<char>(c - 32) : c; });
  if (type != "MTP") {
    return unsupported(fmt::format(
        "speculative_config.decoding_type is '{}'; MTP, the checkpoint's own layer, is supported",
        config.decoding_type));
  }
  const int64_t drafts = config.num_nextn_predict_layers;
  if (drafts < 1 || drafts > 8) {
    return invalid_argument(
        fmt::format("speculative_config.num_nextn_predict_layers is {}, expected 1..8", drafts));
  }
  if (config.relaxed_topk < 1) {
    return invalid_argument(fmt::format("speculative_config.relaxed_topk is {}, expected 1 or more",
                                        config.relaxed_topk));
  }
  if (!(config.relaxed_delta >= 0 && config.relaxed_delta <= 1)) {
    return invalid_argument(
        fmt::format("speculative_config.relaxed_delta is {}, expected 0..1", config.relaxed_delta));
  }
  options->draft.draft_sampling = config.draft_sampling;
  options->draft.adaptive = config.adaptive;
  options->draft.max_concurrency = config.max_concurrency;
  options->draft.draft_len_schedule = config.draft_len_schedule;
  options->draft.acceptance_window = config.acceptance_window;
  options->draft.acceptance_length_threshold = config.acceptance_length_threshold;
  options->num_drafts = drafts;
  if (config.use_relaxed_acceptance_for_thinking) {
    log_warning(
        "relaxed acceptance is on: between <think> and </think> the output is no longer the "
        "model's own");
    options->relaxed_thinking = {true, config.relaxed_topk, config.relaxed_delta};
  }
  return {};
}

Status apply_cache(const api::KvCacheConfig& config, EngineOptions* options) {
  if (config.free_gpu_memory_fraction) {
    const double fraction = *config.free_gpu_memory_fraction;
    if (!(fraction > 0 && fraction <= 1)) {
      return invalid_argument(fmt::format(
          "kv_cache_config.free_gpu_memory_fraction is {}, expected above 0, at most 1", fraction));
    }
    options->kv_cache_free_gpu_memory_fraction = fraction;
  }
  switch (config.dtype) {
    case api::KvCacheDtype::kAuto:
      break;
    case api::KvCacheDtype::kF32:
      options->kv_cache_dtype = DType::kF32;
      break;
    case api::KvCacheDtype::kBf16:
      options->kv_cache_dtype = DType::kBf16;
      break;
    case api::KvCacheDtype::kFp8:
      options->kv_cache_dtype = DType::kF8E4m3;
      break;
  }
  if (config.tokens_per_block < 1 || config.tokens_per_block > 4096) {
    return invalid_argument(fmt::format("kv_cache_config.tokens_per_block is {}, expected 1..4096",
                                        config.tokens_per_block));
  }
  if (config.host_cache_size != 0) {
    return unsupported(fmt::format(
        "kv_cache_config.host_cache_size is {}, but there is no second tier of the cache; 0 works",
        config.host_cache_size));
  }
  options->block_size = config.tokens_per_block;
  options->enable_block_reuse = config.enable_block_reuse;
  return {};
}

}  // namespace

Result<ModelOptions> model_options(const api::LLMOptions& options) {
  Shard shard;
  shard.tp_size = NIBBLE_TRY(rank_count("tensor_parallel_size", options.tensor_parallel_size));
  shard.ep_size =
      NIBBLE_TRY(rank_count("moe_expert_parallel_size", options.moe_expert_parallel_size));
  shard.enable_attention_dp = options.enable_attention_dp;
  // As in TensorRT-LLM, experts are then dealt to all ranks unless something else is asked for.
  if (shard.enable_attention_dp && shard.ep_size == 1) shard.ep_size = 0;
  if (options.threads < 0 || options.threads > 1024) {
    return invalid_argument(
        fmt::format("threads is {}, expected 1..1024, or 0 for all processors", options.threads));
  }
  if (options.sampling_defaults != "model" && options.sampling_defaults != "openai") {
    return invalid_argument(fmt::format("sampling_defaults is '{}', expected model or openai",
                                        options.sampling_defaults));
  }
  if (options.max_new_tokens && *options.max_new_tokens < 1) {
    return invalid_argument(
        fmt::format("max_new_tokens is {}, expected 1 or more", *options.max_new_tokens));
  }
  ModelOptions model;
  model.shard = shard;
  model.backend = NIBBLE_TRY(backend_of(options));
  model.threads = options.threads;
  model.cuda.batch_invariant = options.cuda_batch_invariant;
  model.nvfp4_activation = options.w4a4 ? ActivationFormat::kNvfp4 : ActivationFormat::kUnquantized;
  model.load_mtp = options.speculative_config.has_value();
  model.max_seq_len = options.max_seq_len;
  model.show_progress = options.show_progress;
  return model;
}

Result<EngineOptions> engine_options(const api::LLMOptions& options) {
  EngineOptions engine;
  engine.max_batch_size = options.max_batch_size;
  engine.max_num_tokens = options.max_num_tokens;
  engine.enable_chunked_prefill = options.enable_chunked_prefill;
  NIBBLE_TRY(apply_cache(options.kv_cache_config, &engine));
  if (options.speculative_config) {
    NIBBLE_TRY(apply_speculation(*options.speculative_config, &engine));
  }
  if (options.logprobs_mode != "raw" && options.logprobs_mode != "processed") {
    return invalid_argument(
        fmt::format("logprobs_mode is '{}', expected raw or processed", options.logprobs_mode));
  }
  engine.processed_logprobs = options.logprobs_mode == "processed";
  engine.cuda_graphs = options.use_cuda_graph;
  engine.cuda_graph_batch_sizes = options.cuda_graph_batch_sizes;
  return engine;
}

Status limit_kv_tokens(const api::KvCacheConfig& config, const LoadedModel& model,
                       EngineOptions* options) {
  if (!config.max_tokens) return {};
  if (*config.max_tokens < options->block_size) {
    return invalid_argument(
        fmt::format("kv_cache_config.max_tokens is {}, expected tokens_per_block, {}, or more",
                    *config.max_tokens, options->block_size));
  }
  const DType dtype = options->kv_cache_dtype.value_or(model.default_kv_cache_dtype());
  const DeviceMemory memory = NIBBLE_TRY(model.kernels->device().memory());
  const double block_bytes =
      static_cast<double>(KvCache::bytes_per_token(model.config, dtype, options->num_drafts > 0)) *
      static_cast<double>(options->block_size);
  const auto of_memory = static_cast<int64_t>(kv_cache_fraction(*options, model.kernels->device()) *
                                              static_cast<double>(memory.free_bytes) / block_bytes);
  options->num_blocks = std::clamp<int64_t>(*config.max_tokens / options->block_size, 1,
                                            std::max<int64_t>(of_memory, 1));
  return {};
}

}  // namespace nibble
