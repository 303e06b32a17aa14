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
#include "nibble/offload/record_reader.h"
#include "nibble/offload/tiered_store.h"

namespace nibble {

struct ExpertOptions {
  // RAM for routed experts; those that don't fit are read when they are needed. None: what the
  // folder's offload.txt says (tuner.h), or all of them; below a GPU that can't hold all, as many
  // as 85 % of the RAM that is free holds.
  std::optional<uint64_t> memory_bytes;
  // On a GPU, its memory for routed experts, as bytes or as experts of each layer. None: all, or as
  // many as 85 % of the memory that is free without gpu_reserved_bytes holds.
  std::optional<uint64_t> gpu_memory_bytes;
  std::optional<int64_t> gpu_slots;
  uint64_t gpu_reserved_bytes = uint64_t{2} << 30;
  int copy_streams = 1;  // from RAM to the GPU: 1 or 2
  EvictionOptions eviction;
  int prefetch_layers = 1;
  float prefetch_min_score = 0;
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
// options without a GPU and for budgets below one expert; those of the loaders and of
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
