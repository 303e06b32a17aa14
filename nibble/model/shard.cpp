#include "nibble/model/shard.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <utility>

#include "nibble/base/error.h"
#include "nibble/checkpoint/linear_tensors.h"

namespace nibble {

Result<All2AllBackend> parse_all2all_backend(std::string_view name) {
  for (const All2AllBackend backend :
       {All2AllBackend::kAuto, All2AllBackend::kAllgatherReducescatter,
        All2AllBackend::kAlltoall}) {
    if (name == all2all_backend_name(backend)) return backend;
  }
  return invalid_argument(fmt::format(
      "unknown all2all_backend '{}', expected auto, allgather_reducescatter or alltoall", name));
}

std::string_view all2all_backend_name(All2AllBackend backend) {
  switch (backend) {
    case All2AllBackend::kAllgatherReducescatter:
      return "allgather_reducescatter";
    case All2AllBackend::kAlltoall:
      return "alltoall";
    default:
      return "auto";
  }
}

namespace {

// Something that is cut into equal parts: `units` must be a multiple of their number.
struct Constraint {
  int64_t units = 0;
  std::string what;  // "model.layers.1.mlp.shared_experts.down_proj: 2 blocks of 128 columns, FP8"
};

// What the ranks of a model cut, by the number that has to divide it.
struct Constraints {
  std::vector<Constraint> attention;      // heads, dense and shared MLP, vocabulary
  std::vector<Constraint> expert_slices;  // of an expert's intermediate size
  int64_t num_experts = 0;
};

class Collector {
 public:
  Collector(const CheckpointSource& source, const ModelConfig& config)
      : source_(source), config_(config) {}

  Result<Constraints> collect() {
    Constraints all;
    all.num_experts = config_.n_routed_experts;
    all.attention.push_back({config_.num_attention_heads,
                             fmt::format("{} attention heads", config_.num_attention_heads)});
    all.attention.push_back(
        {config_.vocab_size, fmt::format("a vocabulary of {}", config_.vocab_size)});
    if (!config_.tie_word_embeddings) {
      NIBBLE_TRY(add(all.attention, "lm_head", config_.vocab_size, true));
    }
    // The MTP layer is cut as the others are, where the checkpoint has it.
    for (int64_t i = 0; i < config_.num_hidden_layers + config_.num_nextn_predict_layers; ++i) {
      NIBBLE_TRY(add_layer(all, static_cast<int>(i)));
    }
    return all;
  }

 private:
  Status add_layer(Constraints& all, int layer) {
    const std::string prefix = fmt::format("model.layers.{}", layer);
    const int64_t heads = config_.num_attention_heads;
    const std::string attn = prefix + ".self_attn";
    NIBBLE_TRY(add(all.attention, attn + ".q_b_proj", heads * config_.qk_head_dim(), true));
    NIBBLE_TRY(add(all.attention, attn + ".kv_b_proj",
                   heads * (config_.qk_nope_head_dim + config_.v_head_dim), true));
    NIBBLE_TRY(add(all.attention, attn + ".o_proj", heads * config_.v_head_dim, false));
    const std::string mlp = prefix + ".mlp";
    if (!config_.is_moe_layer(layer)) {
      return add_mlp(all.attention, mlp, config_.intermediate_size);
    }
    if (config_.n_shared_experts > 0) {
      NIBBLE_TRY(add_mlp(all.attention, mlp + ".shared_experts",
                         config_.n_shared_experts * config_.moe_intermediate_size));
    }
    return add_mlp(all.expert_slices, mlp + ".experts.0", config_.moe_intermediate_size);
  }

  Status add_mlp(std::vector<Constraint>& to, const std::string& module, int64_t intermediate) {
    NIBBLE_TRY(add(to, module + ".gate_proj", intermediate, true));
    NIBBLE_TRY(add(to, module + ".up_proj", intermediate, true));
    return add(to, module + ".down_proj", intermediate, false);
  }

  Status add(std::vector<Constraint>& to, const std::string& module, int64_t extent,
             bool cuts_rows) {
    const WeightFormat format = NIBBLE_TRY(find_weight_format(source_, module));
    const LinearGrain grains = linear_slice_grain(format);
    const int64_t grain = cuts_rows ? grains.rows : grains.cols;
    const char* const axis = cuts_rows ? "rows" : "columns";
    if (grain == 1) {
      to.push_back({extent, fmt::format("{}: {} {}", module, extent, axis)});
    } else if (extent % grain != 0) {
      to.push_back({1, fmt::format("{}: {} {} in {}, not whole blocks of {}", module, extent, axis,
                                   weight_format_name(format), grain)});
    } else {
      to.push_back(
          {extent / grain, fmt::format("{}: {} blocks of {} {}, {}", module, extent / grain, grain,
                                       axis, weight_format_name(format))});
    }
    return {};
  }

  const CheckpointSource& source_;
  const ModelConfig& config_;
};

// What can't be cut, or nothing.
std::string first_problem(const Constraints& constraints, const Shard& shard) {
  const auto check = [](const std::vector<Constraint>& all, int parts) -> std::string {
    for (const Constraint& constraint : all) {
      if (constraint.units % parts == 0) continue;
      return fmt::format("{} cannot be cut into {} equal parts", constraint.what, parts);
    }
    return {};
  };
  std::string problem = check(constraints.attention, shard.attention().size);
  if (!problem.empty()) return problem;
  if (constraints.num_experts % shard.ep_size != 0) {
    return fmt::format("{} experts cannot be dealt to {} groups", constraints.num_experts,
                       shard.ep_size);
  }
  return check(constraints.expert_slices, shard.moe_tp_size());
}

std::vector<ShardSizes> valid_sizes(const Constraints& constraints, bool enable_attention_dp,
                                    int max_tp_size) {
  std::vector<ShardSizes> valid;
  for (int tp = 1; tp <= max_tp_size; ++tp) {
    for (int ep = 1; ep <= tp; ++ep) {
      const Shard shard{0, tp, ep, enable_attention_dp};
      if (tp % ep == 0 && first_problem(constraints, shard).empty()) valid.push_back({tp, ep});
    }
  }
  return valid;
}

}  // namespace

Status check_shard(const CheckpointSource& source, const ModelConfig& config, const Shard& shard) {
  if (shard.tp_size < 1 || shard.ep_size < 1 || shard.tp_size % shard.ep_size != 0) {
    return invalid_argument(fmt::format("ep_size is {} and tp_size {}: ep_size must divide tp_size",
                                        shard.ep_size, shard.tp_size));
  }
  if (shard.is_whole()) return {};
  Collector collector(source, config);
  const Constraints constraints = NIBBLE_TRY(collector.collect());
  const std::string problem = first_problem(constraints, shard);
  if (problem.empty()) return {};
  std::vector<std::string> sizes;
  for (const ShardSizes& valid : valid_sizes(constraints, shard.enable_attention_dp, 64)) {
    sizes.push_back(fmt::format("{}x{}", valid.tp_size, valid.ep_size));
  }
  return invalid_argument(fmt::format(
      "tp_size {} with ep_size {}{}: {}; this checkpoint can be cut as (tp_size x "
      "ep_size) {}",
      shard.tp_size, shard.ep_size, shard.enable_attention_dp ? " and attention data parallel" : "",
      problem, fmt::join(sizes, ", ")));
}

std::vector<ShardSizes> valid_shards(const CheckpointSource& source, const ModelConfig& config,
                                     bool enable_attention_dp, int max_tp_size) {
  const auto constraints = Collector(source, config).collect();
  if (!constraints) return {};
  return valid_sizes(*constraints, enable_attention_dp, max_tp_size);
}

}  // namespace nibble
