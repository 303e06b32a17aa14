#include "nibble/engine/loaded_model.h"

#include <fmt/format.h>

#include <algorithm>

#include "nibble/base/cpu_features.h"
#include "nibble/base/error.h"
#include "nibble/base/log.h"
#include "nibble/checkpoint/linear_tensors.h"
#include "nibble/checkpoint/open_source.h"
#include "nibble/comm/device_communicator.h"
#include "nibble/engine/pass_message.h"
#include "nibble/kernels/registry.h"
#include "nibble/model/weight_cache.h"

namespace nibble {
namespace {

// Six times R1's context. The rotary table has a row for each position, so a larger number in a
// config.json counts only when it is asked for.
constexpr int64_t kDefaultMaxSeqLen = int64_t{1} << 20;

}  // namespace

Result<std::string> backend_on_device(std::string_view backend, std::string_view device) {
  if (backend == "auto") return std::string(device);
  if (device != "auto" && (device == "cuda") != (backend == "cuda")) {
    return invalid_argument(
        fmt::format("device is '{}' and backend is '{}': give one of them", device, backend));
  }
  return std::string(backend);
}

Result<std::unique_ptr<LoadedModel>> LoadedModel::load(const std::filesystem::path& directory,
                                                       const ModelOptions& options) {
  const ModelConfig config = NIBBLE_TRY(load_config(directory));
  if (options.max_seq_len < 0 || options.max_seq_len > config.max_position_embeddings) {
    return invalid_argument(fmt::format("max_seq_len is {}, expected 1..{} (the model's context)",
                                        options.max_seq_len, config.max_position_embeddings));
  }
  Tokenizer tokenizer = NIBBLE_TRY(Tokenizer::load(directory));
  OpenedSource opened = NIBBLE_TRY(open_source(directory, config));
  for (const std::string& warning : opened.warnings) log_warning(warning);
  std::unique_ptr<CheckpointSource> source = std::move(opened.source);
  const bool nvfp4 = has_nvfp4_weights(*source) || NIBBLE_TRY(has_nvfp4_experts(directory));
  QuantConfig quant_config = NIBBLE_TRY(load_quant_config(directory, nvfp4));
  for (const std::string& warning : quant_config.warnings) log_warning(warning);
  if (options.nvfp4_activation == ActivationFormat::kNvfp4 && !nvfp4) {
    return unsupported(fmt::format(
        "W4A4 needs NVFP4 weights, and {} has none; quantize it first with nibble quantize",
        directory.string()));
  }
  const int threads = options.threads > 0 ? options.threads : available_processors();
  KernelOptions kernel_options;
  kernel_options.threads = threads;
  kernel_options.cuda = options.cuda;
  kernel_options.cpu_int8_activations = options.cpu_int8_activations;
  kernel_options.cpu_exact_activations = options.cpu_exact_activations;
  const bool tiers = wants_tiers(directory, options.experts);
  // The same bits wherever an expert comes from.
  kernel_options.cuda.fixed_expert_order = tiers;
  auto kernels = NIBBLE_TRY(make_kernels(options.backend, kernel_options));

  WeightsOptions weights_options;
  weights_options.nvfp4_activation = options.nvfp4_activation;
  weights_options.load_mtp = options.load_mtp;
  if (!options.weight_cache.empty()) {
    weights_options.weight_cache = options.weight_cache;
    weights_options.checkpoint_identity = NIBBLE_TRY(checkpoint_identity(directory));
  }
  weights_options.max_positions = options.max_seq_len;
  if (options.max_seq_len == 0) {
    weights_options.max_positions = std::min(config.max_position_embeddings, kDefaultMaxSeqLen);
    if (config.max_position_embeddings > kDefaultMaxSeqLen) {
      log_warning(
          fmt::format("the context is cut from {} to {} tokens; --max-seq-len asks for more",
                      config.max_position_embeddings, kDefaultMaxSeqLen));
    }
  }
  weights_options.show_progress = options.show_progress;
  weights_options.on_progress = options.on_progress;
  weights_options.threads = threads;
  weights_options.shard = options.shard;
  weights_options.comm = options.comm;
  weights_options.load_experts = !tiers;
  if (options.comm != nullptr && (tiers || !options.experts.routing_trace.empty())) {
    return unsupported(
        "experts in tiers and routing traces are for one rank; leave tp_size out, or keep all "
        "experts in memory");
  }
  std::optional<ExpertPlacement> placement;
  if (!options.expert_placement.empty()) {
    placement = NIBBLE_TRY(load_expert_placement(options.expert_placement));
    weights_options.expert_placement = &*placement;
  }
  // A tied lm_head is packed from the same tensor, which is released then.
  const bool keep_source = tiers || (kernels->device().is_host() && !config.tie_word_embeddings);
  weights_options.embedding_stays_in_source = keep_source && !config.tie_word_embeddings;
  Weights weights = NIBBLE_TRY(Weights::load(*source, config, weights_options, *kernels));

  std::unique_ptr<LoadedModel> model(new LoadedModel(std::move(tokenizer), std::move(weights)));
  if (keep_source) model->source = std::move(source);
  model->config = config;
  model->quant_config = std::move(quant_config);
  model->kernels = std::move(kernels);
  if (options.comm != nullptr) {
    model->device_comm = NIBBLE_TRY(device_communicator(model->kernels->device(), *options.comm));
    model->comm = options.comm;
    if (model->device_comm) model->weights.comm = model->device_comm.get();
  }
  model->max_seq_len = weights_options.max_positions;
  model->max_seq_len_was_asked = options.max_seq_len > 0;
  model->directory = directory;
  const bool with_mtp = model->weights.mtp.has_value();
  if (tiers) {
    model->expert_store =
        NIBBLE_TRY(make_tiered_store(directory, *model->source, config, *model->kernels, with_mtp,
                                     options.nvfp4_activation, threads, options.experts));
  } else if (!options.experts.routing_trace.empty()) {
    model->expert_store =
        NIBBLE_TRY(make_traced_store(model->weights, config, *model->kernels, options.experts));
  }
  model->weights.expert_store = model->expert_store.get();
  return model;
}

std::unique_ptr<LoadedModel> LoadedModel::assemble(Parts parts) {
  std::unique_ptr<LoadedModel> model(
      new LoadedModel(std::move(parts.tokenizer), std::move(parts.weights)));
  model->config = std::move(parts.config);
  model->kernels = std::move(parts.kernels);
  model->max_seq_len = parts.max_seq_len;
  model->comm = parts.comm;
  model->device_comm = std::move(parts.device_comm);
  return model;
}

LoadedModel::~LoadedModel() {
  if (comm == nullptr) return;
  // Until all have come here, one may still read the memory of another.
  (void)kernels->device().synchronize();
  if (comm->rank() == 0) {
    std::vector<std::byte> message = PassMessage::of_kind(PassKind::kEnd);
    comm->broadcast_message(message, 0);
  }
  comm->barrier();
  if (comm->status()) comm->close();
}

DType LoadedModel::default_kv_cache_dtype() const {
  return quant_config.kv_cache_quant_algo == "FP8" ? DType::kF8E4m3 : DType::kBf16;
}

bool LoadedModel::is_eos(int64_t token_id) const {
  return std::find(config.eos_token_ids.begin(), config.eos_token_ids.end(), token_id) !=
         config.eos_token_ids.end();
}

}  // namespace nibble
