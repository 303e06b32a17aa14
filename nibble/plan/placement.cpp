#include "nibble/plan/placement.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>

namespace nibble {
namespace {

constexpr int64_t kLeastNumTokens = 512;  // planner.md section 7: T is lowered no further
// Without a figure for arithmetic, only steps that memory bounds can be estimated.
constexpr int64_t kMemoryBoundTokens = 8;

double number(int64_t value) { return static_cast<double>(value); }

// A count of bytes that may be beyond 63 bits.
int64_t saturate(double bytes) {
  constexpr double kLimit = 9e18;
  return static_cast<int64_t>(std::clamp(bytes, -kLimit, kLimit));
}

int64_t batch_of_rank(const PlanInput& input, const Split& split) {
  return (input.request->batch + split.dp - 1) / split.dp;
}

MemoryRequest memory_request(const PlanInput& input, int64_t max_num_tokens) {
  MemoryRequest request;
  request.device_bytes = input.device.memory_bytes;
  const bool shared = input.device.is_cpu() || input.device.is_unified();
  request.reserved_bytes = shared ? system_reserve_bytes(input.device.memory_bytes) : 0;
  request.max_num_tokens = max_num_tokens;
  request.max_batch = input.max_batch;
  request.kv_fraction = input.request->kv_fraction;
  request.kv = input.kv;
  request.mtp = input.with_mtp();
  request.graphs = input.request->graphs && !input.device.is_cpu();
  return request;
}

MemoryConstants memory_constants(const PlanInput& input) {
  MemoryConstants constants = input.constants->memory;
  if (input.device.is_cpu()) constants.context_bytes = 0;  // no driver, no context
  return constants;
}

void set_limits(const PlanInput& input, int64_t tokens, Placement& placement) {
  const int64_t context = round_up_to_blocks(input.request->context);
  const int64_t longest =
      tokens / batch_of_rank(input, placement.split) / kKvBlockTokens * kKvBlockTokens;
  placement.max_context = std::min(longest, input.config->max_position_embeddings);
  placement.max_batch = tokens / context * placement.split.dp;
}

// All weights on the devices.
Placement place_on_devices(const PlanInput& input, const Split& split) {
  Placement placement;
  placement.split = split;
  placement.max_num_tokens = input.max_num_tokens;
  placement.max_batch_per_rank = input.max_batch;
  placement.memory =
      device_memory(*input.config, *input.weights, split,
                    memory_request(input, input.max_num_tokens), memory_constants(input));
  placement.needed_tokens =
      batch_of_rank(input, split) * round_up_to_blocks(input.request->context);
  const RankMemory& memory = placement.memory;
  const double needed_free = number(placement.needed_tokens) * number(memory.kv_bytes_per_token) /
                             input.request->kv_fraction;
  placement.short_bytes =
      std::max<int64_t>(0, saturate(std::ceil(needed_free) - number(memory.free)));
  if (memory.tokens < placement.needed_tokens) {
    placement.short_bytes = std::max<int64_t>(placement.short_bytes, 1);
  } else {
    placement.short_bytes = 0;
    // "fits" leaves a tenth of the pool free.
    const bool roomy = number(placement.needed_tokens) <= 0.9 * number(memory.tokens);
    placement.verdict = roomy ? Verdict::kFits : Verdict::kTight;
  }
  set_limits(input, memory.tokens, placement);
  return placement;
}

// The model without what can leave the devices.
ModelWeights without_experts(const PlanInput& input, bool embedding_leaves) {
  ModelWeights rest = *input.weights;
  rest.cell(WeightKind::kRoutedExperts).bytes = 0;
  rest.cell(WeightKind::kRoutedExperts, true).bytes = 0;
  if (embedding_leaves) rest.cell(WeightKind::kEmbedding).bytes = 0;
  return rest;
}

// Experts in RAM and on the SSD as far as the devices don't hold them.
Placement place_with_offload(const PlanInput& input, const Split& split) {
  const bool embedding_leaves = input.hardware->ram_bytes.has_value();
  const ModelWeights rest = without_experts(input, embedding_leaves);
  Placement placement;
  placement.split = split;
  placement.max_batch_per_rank = input.max_batch;
  placement.needed_tokens =
      batch_of_rank(input, split) * round_up_to_blocks(input.request->context);
  double room = 0;  // of one device, for experts
  double kv_bytes = 0;
  for (int64_t tokens = input.max_num_tokens;; tokens = std::max(kLeastNumTokens, tokens / 2)) {
    placement.max_num_tokens = tokens;
    placement.memory = device_memory(*input.config, rest, split, memory_request(input, tokens),
                                     memory_constants(input));
    const RankMemory& memory = placement.memory;
    kv_bytes = number(placement.needed_tokens) * number(memory.kv_bytes_per_token);
    room = input.request->kv_fraction * number(memory.free) - kv_bytes;
    if (room >= 0 || tokens <= kLeastNumTokens) break;
  }
  if (room < 0) {
    placement.short_bytes = saturate(std::ceil(-room / input.request->kv_fraction));
    return placement;
  }
  const WeightCell& experts = input.weights->cell(WeightKind::kRoutedExperts);
  const WeightCell& mtp_experts = input.weights->cell(WeightKind::kRoutedExperts, true);
  OffloadRequest request;
  request.expert_pool = experts.bytes + (input.with_mtp() ? mtp_experts.bytes : 0);
  request.expert_bytes = input.weights->expert_bytes;
  request.gpu_room = saturate(room * split.gpus);
  request.ram_other = embedding_leaves ? input.weights->cell(WeightKind::kEmbedding).bytes : 0;
  request.skew = input.request->skew;
  request.experts_per_layer = input.config->n_routed_experts;
  OffloadPlan offload = place_experts(request, *input.hardware);
  placement.short_bytes = offload.short_bytes;
  if (offload.short_bytes == 0) placement.verdict = Verdict::kOffload;
  // The cache may grow into the room of experts that find a place elsewhere.
  const int64_t elsewhere_room =
      input.hardware->ssd && !input.hardware->ssd_bytes
          ? request.expert_pool
          : (input.hardware->ram_bytes
                 ? *input.hardware->ram_bytes - system_reserve_bytes(*input.hardware->ram_bytes) -
                       request.ram_other
                 : 0) +
                input.hardware->ssd_bytes.value_or(0);
  RankMemory& memory = placement.memory;
  const int64_t must_stay = std::max<int64_t>(0, request.expert_pool - elsewhere_room) / split.gpus;
  const double cache_room = input.request->kv_fraction * number(memory.free) - number(must_stay);
  set_limits(input, saturate(std::max(0.0, cache_room) / number(memory.kv_bytes_per_token)),
             placement);
  const int64_t on_device = offload.gpu / split.gpus;
  memory.weights += on_device;
  memory.free -= on_device;
  memory.pool = saturate(kv_bytes);
  memory.tokens = placement.needed_tokens;
  if (input.device.is_cpu())
    std::swap(offload.gpu, offload.ram), std::swap(offload.gpu_hits, offload.ram_hits);
  placement.offload = offload;
  return placement;
}

StepOverhead overhead_of(const PlanInput& input, const Placement& placement) {
  if (input.device.is_cpu() || (placement.offload && placement.offload->ram > 0)) {
    // Without a CPU's rate experts in RAM are copied, and the host waits for each layer's choices.
    return input.device.is_cpu() || input.hardware->cpu ? StepOverhead::kCpu
                                                        : StepOverhead::kGeneric;
  }
  return device_overhead(input.device, input.request->graphs);
}

// The memory term with experts in several places: rest and cache from the devices, each tier its
// share of the experts that the step's tokens want.
std::optional<double> offload_mem_ms(const PlanInput& input, const Placement& placement,
                                     const Workload& load) {
  const OffloadPlan& offload = *placement.offload;
  const SpeedConstants& constants = input.constants->speed;
  const double tokens = load.batch * (1 + load.draft_tokens);
  ModelWeights rest = *input.weights;
  rest.cell(WeightKind::kRoutedExperts).bytes = 0;
  const double all = weight_bytes_read(*input.config, *input.weights, Split{}, tokens);
  const double experts = all - weight_bytes_read(*input.config, rest, Split{}, tokens);
  const double cache =
      load.batch * load.mean_context * number(kv_bytes_per_token(*input.config, load.kv, false));
  const PlanDevice& device = input.device;
  const int sockets = input.request->numa_aware ? 1 : device.sockets;
  std::optional<double> device_rate = device.bandwidth;
  if (device_rate) *device_rate /= sockets;
  const double device_eta = device.is_cpu() ? constants.eta_mem_cpu : constants.eta_mem_gpu;
  std::optional<double> ram_rate;
  std::optional<double> copy_rate;  // one link at a time, as nibble copies
  if (device.is_cpu()) {
    ram_rate = device_rate;
  } else if (input.hardware->cpu && input.hardware->cpu->bandwidth) {
    ram_rate = *input.hardware->cpu->bandwidth /
               (input.request->numa_aware ? 1 : input.hardware->cpu->sockets);
  } else if (!input.hardware->cpu) {
    copy_rate = input.request->host_link_rate ? input.request->host_link_rate
                                              : host_link_rate(input.device);
  }
  const double rest_bytes = weight_bytes_read(*input.config, rest, placement.split, tokens) + cache;
  return tiers_ms({{rest_bytes, device_rate, device_eta},
                   {experts * offload.gpu_hits / placement.split.gpus, device_rate, device_eta},
                   copy_rate ? Tier{experts * offload.ram_hits, copy_rate, 1.0}
                             : Tier{experts * offload.ram_hits, ram_rate, constants.eta_mem_cpu},
                   {experts * offload.ssd_hits, input.hardware->ssd_rate, 1.0}});
}

// The batches that were measured, and the asked one between them.
void add_measured_speed(const PlanInput& input, Placement& placement) {
  const MeasuredSpeed& measured = *input.constants->measured;
  if (placement.split.gpus > 1 || placement.offload) {
    placement.no_speed = "no speed: the benchmark of --calibrate ran on one device without offload";
    return;
  }
  std::set<double> batches = {number(input.request->batch)};
  for (const MeasuredSpeed::Row& row : measured.rows) batches.insert(row.batch);
  for (const double batch : batches) {
    const auto rate = measured.tokens_per_second(batch);
    if (!rate) {
      placement.no_speed = fmt::format("no speed for batch {}: {} to {} were measured", batch,
                                       measured.rows.front().batch, measured.rows.back().batch);
      continue;
    }
    SpeedPoint point;
    point.batch = static_cast<int64_t>(batch);
    point.measured = true;
    point.tokens_per_second = *rate;
    point.step.fixed = batch * input.accept_length / *rate * 1e3;
    placement.points.push_back(point);
  }
}

}  // namespace

StepOverhead device_overhead(const PlanDevice& device, bool graphs) {
  if (device.is_cpu()) return StepOverhead::kCpu;
  const bool has_graphs =
      device.vendor != "AMD" && device.vendor != "Apple" && device.vendor != "Intel";
  return graphs && has_graphs ? StepOverhead::kGraph : StepOverhead::kGeneric;
}

PlanDevice device_as_run(PlanDevice device, const PlanRequest& request) {
  if (request.numa_aware) device.sockets = 1;
  return device;
}

Placement place(const PlanInput& input, const Split& split) {
  Placement placement = place_on_devices(input, split);
  if (placement.verdict != Verdict::kDoesNotFit) return placement;
  const bool elsewhere = input.hardware->ram_bytes.has_value() || input.hardware->ssd;
  // Experts are shared out from one pool: not by layers, not under attention data parallelism.
  if (!elsewhere || split.mode != ParallelMode::kTp || split.pp > 1) return placement;
  if (input.weights->expert_bytes <= 0) return placement;
  Placement offloaded = place_with_offload(input, split);
  if (offloaded.verdict == Verdict::kDoesNotFit) {
    // The smaller shortfall says more, and the memory of the whole model is the plainer table.
    if (offloaded.short_bytes > 0) placement.short_bytes = offloaded.short_bytes;
    placement.offload = offloaded.offload;
    return placement;
  }
  return offloaded;
}

void add_speed(const PlanInput& input, Placement& placement) {
  if (placement.verdict == Verdict::kDoesNotFit) {
    placement.no_speed = "no estimate for what does not fit";
    return;
  }
  if (input.constants->measured) {
    add_measured_speed(input, placement);
    return;
  }
  if (!input.device.bandwidth) {
    placement.no_speed = input.device.id == "local" && input.device.is_cpu()
                             ? "no estimate: the rate of this machine's memory is not known; "
                               "--cpu NAME takes it from the catalogue"
                             : "no estimate: the memory's rate is not known";
    return;
  }
  const SpeedConstants& constants = input.constants->speed;
  const LinkSpeed link = link_speed(input.device, placement.split.tp * placement.split.dp,
                                    constants, input.request->node_link_rate);
  const PlanDevice device = device_as_run(input.device, *input.request);
  std::set<int64_t> batches = {input.request->batch};
  for (int64_t batch = 1; batch <= placement.max_batch && batch <= 65536; batch *= 4) {
    batches.insert(batch);
  }
  const bool has_compute = device.bf16_flops.has_value();
  for (const int64_t batch : batches) {
    Workload load;
    load.batch = number(batch);
    load.mean_context = input.mean_context;
    load.isl = number(input.request->isl);
    load.osl = number(input.request->osl);
    load.draft_tokens = input.request->draft_tokens;
    load.accept_length = input.accept_length;
    load.kv = input.kv;
    if (!has_compute && batch * (1 + load.draft_tokens) > kMemoryBoundTokens) continue;
    SpeedPoint point;
    point.batch = batch;
    point.step = decode_step(*input.config, *input.weights, device, placement.split, load,
                             constants, overhead_of(input, placement), link);
    if (placement.offload) {
      point.step.mem = offload_mem_ms(input, placement, load);
      if (!point.step.mem) {
        placement.no_speed =
            "no estimate: it needs the rate of RAM (--cpu NAME, --host-link GB/s) or of the SSD "
            "(--ssd GB/s)";
        return;
      }
    }
    point.tokens_per_second = load.batch * load.accept_length / point.step.total() * 1e3;
    placement.points.push_back(point);
  }
  if (!has_compute) {
    placement.no_speed = fmt::format(
        "the catalogue has no BF16 rate for {}: computing time is left out, and no batch above {} "
        "is estimated",
        device.name, kMemoryBoundTokens / (1 + input.request->draft_tokens));
  }
}

}  // namespace nibble
