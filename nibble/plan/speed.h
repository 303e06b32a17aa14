// How long one decode step takes: an estimate from bytes, operations and messages. Source of every
// formula: planner.md section 8. Missing figures give missing terms, never zeros.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "nibble/checkpoint/config.h"
#include "nibble/plan/catalogue.h"
#include "nibble/plan/device_memory.h"
#include "nibble/plan/model_weights.h"

namespace nibble {

// Chosen by hand with the published measurements in view (published.h); --calibrate replaces them.
struct SpeedConstants {
  double eta_mem_gpu = 0.7;  // share of the memory's rate that is reached, GPUs and unified memory
  double eta_mem_cpu = 0.5;
  double eta_compute = 0.3;
  double eta_link = 0.7;
  double layer_overhead_graph_us = 120;    // launches and waits for each layer, with CUDA graphs
  double layer_overhead_generic_us = 400;  // without
  double layer_overhead_cpu_us = 500;      // CPU, or CPU and GPU together
  double alpha_nvlink_us = 8;              // one collective's latency
  double alpha_pcie_us = 30;
};

// An estimate is printed as low .. high around its value.
inline constexpr double kRangeLow = 0.6;
inline constexpr double kRangeHigh = 1.5;

struct Workload {
  double batch = 1;            // sequences that decode together, on all devices
  double mean_context = 2048;  // tokens of a sequence, on average while it decodes
  double isl = 0;              // prompt tokens of each request; with osl: steady serving
  double osl = 0;              // 0: decoding alone
  int draft_tokens = 0;
  double accept_length = 1;  // tokens gained a step; 1 without drafts
  KvFormat kv = KvFormat::kFp8;
  bool overlap_comm = false;  // messages hidden behind other work
};

// TensorRT-LLM's published acceptance lengths for 0 to 5 draft tokens (tech blog 1, minimum
// latency).
double default_accept_length(int draft_tokens);

// One step in milliseconds. An absent term could not be computed.
struct StepTime {
  std::optional<double> mem;
  std::optional<double> comp;
  std::optional<double> comm;
  double fixed = 0;
  std::optional<double> prefill;

  double total() const;  // of the known terms
};

enum class StepOverhead { kGraph, kGeneric, kCpu };
double layer_overhead_us(const SpeedConstants& constants, StepOverhead overhead);

// The link that one device sees when `gpus` of them work together.
struct LinkSpeed {
  std::optional<double> direction_rate;  // bytes a second out of one device
  double alpha_us = 0;
  std::string_view kind;  // "NVLink", "PCIe", "network", ...
};

// Out-of-node rate where nothing else is said: 400 Gbit/s for each GPU, as in HGX and DGX systems.
inline constexpr double kDefaultNodeLinkRate = 50e9;

// A bridge joins two cards; more of them talk over PCIe. Above gpus_per_node the network counts.
LinkSpeed link_speed(const PlanDevice& device, int gpus, const SpeedConstants& constants,
                     double node_link_rate);

// Bytes of weights one device reads in a step of `tokens` tokens, under uniform routing: every
// matrix but the embedding, and of the experts 1 - (1 - k/n)^tokens of them.
double weight_bytes_read(const ModelConfig& config, const ModelWeights& weights, const Split& split,
                         double tokens);

// Operations of one token by arithmetic, and of one token of context (decode) or of prompt.
struct TokenFlops {
  double fp4 = 0;
  double fp8 = 0;
  double bf16 = 0;
  double decode_attention = 0;   // for each token of context: absorbed MLA
  double prefill_attention = 0;  // for each token of prompt, causal half included
};
TokenFlops token_flops(const ModelConfig& config, const ModelWeights& weights);

// One decode step on `split.gpus` equal devices.
StepTime decode_step(const ModelConfig& config, const ModelWeights& weights,
                     const PlanDevice& device, const Split& split, const Workload& load,
                     const SpeedConstants& constants, StepOverhead overhead, const LinkSpeed& link);

// Milliseconds for the operations of a prompt of `isl` tokens on all devices; absent when unknown.
std::optional<double> prompt_ms(const ModelConfig& config, const ModelWeights& weights,
                                const PlanDevice& device, const Split& split, double isl,
                                KvFormat kv, const SpeedConstants& constants);

// One place that weights are read from in a step.
struct Tier {
  double bytes = 0;                 // for one token
  std::optional<double> bandwidth;  // bytes a second
  double efficiency = 1;
};

// Milliseconds for one token that reads these tiers one after another; absent with an unknown rate.
std::optional<double> tiers_ms(const std::vector<Tier>& tiers);

}  // namespace nibble
