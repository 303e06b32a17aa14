#include "nibble/engine/expert_options.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>

#include "nibble/base/cpu_features.h"
#include "nibble/base/error.h"
#include "nibble/base/log.h"
#include "nibble/base/mapped_file.h"
#include "nibble/base/text.h"
#include "nibble/offload/expert_file.h"
#include "nibble/offload/expert_loader.h"
#include "nibble/offload/host_tier_loader.h"
#include "nibble/offload/packed_expert.h"
#include "nibble/offload/resident_store.h"
#include "nibble/offload/tuner.h"

namespace nibble {
namespace {

// Slots of the RAM tier that only pass on what a GPU keeps: enough for reads and copies to overlap.
constexpr uint64_t kPassingRecords = 8;
constexpr double kShareOfFree = 0.85;  // as tuner.h

Status check_options(const ExpertOptions& options, bool is_host) {
  if (options.memory_bytes && *options.memory_bytes == 0) {
    return invalid_argument("--expert-memory is 0, and at least one expert has to be in memory");
  }
  if (is_host && (options.gpu_memory_bytes || options.gpu_slots)) {
    return invalid_argument(
        fmt::format("{} is an option of --backend cuda; experts in RAM take "
                    "--expert-memory",
                    options.gpu_slots ? "--gpu-expert-slots" : "--gpu-expert-memory"));
  }
  if (options.gpu_memory_bytes && options.gpu_slots) {
    return invalid_argument("--gpu-expert-memory and --gpu-expert-slots say the same twice");
  }
  return {};
}

struct ExpertSizes {
  uint64_t largest = 0;  // record, in bytes
  uint64_t layers = 0;
  uint64_t experts = 0;  // of all layers

  uint64_t all() const { return largest * experts; }
};

ExpertSizes sizes_of(const ExpertLoader& loader, const ModelConfig& config, bool with_mtp) {
  ExpertSizes sizes;
  for (const int layer : moe_layers(config, with_mtp)) {
    ++sizes.layers;
    for (int e = 0; e < config.n_routed_experts; ++e) {
      ++sizes.experts;
      sizes.largest = std::max(sizes.largest, loader.record_bytes(layer, e));
    }
  }
  return sizes;
}

// What the GPU gives to experts.
Result<uint64_t> gpu_budget(const ExpertOptions& options, const ExpertSizes& sizes,
                            Device& device) {
  if (options.gpu_memory_bytes) return std::min(*options.gpu_memory_bytes, sizes.all());
  if (options.gpu_slots) {
    return std::min(static_cast<uint64_t>(*options.gpu_slots) * sizes.layers * sizes.largest,
                    sizes.all());
  }
  const DeviceMemory memory = NIBBLE_TRY(device.memory());
  const uint64_t reserved = std::min(memory.free_bytes, options.gpu_reserved_bytes);
  const double room = kShareOfFree * static_cast<double>(memory.free_bytes - reserved);
  return std::min(static_cast<uint64_t>(room), sizes.all());
}

// What RAM gives to experts that lie below a GPU's.
uint64_t ram_budget_below_gpu(std::optional<uint64_t> asked, const ExpertSizes& sizes,
                              uint64_t gpu) {
  if (asked) return std::min(*asked, sizes.all());
  if (gpu >= sizes.all()) return std::min(kPassingRecords * sizes.largest, sizes.all());
  const double room = kShareOfFree * static_cast<double>(memory_info().available_bytes);
  return std::min(static_cast<uint64_t>(room), sizes.all());
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
  return options.memory_bytes || options.gpu_memory_bytes || options.gpu_slots ||
         has_packed_experts(directory);
}

Result<std::unique_ptr<TieredStore>> make_tiered_store(const std::filesystem::path& directory,
                                                       const CheckpointSource& source,
                                                       const ModelConfig& config, Kernels& kernels,
                                                       bool with_mtp, ActivationFormat activation,
                                                       int threads, const ExpertOptions& options) {
  Device& device = kernels.device();
  NIBBLE_TRY(check_options(options, device.is_host()));
  const bool packed = has_packed_experts(directory);
  OffloadTuning tuning;
  if (packed) tuning = NIBBLE_TRY(load_tuning(directory));
  TieredStoreOptions store;
  std::optional<uint64_t> memory = options.memory_bytes;
  if (!memory) memory = tuning.expert_memory;
  store.memory_bytes = memory.value_or(0);
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
  const ExpertSizes sizes = sizes_of(*loader, config, with_mtp);
  if (device.is_host() || sizes.experts == 0) {
    return TieredStore::create(std::move(loader), config, with_mtp, std::move(store));
  }
  store.memory_bytes = NIBBLE_TRY(gpu_budget(options, sizes, device));
  if (store.memory_bytes < sizes.largest) {
    return invalid_argument(fmt::format(
        "the GPU has {} for experts, and one takes {}; --gpu-expert-memory says how much",
        format_bytes(store.memory_bytes), format_bytes(sizes.largest)));
  }
  store.allocate_slots = device_slots(device);
  store.on_device = true;
  TieredStoreOptions below;
  below.memory_bytes = ram_budget_below_gpu(memory, sizes, store.memory_bytes);
  below.eviction = options.eviction;
  below.activation = activation;
  below.allocate_slots = page_locked_slots(device);
  auto ram = NIBBLE_TRY(TieredStore::create(std::move(loader), config, with_mtp, std::move(below)));
  auto from_ram = NIBBLE_TRY(make_host_tier_loader(std::move(ram), device, options.copy_streams));
  auto top =
      NIBBLE_TRY(TieredStore::create(std::move(from_ram), config, with_mtp, std::move(store)));
  log_info(fmt::format("experts: {}", top->description()));
  return top;
}

Result<std::unique_ptr<ExpertStore>> make_traced_store(const Weights& weights,
                                                       const ModelConfig& config, Kernels& kernels,
                                                       const ExpertOptions& options) {
  if (!kernels.device().is_host()) {
    return unsupported(fmt::format(
        "with {} a routing trace needs experts in tiers: --gpu-expert-memory or a packed model",
        kernels.name()));
  }
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
