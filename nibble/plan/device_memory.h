// What lies in the memory of one device: weights under a split, fixed amounts, workspace, and the
// KV pool that is left. Source of every formula: planner.md sections 5 and 6.
#pragma once

#include <cstdint>
#include <string_view>

#include "nibble/checkpoint/config.h"
#include "nibble/plan/kv_cache_size.h"
#include "nibble/plan/model_weights.h"
#include "nibble/plan/plan_error.h"

namespace nibble {

enum class ParallelMode {
  kTp,     // every matrix of attention and MLP split; the whole cache on every rank
  kAdp,    // attention data parallel, experts spread: each rank has its own sequences
  kLayer,  // whole layers on each device, one device at work at a time
};
std::string_view parallel_mode_name(ParallelMode mode);  // "tp", "adp", "layer"

// gpus = tp * pp in kTp, dp in kAdp, pp in kLayer.
struct Split {
  ParallelMode mode = ParallelMode::kTp;
  int gpus = 1;
  int tp = 1;  // of attention
  int ep = 1;  // of the routed experts; their tensor parallelism is tp / ep in kTp
  int dp = 1;
  int pp = 1;

  int moe_tp() const { return mode == ParallelMode::kTp ? tp / ep : 1; }
};

// A split of `gpus` devices in a mode with its usual ep.
Split make_split(ParallelMode mode, int gpus);

// Whether the model's sizes allow the split. Errors: bad_parallel saying which size can't be
// divided and the nearest count that works.
PlanStatus check_split(const ModelConfig& config, const ModelWeights& weights, const Split& split);

// The nearest count above `gpus` whose usual split in this mode passes check_split; 0 for none.
int next_valid_count(const ModelConfig& config, const ModelWeights& weights, ParallelMode mode,
                     int gpus);

// Engineering defaults, not measurements (planner.md section 5); --calibrate replaces them.
struct MemoryConstants {
  int64_t context_bytes = int64_t{600} << 20;      // the driver's context and libraries
  int64_t collectives_bytes = int64_t{512} << 20;  // only with more than one rank
  int64_t graphs_bytes = int64_t{1024} << 20;      // captured CUDA graphs
  double expert_imbalance = 1.25;                  // tokens of the busiest rank over the mean
};

struct MemoryRequest {
  int64_t device_bytes = 0;
  int64_t reserved_bytes = 0;     // for the operating system, of memory that is shared with it
  int64_t max_num_tokens = 8192;  // in one forward pass of one rank
  int64_t max_batch = 256;        // sequences of one rank
  double kv_fraction = 0.9;       // of what is free after loading: TensorRT-LLM's definition
  KvFormat kv = KvFormat::kFp8;
  bool mtp = false;
  bool graphs = true;
};

struct RankMemory {
  int64_t device_bytes = 0;
  int64_t weights = 0;
  int64_t fixed = 0;
  int64_t workspace = 0;
  int64_t free = 0;  // after all of the above; negative when they don't fit
  int64_t pool = 0;  // for the cache
  int64_t kv_bytes_per_token = 0;
  int64_t tokens = 0;  // in the pool, in whole blocks

  int64_t reserve() const { return free > 0 ? free - pool : 0; }
};

// Weights of the fullest device under a split, in bytes.
int64_t weights_per_device(const ModelConfig& config, const ModelWeights& weights,
                           const Split& split, bool with_mtp);

// Activations of one forward pass. T = max_num_tokens, B = max_batch.
int64_t workspace_bytes(const ModelConfig& config, const Split& split, int64_t max_num_tokens,
                        int64_t max_batch, double expert_imbalance);

int64_t fixed_bytes(const MemoryConstants& constants, int ranks, bool graphs);

RankMemory device_memory(const ModelConfig& config, const ModelWeights& weights, const Split& split,
                         const MemoryRequest& request, const MemoryConstants& constants);

// Bytes a cache token takes on one device: all layers, or those of the longest pipeline stage.
int64_t kv_bytes_per_device(const ModelConfig& config, KvFormat kv, bool with_mtp, int pp);

}  // namespace nibble
