#include "nibble/plan/speed.h"

#include <algorithm>
#include <array>
#include <cmath>

namespace nibble {
namespace {

double number(int64_t value) { return static_cast<double>(value); }

double layers_with_experts(const ModelConfig& config) {
  int layers = 0;
  for (int i = 0; i < config.num_hidden_layers; ++i) layers += config.is_moe_layer(i) ? 1 : 0;
  return layers;
}

// The rate at which this arithmetic runs: FP4 weights on a device without NVFP4 are expanded and
// multiplied in BF16, FP8 weights without FP8 units likewise.
std::optional<double> peak_fp8(const PlanDevice& device) {
  return device.fp8_flops ? device.fp8_flops : device.bf16_flops;
}
std::optional<double> peak_fp4(const PlanDevice& device) {
  return device.fp4_flops ? device.fp4_flops : device.bf16_flops;
}

// Seconds for the matrices of one token and `attention` operations, on one device at its peak.
std::optional<double> token_seconds(const TokenFlops& flops, double attention,
                                    const PlanDevice& device, KvFormat kv) {
  const auto bf16 = device.bf16_flops;
  if (!bf16) return std::nullopt;
  // Attention multiplies in the cache's own format.
  const double attention_peak = kv == KvFormat::kFp8 ? *peak_fp8(device) : *bf16;
  return flops.fp4 / *peak_fp4(device) + flops.fp8 / *peak_fp8(device) + flops.bf16 / *bf16 +
         attention / attention_peak;
}

}  // namespace

double default_accept_length(int draft_tokens) {
  constexpr std::array kLengths = {1.0, 1.92, 2.58, 2.82, 2.99, 3.01};
  return kLengths[static_cast<size_t>(std::clamp(draft_tokens, 0, 5))];
}

double StepTime::total() const {
  return mem.value_or(0) + comp.value_or(0) + comm.value_or(0) + fixed + prefill.value_or(0);
}

double layer_overhead_us(const SpeedConstants& constants, StepOverhead overhead) {
  switch (overhead) {
    case StepOverhead::kGraph:
      return constants.layer_overhead_graph_us;
    case StepOverhead::kGeneric:
      return constants.layer_overhead_generic_us;
    case StepOverhead::kCpu:
      return constants.layer_overhead_cpu_us;
  }
  return 0;
}

LinkSpeed link_speed(const PlanDevice& device, int gpus, const SpeedConstants& constants,
                     double node_link_rate) {
  // The link of a unified machine is the network to the next one.
  if (gpus > device.gpus_per_node && !device.is_unified())
    return {node_link_rate, constants.alpha_pcie_us, "network"};
  const bool has_bridge = device.link.find("bridge") != std::string::npos;
  const bool is_fast = device.link.starts_with("NVLink") || device.link.starts_with("Infinity");
  if (is_fast && has_bridge && gpus > 2) {
    // PCIe 5 x16 from Hopper on, PCIe 4 x16 before.
    const bool gen5 = parse_number(device.compute_capability).value_or(0) >= 9;
    return {gen5 ? 64e9 : 32e9, constants.alpha_pcie_us, "PCIe"};
  }
  LinkSpeed link;
  link.kind = device.link;
  link.alpha_us = is_fast ? constants.alpha_nvlink_us : constants.alpha_pcie_us;
  if (device.link_bidir) link.direction_rate = *device.link_bidir / 2;
  return link;
}

double weight_bytes_read(const ModelConfig& config, const ModelWeights& weights, const Split& split,
                         double tokens) {
  const double chosen = static_cast<double>(config.num_experts_per_tok) / config.n_routed_experts;
  const double experts_read = 1 - std::pow(1 - chosen, tokens);
  double bytes = 0;
  for (const WeightKind kind : kAllWeightKinds) {
    const double stored = number(weights.cell(kind).bytes);
    switch (kind) {
      case WeightKind::kEmbedding:
        break;
      case WeightKind::kRoutedExperts:
        bytes += stored * experts_read /
                 (split.mode == ParallelMode::kTp ? split.tp : std::max(split.ep, 1));
        break;
      case WeightKind::kQBProj:
      case WeightKind::kKvBProj:
      case WeightKind::kOProj:
      case WeightKind::kDenseMlp:
      case WeightKind::kSharedExperts:
      case WeightKind::kHead:
        bytes += stored / split.tp;
        break;
      default:
        bytes += stored;
    }
  }
  return bytes;
}

TokenFlops token_flops(const ModelConfig& config, const ModelWeights& weights) {
  TokenFlops flops;
  for (const WeightKind kind : kAllWeightKinds) {
    const WeightCell& cell = weights.cell(kind);
    if (kind == WeightKind::kEmbedding || kind == WeightKind::kNorms ||
        kind == WeightKind::kRouterBias || kind == WeightKind::kOther) {
      continue;
    }
    double parameters = number(cell.parameters);
    if (kind == WeightKind::kRoutedExperts) {
      parameters *= static_cast<double>(config.num_experts_per_tok) / config.n_routed_experts;
    }
    (cell.storage == Storage::kNvfp4 ? flops.fp4
     : cell.storage == Storage::kFp8 ? flops.fp8
                                     : flops.bf16) += 2 * parameters;
  }
  const double heads = number(config.num_hidden_layers) * config.num_attention_heads;
  const double latent = number(config.kv_lora_rank);
  const double rope = number(config.qk_rope_head_dim);
  // Scores over latent and rotary key, then values over the latent.
  flops.decode_attention = heads * 2 * (latent + rope + latent);
  flops.prefill_attention =
      heads * 0.5 * 2 * (number(config.qk_nope_head_dim) + rope + number(config.v_head_dim));
  return flops;
}

StepTime decode_step(const ModelConfig& config, const ModelWeights& weights,
                     const PlanDevice& device, const Split& split, const Workload& load,
                     const SpeedConstants& constants, StepOverhead overhead,
                     const LinkSpeed& link) {
  const double tokens = load.batch * (1 + load.draft_tokens);
  const double gpus = split.gpus;
  // Devices that work at the same time: a pipeline with one sequence in it has one stage at work.
  const double active = split.mode == ParallelMode::kLayer ? 1 : gpus / split.pp;
  StepTime step;
  if (device.bandwidth) {
    const double eta = device.is_cpu() ? constants.eta_mem_cpu : constants.eta_mem_gpu;
    const double own_sequences = split.mode == ParallelMode::kAdp ? load.batch / gpus : load.batch;
    const double cache =
        own_sequences * load.mean_context * number(kv_bytes_per_token(config, load.kv, false));
    const double bytes = weight_bytes_read(config, weights, split, tokens) + cache;
    step.mem = bytes / (*device.bandwidth / device.sockets * eta) * 1e3;
  }
  const TokenFlops flops = token_flops(config, weights);
  if (const auto seconds =
          token_seconds(flops, flops.decode_attention * load.mean_context, device, load.kv)) {
    step.comp = tokens * *seconds / active / constants.eta_compute * 1e3;
  }
  const double hidden = number(config.hidden_size);
  if (split.gpus == 1 || split.mode == ParallelMode::kLayer || load.overlap_comm) {
    // Between pipeline stages a few kilobytes pass once a step: nothing beside the rest.
    step.comm = 0;
  } else if (link.direction_rate) {
    const double rate = *link.direction_rate * constants.eta_link;
    const double alpha = link.alpha_us * 1e-6;
    if (split.mode == ParallelMode::kTp) {
      const double ranks = split.tp;
      step.comm = 1e3 * 2 * config.num_hidden_layers *
                  (alpha + 2 * (ranks - 1) / ranks * tokens * hidden * 2 / rate);
    } else {
      // Three bytes a number: dispatch in FP8, combine in BF16.
      const double copies = std::min<double>(config.num_experts_per_tok, gpus);
      step.comm = 1e3 * layers_with_experts(config) *
                  (2 * alpha + tokens / gpus * copies * hidden * 3 / rate);
    }
  }
  step.fixed = (config.num_hidden_layers + load.draft_tokens) *
               layer_overhead_us(constants, overhead) * 1e-3;
  if (load.osl <= 0) {
    step.prefill = 0;
  } else if (const auto seconds =
                 token_seconds(flops, flops.prefill_attention * load.isl, device, load.kv)) {
    // In the steady state one sequence in osl / accept_length ends a step, and a prompt comes in.
    const double prompt_tokens = load.batch * load.accept_length / load.osl * load.isl;
    step.prefill = prompt_tokens * *seconds / active / constants.eta_compute * 1e3;
  }
  return step;
}

std::optional<double> prompt_ms(const ModelConfig& config, const ModelWeights& weights,
                                const PlanDevice& device, const Split& split, double isl,
                                KvFormat kv, const SpeedConstants& constants) {
  const TokenFlops flops = token_flops(config, weights);
  const auto seconds = token_seconds(flops, flops.prefill_attention * isl, device, kv);
  if (!seconds) return std::nullopt;
  const double active = split.mode == ParallelMode::kLayer ? 1 : split.gpus / split.pp;
  return isl * *seconds / active / constants.eta_compute * 1e3;
}

std::optional<double> tiers_ms(const std::vector<Tier>& tiers) {
  double seconds = 0;
  for (const Tier& tier : tiers) {
    if (tier.bytes <= 0) continue;
    if (!tier.bandwidth) return std::nullopt;
    seconds += tier.bytes / (*tier.bandwidth * tier.efficiency);
  }
  return seconds * 1e3;
}

}  // namespace nibble
