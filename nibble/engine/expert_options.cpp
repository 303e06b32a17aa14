#include "nibble/engine/expert_options.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <vector>

#include "nibble/base/cpu_features.h"
#include "nibble/base/error.h"
#include "nibble/base/log.h"
#include "nibble/base/mapped_file.h"
#include "nibble/base/text.h"
#include "nibble/offload/expert_file.h"
#include "nibble/offload/expert_loader.h"
#include "nibble/offload/host_expert_rates.h"
#include "nibble/offload/host_tier_loader.h"
#include "nibble/offload/packed_expert.h"
#include "nibble/offload/resident_store.h"
#include "nibble/offload/tuner.h"

namespace nibble {
namespace {

// Slots of the RAM tier that only pass on what a GPU keeps: enough for reads and copies to overlap.
constexpr uint64_t kPassingRecords = 8;
// For measuring: together more than caches hold.
constexpr int64_t kMeasuredExperts = 8;

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
  if (is_host && options.cpu_experts != HostExperts::kOff) {
    return invalid_argument(
        "--cpu-experts is an option of --backend cuda; this backend computes all experts on the "
        "CPU");
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
Result<uint64_t> gpu_budget(const ExpertOptions& options, const ExpertPresetValues& preset,
                            const ExpertSizes& sizes, Device& device) {
  if (options.gpu_memory_bytes) return std::min(*options.gpu_memory_bytes, sizes.all());
  if (options.gpu_slots) {
    return std::min(static_cast<uint64_t>(*options.gpu_slots) * sizes.layers * sizes.largest,
                    sizes.all());
  }
  const DeviceMemory memory = NIBBLE_TRY(device.memory());
  const uint64_t reserved =
      std::min(memory.free_bytes, options.gpu_reserved_bytes.value_or(preset.gpu_reserved_bytes));
  const double room = preset.share_of_free * static_cast<double>(memory.free_bytes - reserved);
  return std::min(static_cast<uint64_t>(room), sizes.all());
}

// What RAM gives to experts that lie below a GPU's.
uint64_t ram_budget_below_gpu(std::optional<uint64_t> asked, double share_of_free,
                              const ExpertSizes& sizes, uint64_t gpu) {
  if (asked) return std::min(*asked, sizes.all());
  if (gpu >= sizes.all()) return std::min(kPassingRecords * sizes.largest, sizes.all());
  const double room = share_of_free * static_cast<double>(memory_info().available_bytes);
  return std::min(static_cast<uint64_t>(room), sizes.all());
}

// What --cpu-experts auto decides by.
Result<HostExpertRates> measured_rates(TieredStore& ram, const ModelConfig& config, bool with_mtp,
                                       Kernels& kernels, int copy_streams) {
  std::vector<HotExpert> experts;
  const int layer = moe_layers(config, with_mtp).front();
  const int64_t count =
      std::min({kMeasuredExperts, ram.stats().num_slots, int64_t{config.n_routed_experts}});
  experts.reserve(static_cast<size_t>(count));
  for (int e = 0; e < count; ++e) experts.push_back({layer, e});
  HostMlp& mlp = *kernels.staged_moe()->host_mlp();
  const HostExpertRates rates =
      NIBBLE_TRY(measure_host_experts(ram, experts, mlp, kernels.device(), copy_streams));
  log_info(fmt::format(
      "experts: the host ({}) computes one in {:.3f} ms and {:.3f} ms for each further token, the "
      "link brings one in {:.3f} ms",
      mlp.name(), 1e3 * rates.first_token, 1e3 * rates.next_token, 1e3 * rates.copy));
  return rates;
}

Status check_host_experts(const ExpertOptions& options, ActivationFormat activation,
                          Kernels& kernels) {
  if (options.cpu_experts == HostExperts::kOff) return {};
  if (activation != ActivationFormat::kUnquantized) {
    return unsupported(
        "--cpu-experts computes with activations as they are, and this run quantizes them to "
        "NVFP4; leave one of the two out");
  }
  if (kernels.staged_moe() == nullptr || kernels.staged_moe()->host_mlp() == nullptr) {
    return unsupported(
        fmt::format("the host has no code for experts laid out for {}", kernels.name()));
  }
  return {};
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
         options.cpu_experts != HostExperts::kOff || has_packed_experts(directory);
}

Result<std::unique_ptr<TieredStore>> make_tiered_store(const std::filesystem::path& directory,
                                                       const CheckpointSource& source,
                                                       const ModelConfig& config, Kernels& kernels,
                                                       bool with_mtp, ActivationFormat activation,
                                                       int threads, const ExpertOptions& options) {
  Device& device = kernels.device();
  NIBBLE_TRY(check_options(options, device.is_host()));
  NIBBLE_TRY(check_host_experts(options, activation, kernels));
  const bool packed = has_packed_experts(directory);
  OffloadTuning tuning;
  if (packed) tuning = NIBBLE_TRY(load_tuning(directory));
  const ExpertPresetValues preset =
      preset_values(options.preset.value_or(tuning.preset.value_or(ExpertPreset::kBalanced)));
  TieredStoreOptions store;
  std::optional<uint64_t> memory = options.memory_bytes;
  if (!memory) memory = tuning.expert_memory;
  store.memory_bytes = memory.value_or(0);
  store.eviction = options.eviction;
  store.prefetch_layers = options.prefetch_layers.value_or(preset.prefetch_layers);
  store.prefetch_min_score = options.prefetch_min_score.value_or(preset.prefetch_min_score);
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
  store.memory_bytes = NIBBLE_TRY(gpu_budget(options, preset, sizes, device));
  if (store.memory_bytes < sizes.largest) {
    return invalid_argument(fmt::format(
        "the GPU has {} for experts, and one takes {}; --gpu-expert-memory says how much",
        format_bytes(store.memory_bytes), format_bytes(sizes.largest)));
  }
  store.allocate_slots = device_slots(device);
  store.on_device = true;
  TieredStoreOptions below;
  below.memory_bytes =
      ram_budget_below_gpu(memory, preset.share_of_free, sizes, store.memory_bytes);
  below.eviction = options.eviction;
  below.activation = activation;
  below.allocate_slots = page_locked_slots(device);
  auto ram = NIBBLE_TRY(TieredStore::create(std::move(loader), config, with_mtp, std::move(below)));
  const int copy_streams = options.copy_streams.value_or(preset.copy_streams);
  HostExpertRates rates;
  if (options.cpu_experts == HostExperts::kAuto) {
    rates = NIBBLE_TRY(measured_rates(*ram, config, with_mtp, kernels, copy_streams));
  }
  auto from_ram = NIBBLE_TRY(
      make_host_tier_loader(std::move(ram), device, copy_streams, options.cpu_experts, rates));
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
