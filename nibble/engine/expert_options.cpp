#include "nibble/engine/expert_options.h"

#include <fmt/format.h>

#include <map>

#include "nibble/base/error.h"
#include "nibble/base/mapped_file.h"
#include "nibble/offload/expert_file.h"
#include "nibble/offload/expert_loader.h"
#include "nibble/offload/resident_store.h"
#include "nibble/offload/tuner.h"

namespace nibble {
namespace {

Status check_host(Kernels& kernels) {
  if (kernels.device().is_host()) return {};
  return unsupported(fmt::format(
      "experts in tiers need a backend in host memory (cpu, reference), and {} keeps them all in "
      "the device's",
      kernels.name()));
}

Result<std::unique_ptr<RoutingTraceWriter>> open_trace(const ModelConfig& config,
                                                       const ExpertOptions& options) {
  if (options.routing_trace.empty()) return std::unique_ptr<RoutingTraceWriter>();
  return RoutingTraceWriter::create(options.routing_trace, config.n_routed_experts);
}

}  // namespace

bool has_packed_experts(const std::filesystem::path& directory) {
  std::error_code error;
  return std::filesystem::exists(directory / kExpertFileName, error);
}

Result<bool> has_nvfp4_experts(const std::filesystem::path& directory) {
  if (!has_packed_experts(directory)) return false;
  const ExpertFile file = NIBBLE_TRY(ExpertFile::open(directory / kExpertFileName));
  return (file.header().formats >> static_cast<int>(LinearFormat::kNvfp4) & 1) != 0;
}

bool wants_tiers(const std::filesystem::path& directory, const ExpertOptions& options) {
  return options.memory_bytes.has_value() || has_packed_experts(directory);
}

Result<std::unique_ptr<TieredStore>> make_tiered_store(const std::filesystem::path& directory,
                                                       const CheckpointSource& source,
                                                       const ModelConfig& config, Kernels& kernels,
                                                       bool with_mtp, ActivationFormat activation,
                                                       int threads, const ExpertOptions& options) {
  NIBBLE_TRY(check_host(kernels));
  if (options.memory_bytes && *options.memory_bytes == 0) {
    return invalid_argument("--expert-memory is 0, and at least one expert has to be in memory");
  }
  const bool packed = has_packed_experts(directory);
  OffloadTuning tuning;
  if (packed) tuning = NIBBLE_TRY(load_tuning(directory));
  TieredStoreOptions store;
  store.memory_bytes = options.memory_bytes.value_or(tuning.expert_memory.value_or(0));
  store.eviction = options.eviction;
  store.prefetch_layers = options.prefetch_layers;
  store.prefetch_min_score = options.prefetch_min_score;
  store.activation = activation;
  store.trace = NIBBLE_TRY(open_trace(config, options));
  if (!options.hot_experts.empty()) {
    const std::string text = NIBBLE_TRY(read_text_file(options.hot_experts));
    store.hot_experts =
        NIBBLE_TRY(with_context(parse_expert_counts(text), options.hot_experts.string()));
  }
  std::unique_ptr<ExpertLoader> loader;
  if (packed) {
    ReaderOptions reader;
    reader.backend = options.io.value_or(tuning.io.value_or(reader.backend));
    reader.depth = options.io_depth.value_or(tuning.io_depth.value_or(reader.depth));
    loader = NIBBLE_TRY(
        make_packed_loader(directory / kExpertFileName, config, kernels, with_mtp, reader));
  } else {
    loader = NIBBLE_TRY(make_checkpoint_loader(source, config, kernels, with_mtp, threads));
  }
  return TieredStore::create(std::move(loader), config, with_mtp, std::move(store));
}

Result<std::unique_ptr<ExpertStore>> make_traced_store(const Weights& weights,
                                                       const ModelConfig& config, Kernels& kernels,
                                                       const ExpertOptions& options) {
  NIBBLE_TRY(check_host(kernels));
  std::map<int, std::span<const MlpWeight>> layers;
  for (const LayerWeights& layer : weights.layers) {
    if (layer.moe) layers.emplace(layer.moe->layer, layer.moe->experts);
  }
  if (weights.mtp && weights.mtp->layer.moe) {
    layers.emplace(weights.mtp->layer.moe->layer, weights.mtp->layer.moe->experts);
  }
  auto trace = NIBBLE_TRY(open_trace(config, options));
  return std::unique_ptr<ExpertStore>(
      std::make_unique<ResidentStore>(std::move(layers), std::move(trace)));
}

}  // namespace nibble
