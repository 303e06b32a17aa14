// Where a model's routed experts are kept, and how a store of them is made.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>

#include "nibble/base/result.h"
#include "nibble/checkpoint/config.h"
#include "nibble/checkpoint/source.h"
#include "nibble/kernels/kernels.h"
#include "nibble/model/weights.h"
#include "nibble/offload/eviction_policy.h"
#include "nibble/offload/expert_preset.h"
#include "nibble/offload/host_expert_rule.h"
#include "nibble/offload/record_reader.h"
#include "nibble/offload/tiered_store.h"

namespace nibble {

struct ExpertOptions {
  // RAM for routed experts; those that don't fit are read when they are needed. None: what the
  // folder's offload.txt says (tuner.h), or all of them; below a GPU that can't hold all, as many
  // as the preset's share (85 %) of the RAM that is free holds.
  std::optional<uint64_t> memory_bytes;
  // On a GPU, its memory for routed experts, as bytes or as experts of each layer. None: all, or as
  // many as that share of the memory that is free without gpu_reserved_bytes holds.
  std::optional<uint64_t> gpu_memory_bytes;
  std::optional<int64_t> gpu_slots;
  // What is not said in these is the preset's (preset_values).
  std::optional<ExpertPreset> preset;  // none: offload.txt's, or balanced
  std::optional<uint64_t> gpu_reserved_bytes;
  std::optional<int> copy_streams;  // from RAM to the GPU: 1 or 2
  std::optional<int> prefetch_layers;
  std::optional<float> prefetch_min_score;
  EvictionOptions eviction;
  // On a GPU: experts that lie in RAM and are computed there. Anything but kOff changes the last
  // bits of results, and so may change tokens.
  HostExperts cpu_experts = HostExperts::kOff;
  std::filesystem::path hot_experts;    // counts of expert_counts_text(); empty: no hot set
  std::filesystem::path routing_trace;  // to write; empty: none
  // How the packed file is read. None: the folder's offload.txt, or the defaults of ReaderOptions.
  std::optional<IoBackend> io;
  std::optional<int> io_depth;
};

// Whether the folder's experts are in a packed file.
bool has_packed_experts(const std::filesystem::path& directory);

// Whether that file holds NVFP4 weights; false without one. Errors: those of ExpertFile::open.
Result<bool> has_nvfp4_experts(const std::filesystem::path& directory);

// Whether experts come from a store below instead of Weights::load.
bool wants_tiers(const std::filesystem::path& directory, const ExpertOptions& options);

// The store for weights that were loaded without experts: one in RAM above files, on a GPU one in
// its memory above that. `source` and `kernels` must outlive it. Errors: kInvalidArgument for GPU
// options without a GPU and for budgets below one expert; kUnsupported for cpu_experts with
// activations in NVFP4; those of the loaders and of
// TieredStore::create.
Result<std::unique_ptr<TieredStore>> make_tiered_store(const std::filesystem::path& directory,
                                                       const CheckpointSource& source,
                                                       const ModelConfig& config, Kernels& kernels,
                                                       bool with_mtp, ActivationFormat activation,
                                                       int threads, const ExpertOptions& options);

// The store for weights that have their experts, with a trace. Errors: kUnsupported for a backend
// whose memory is not the host's, which takes tiers for that; those of RoutingTraceWriter::create.
Result<std::unique_ptr<ExpertStore>> make_traced_store(const Weights& weights,
                                                       const ModelConfig& config, Kernels& kernels,
                                                       const ExpertOptions& options);

}  // namespace nibble
