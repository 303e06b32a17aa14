// The weights of a DeepSeek-V3 model, placed and packed for a backend.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "nibble/base/mapped_file.h"
#include "nibble/base/result.h"
#include "nibble/checkpoint/config.h"
#include "nibble/checkpoint/source.h"
#include "nibble/comm/communicator.h"
#include "nibble/device/device.h"
#include "nibble/kernels/expert_dispatch.h"
#include "nibble/kernels/kernels.h"
#include "nibble/model/expert_placement.h"
#include "nibble/model/shard.h"

namespace nibble {

class ExpertStore;

// Norm weights are float [size] in device memory; names are the checkpoint's.
struct AttentionWeights {
  LinearWeight q_a_proj;
  const float* q_a_layernorm = nullptr;
  LinearWeight q_b_proj;
  LinearWeight kv_a_proj_with_mqa;
  const float* kv_a_layernorm = nullptr;
  MlaUpWeight kv_b_proj;
  LinearWeight o_proj;
};

struct MoeWeights {
  int layer = 0;  // its number in the model; num_hidden_layers for the MTP layer
  LinearWeight gate;
  const float* e_score_correction_bias = nullptr;
  // Where experts are, with WeightsOptions::expert_placement: num_slots > 0, in device memory.
  ExpertSlotsView slots;
  int num_slots = 0;
  // Those of this rank, from RouterShape::first_local_expert on (a slot, where there are slots);
  // empty where Weights::expert_store has them.
  std::vector<MlpWeight> experts;
  std::optional<MlpWeight> shared_experts;
};

struct LayerWeights {
  const float* input_layernorm = nullptr;
  AttentionWeights self_attn;
  const float* post_attention_layernorm = nullptr;
  std::optional<MlpWeight> mlp;  // dense layers
  std::optional<MoeWeights> moe;
};

// The multi-token-prediction layer. Its embedding and head are the main model's.
struct MtpWeights {
  const float* enorm = nullptr;
  const float* hnorm = nullptr;
  LinearWeight eh_proj;  // [hidden_size, 2 * hidden_size]: the embedding's half first
  LayerWeights layer;
  const float* shared_head_norm = nullptr;
};

struct WeightsOptions {
  // What NVFP4 linears do with their activations; kNvfp4 applies to those with an input_scale.
  ActivationFormat nvfp4_activation = ActivationFormat::kUnquantized;
  bool load_mtp = true;
  bool load_experts = true;   // routed ones; false for a caller that sets Weights::expert_store
  int64_t max_positions = 0;  // rows of the rotary table; 0: max_position_embeddings
  bool show_progress = false;
  int threads = 1;  // that pack in parallel
  // Told what share of the weights' elements is loaded, 0..1, rising; on loading threads, one call
  // at a time.
  std::function<void(double share)> on_progress;

  // Leaves embed_tokens where the source has it, for a backend in host memory: no copy. The system
  // reads a mapped file ahead in the background and may drop it again. The source must then outlive
  // the weights, and its files must not be changed in place.
  bool embedding_stays_in_source = false;

  // A directory that keeps the packed weights for the next start, which maps them (weight_cache.h);
  // empty: none. A cache that is damaged or of something else is written anew, with a warning; so
  // is one that can't be written. Needs a backend in host memory. `checkpoint_identity` is that of
  // weight_cache.h, or what else tells this source from others.
  std::filesystem::path weight_cache;
  std::string checkpoint_identity;

  // The part of this rank, and how it reaches the others (null for a single rank; it must outlive
  // the weights).
  Shard shard;
  Communicator* comm = nullptr;
  // Which experts the ranks' groups hold, if not by their numbers; used while loading only. For
  // shard.ep_size groups.
  const ExpertPlacement* expert_placement = nullptr;

  // One layer alone, for a caller that can't hold more: 0 .. num_hidden_layers - 1, or
  // num_hidden_layers for the MTP layer, which comes with embed_tokens. The other layers and
  // lm_head stay empty; model.norm is loaded.
  std::optional<int> only_layer;
};

// Move-only; owns all device memory that its members point into. With a shard, linears, MLPs and
// mla_shape.num_heads are this rank's share.
struct Weights {
  // BF16 or F32 [vocab_size, hidden_size]; of a part, its rows.
  MatrixView embed_tokens;
  std::vector<LayerWeights> layers;
  const float* norm = nullptr;
  LinearWeight lm_head;
  std::optional<MtpWeights> mtp;
  RopeTable rope;
  MlaShape mla_shape;
  RouterShape router_shape;
  Shard shard;
  Communicator* comm = nullptr;  // there when shard.tp_size > 1

  uint64_t device_bytes = 0;

  // What the members point into where a weight cache was mapped. And the bytes of it, or of an
  // embedding that stays in its source: part of device_bytes.
  std::optional<MappedFile> cache_file;
  uint64_t mapped_bytes = 0;

  // Where routed experts come from when they are not in the layers themselves; not owned. Needs a
  // backend in host memory.
  ExpertStore* expert_store = nullptr;

  // Reads every tensor of the model, checks its shape and packs it for `kernels`, which must
  // outlive the weights. Within a layer all experts get the largest input_scale of their projection
  // (spec nvfp4 section 4); experts of other ranks count, so that with a shard all ranks call this
  // together. A failure of one rank is aborted to the others. Errors: kInvalidArgument of
  // check_shard; kNotFound, kCorrupt (shape, scale) naming the tensor;
  // kUnsupported dtypes, and a weight cache with a backend on a device; kOutOfMemory; kCancelled
  // after an interrupt; kUnavailable naming the rank that failed; kInvalidArgument for a placement
  // of another number of experts or groups.
  static Result<Weights> load(const CheckpointSource& source, const ModelConfig& config,
                              const WeightsOptions& options, Kernels& kernels);

  std::vector<Buffer> buffers;
};

}  // namespace nibble
