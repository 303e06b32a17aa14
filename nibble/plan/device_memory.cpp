#include "nibble/plan/device_memory.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

namespace nibble {
namespace {

// Kept whole on every rank in both modes (planner.md section 6, first row).
bool is_copied(WeightKind kind) {
  switch (kind) {
    case WeightKind::kQAProj:
    case WeightKind::kKvAProj:
    case WeightKind::kRouter:
    case WeightKind::kRouterBias:
    case WeightKind::kNorms:
    case WeightKind::kEhProj:
    case WeightKind::kOther:
      return true;
    default:
      return false;
  }
}

// The share of a kind's bytes that one rank of a stage holds, as a divisor.
int divisor(WeightKind kind, const Split& split) {
  if (kind == WeightKind::kRoutedExperts) {
    return split.mode == ParallelMode::kAdp ? split.ep : split.tp;
  }
  if (is_copied(kind) || split.mode != ParallelMode::kTp) return 1;
  return split.tp;
}

bool is_outside_of_layers(WeightKind kind) {
  return kind == WeightKind::kEmbedding || kind == WeightKind::kHead;
}

int64_t share(int64_t bytes, int parts) { return (bytes + parts - 1) / parts; }

// The least possible size of the largest of `stages` runs of consecutive items.
int64_t largest_stage(const std::vector<int64_t>& items, int stages) {
  int64_t low = *std::max_element(items.begin(), items.end());
  int64_t high = std::accumulate(items.begin(), items.end(), int64_t{0});
  while (low < high) {
    const int64_t limit = low + (high - low) / 2;
    int needed = 1;
    int64_t filled = 0;
    for (const int64_t item : items) {
      if (filled + item > limit) {
        ++needed;
        filled = 0;
      }
      filled += item;
    }
    if (needed <= stages) {
      high = limit;
    } else {
      low = limit + 1;
    }
  }
  return low;
}

// Bytes of each layer on one rank, embedding first and head (with the MTP layers) last.
std::vector<int64_t> layer_bytes(const ModelConfig& config, const ModelWeights& weights,
                                 const Split& split, bool with_mtp) {
  int64_t moe_layers = 0;
  for (int i = 0; i < config.num_hidden_layers; ++i) moe_layers += config.is_moe_layer(i) ? 1 : 0;
  const int64_t dense_layers = config.num_hidden_layers - moe_layers;
  int64_t in_each = 0, in_dense = 0, in_moe = 0, mtp = 0;
  for (const WeightKind kind : kAllWeightKinds) {
    const int64_t bytes = share(weights.cell(kind).bytes, divisor(kind, split));
    if (with_mtp && !is_outside_of_layers(kind)) {
      mtp += share(weights.cell(kind, true).bytes, divisor(kind, split));
    }
    switch (kind) {
      case WeightKind::kEmbedding:
      case WeightKind::kHead:
        break;
      case WeightKind::kDenseMlp:
        in_dense += share(bytes, static_cast<int>(std::max<int64_t>(1, dense_layers)));
        break;
      case WeightKind::kSharedExperts:
      case WeightKind::kRoutedExperts:
      case WeightKind::kRouter:
      case WeightKind::kRouterBias:
        in_moe += share(bytes, static_cast<int>(std::max<int64_t>(1, moe_layers)));
        break;
      default:
        in_each += share(bytes, config.num_hidden_layers);
    }
  }
  std::vector<int64_t> layers;
  layers.reserve(static_cast<size_t>(config.num_hidden_layers));
  for (int i = 0; i < config.num_hidden_layers; ++i) {
    layers.push_back(in_each + (config.is_moe_layer(i) ? in_moe : in_dense));
  }
  const auto outside = [&](WeightKind kind) {
    return share(weights.cell(kind).bytes, divisor(kind, split));
  };
  layers.front() += outside(WeightKind::kEmbedding);
  layers.back() += outside(WeightKind::kHead) + mtp;
  return layers;
}

PlanStatus check_tp(const ModelConfig& config, const ModelWeights& weights, const Split& split) {
  if (config.num_attention_heads % split.tp != 0) {
    return plan_error("bad_parallel", fmt::format("tensor parallelism over {} devices does not "
                                                  "divide the model's {} heads",
                                                  split.tp, config.num_attention_heads));
  }
  if (split.ep < 1 || split.tp % split.ep != 0 || config.n_routed_experts % split.ep != 0) {
    return plan_error("bad_parallel",
                      fmt::format("--ep {} does not divide both --tp {} and the model's {} experts",
                                  split.ep, split.tp, config.n_routed_experts));
  }
  const Storage storage = weights.cell(WeightKind::kRoutedExperts).storage;
  const int block = storage == Storage::kFp8 ? 128 : storage == Storage::kNvfp4 ? 16 : 1;
  if (config.moe_intermediate_size % (int64_t{split.moe_tp()} * block) != 0) {
    return plan_error(
        "bad_parallel",
        fmt::format("an expert of {} columns can't be split over {} devices in whole scale blocks "
                    "of {}",
                    config.moe_intermediate_size, split.moe_tp(), block),
        fmt::format("--ep {} keeps the experts whole", split.tp));
  }
  return {};
}

}  // namespace

std::string_view parallel_mode_name(ParallelMode mode) {
  switch (mode) {
    case ParallelMode::kTp:
      return "tp";
    case ParallelMode::kAdp:
      return "adp";
    case ParallelMode::kLayer:
      return "layer";
  }
  return "?";
}

Split make_split(ParallelMode mode, int gpus) {
  Split split;
  split.mode = mode;
  split.gpus = gpus;
  switch (mode) {
    case ParallelMode::kTp:
      split.tp = gpus;
      break;
    case ParallelMode::kAdp:
      split.dp = split.ep = gpus;
      break;
    case ParallelMode::kLayer:
      split.pp = gpus;
      break;
  }
  return split;
}

PlanStatus check_split(const ModelConfig& config, const ModelWeights& weights, const Split& split) {
  if (split.pp > config.num_hidden_layers) {
    return plan_error("bad_parallel",
                      fmt::format("{} stages for {} layers", split.pp, config.num_hidden_layers));
  }
  if (split.mode == ParallelMode::kTp) return check_tp(config, weights, split);
  if (split.mode == ParallelMode::kAdp && config.n_routed_experts % split.ep != 0) {
    return plan_error("bad_parallel", fmt::format("{} devices do not divide the model's {} experts",
                                                  split.ep, config.n_routed_experts));
  }
  return {};
}

int next_valid_count(const ModelConfig& config, const ModelWeights& weights, ParallelMode mode,
                     int gpus) {
  for (int n = gpus + 1; n <= 1024; ++n) {
    if (check_split(config, weights, make_split(mode, n))) return n;
  }
  return 0;
}

int64_t weights_per_device(const ModelConfig& config, const ModelWeights& weights,
                           const Split& split, bool with_mtp) {
  if (split.pp > 1) return largest_stage(layer_bytes(config, weights, split, with_mtp), split.pp);
  int64_t sum = 0;
  for (const WeightKind kind : kAllWeightKinds) {
    sum += share(weights.cell(kind).bytes, divisor(kind, split));
    // The MTP layer uses the main model's embedding and head.
    if (with_mtp && !is_outside_of_layers(kind)) {
      sum += share(weights.cell(kind, true).bytes, divisor(kind, split));
    }
  }
  return sum;
}

int64_t workspace_bytes(const ModelConfig& config, const Split& split, int64_t max_num_tokens,
                        int64_t max_batch, double expert_imbalance) {
  const auto number = [](int64_t value) { return static_cast<double>(value); };
  const double hidden = number(config.hidden_size);
  const double heads = number(config.num_attention_heads) / split.tp;
  const double rope = number(config.qk_rope_head_dim);
  const double nope = number(config.qk_nope_head_dim);
  const double expert = number(config.moe_intermediate_size) / split.moe_tp();
  const double per_token =
      12 * hidden + 2 * heads * (nope + rope) +
      2 * (number(config.q_lora_rank) + number(config.kv_lora_rank) + rope) +
      2 * heads * (nope + rope + number(config.v_head_dim)) +
      expert_imbalance * config.num_experts_per_tok * (4 * hidden + 6 * expert);
  return std::llround(number(max_num_tokens) * per_token +
                      number(max_batch) * number(config.vocab_size) * 4);
}

int64_t fixed_bytes(const MemoryConstants& constants, int ranks, bool graphs) {
  return constants.context_bytes + (ranks > 1 ? constants.collectives_bytes : 0) +
         (graphs ? constants.graphs_bytes : 0);
}

int64_t kv_bytes_per_device(const ModelConfig& config, KvFormat kv, bool with_mtp, int pp) {
  if (pp <= 1) return kv_bytes_per_token(config, kv, with_mtp);
  const int64_t layers =
      config.num_hidden_layers + (with_mtp ? config.num_nextn_predict_layers : 0);
  return (layers + pp - 1) / pp * kv_bytes_per_token_and_layer(config, kv);
}

RankMemory device_memory(const ModelConfig& config, const ModelWeights& weights, const Split& split,
                         const MemoryRequest& request, const MemoryConstants& constants) {
  RankMemory memory;
  memory.device_bytes = request.device_bytes;
  memory.weights = weights_per_device(config, weights, split, request.mtp);
  memory.fixed = fixed_bytes(constants, split.gpus, request.graphs) + request.reserved_bytes;
  memory.workspace = workspace_bytes(config, split, request.max_num_tokens, request.max_batch,
                                     constants.expert_imbalance);
  memory.free = memory.device_bytes - memory.weights - memory.fixed - memory.workspace;
  memory.kv_bytes_per_token = kv_bytes_per_device(config, request.kv, request.mtp, split.pp);
  if (memory.free > 0) {
    memory.pool = static_cast<int64_t>(request.kv_fraction * static_cast<double>(memory.free));
    memory.tokens = memory.pool / (kKvBlockTokens * memory.kv_bytes_per_token) * kKvBlockTokens;
  }
  return memory;
}

}  // namespace nibble
