#include "nibble/plan/planner.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "nibble/base/text.h"
#include "nibble/plan/launch.h"
#include "nibble/plan/placement.h"

namespace nibble {
namespace {

constexpr int64_t kMaxBatch = 1'000'000;
constexpr int64_t kMaxNumTokens = int64_t{1} << 20;

PlanStatus check_request(const PlanModel& model, const ModelWeights& weights,
                         const PlanRequest& request) {
  const auto range = [](std::string_view option, int64_t value, int64_t low, int64_t high) {
    if (value >= low && value <= high) return PlanStatus{};
    return PlanStatus(plan_error(
        "bad_value", fmt::format("{} is {}, expected {} to {}", option, value, low, high)));
  };
  const int64_t longest = model.config.max_position_embeddings;
  NIBBLE_TRY(range("--context", request.context, 1, std::numeric_limits<int64_t>::max()));
  if (request.context > longest) {
    return plan_error("context_too_long",
                      fmt::format("--context {} is longer than the model's {} positions",
                                  request.context, longest),
                      "--context max");
  }
  NIBBLE_TRY(range("--batch", request.batch, 1, kMaxBatch));
  NIBBLE_TRY(range("--mtp", request.draft_tokens, 0, 5));
  NIBBLE_TRY(range("--isl", request.isl, 0, longest));
  NIBBLE_TRY(range("--osl", request.osl, 0, longest));
  if (request.max_num_tokens) {
    NIBBLE_TRY(range("--max-num-tokens", *request.max_num_tokens, 1, kMaxNumTokens));
  }
  if (request.max_batch) NIBBLE_TRY(range("--max-batch", *request.max_batch, 1, kMaxBatch));
  for (const auto& [name, value] : {std::pair("--tp", request.tp), std::pair("--ep", request.ep),
                                    std::pair("--pp", request.pp)}) {
    if (value) NIBBLE_TRY(range(name, *value, 1, 4096));
  }
  if (!(request.kv_fraction > 0 && request.kv_fraction <= 1)) {
    return plan_error("bad_value", fmt::format("--kv-fraction is {}, expected a number between 0 "
                                               "and 1",
                                               request.kv_fraction));
  }
  if ((request.isl == 0) != (request.osl == 0)) {
    return plan_error("conflict", "--isl and --osl go together: give both or neither");
  }
  if (request.isl + request.osl > request.context) {
    return plan_error("conflict", fmt::format("--isl {} and --osl {} are more than --context {}",
                                              request.isl, request.osl, request.context));
  }
  if (request.accept_length &&
      !(*request.accept_length >= 1 && *request.accept_length <= request.draft_tokens + 1)) {
    return plan_error("bad_value", fmt::format("--accept is {}, expected 1 to {} with --mtp {}",
                                               *request.accept_length, request.draft_tokens + 1,
                                               request.draft_tokens));
  }
  if (request.draft_tokens > 0 && weights.cell(WeightKind::kEhProj, true).bytes == 0) {
    return plan_error(
        "impossible",
        fmt::format("--mtp {}: this model or format has no MTP layer", request.draft_tokens),
        "--mtp 0");
  }
  return {};
}

// The splits that options name, or nothing when the planner is to choose.
PlanResult<std::optional<Split>> asked_split(const PlanInput& input, int gpus) {
  const PlanRequest& request = *input.request;
  if (!request.parallel && !request.tp && !request.ep && !request.pp) return std::nullopt;
  const bool adp = request.parallel == ParallelMode::kAdp;
  Split split;
  if (adp) {
    split = make_split(ParallelMode::kAdp, gpus);
    if (request.ep) split.ep = *request.ep;
    if (request.pp.value_or(1) != 1 || request.tp.value_or(gpus) != gpus || split.ep != gpus) {
      return plan_error("bad_parallel",
                        fmt::format("attention data parallelism uses all {} devices for attention "
                                    "and for experts: --tp and --ep can only be {}, --pp 1",
                                    gpus, gpus));
    }
  } else {
    const bool layers = request.parallel == ParallelMode::kLayer;
    const int pp = request.pp.value_or(layers ? std::max(1, gpus / request.tp.value_or(1)) : 1);
    split = make_split(ParallelMode::kTp, request.tp.value_or(std::max(1, gpus / pp)));
    split.ep = request.ep.value_or(1);
    split.pp = pp;
    if (split.pp > 1 && split.tp == 1) split.mode = ParallelMode::kLayer;
    NIBBLE_TRY(check_split(*input.config, *input.weights, split));
    if (split.tp * split.pp != gpus) {
      return plan_error("bad_parallel",
                        fmt::format("--tp {} x --pp {} uses {} of {} devices", split.tp, split.pp,
                                    split.tp * split.pp, gpus),
                        fmt::format("--tp {}, or a --gpu count of {}", gpus, split.tp * split.pp));
    }
    split.gpus = gpus;
  }
  NIBBLE_TRY(check_split(*input.config, *input.weights, split));
  if (adp && input.hardware->is_mixed()) {
    return plan_error("impossible",
                      "attention data parallelism needs equal devices, not a mixed set",
                      "--parallel tp or layer");
  }
  return std::optional(split);
}

// tp and adp where the model's sizes allow them. Errors: bad_parallel when none is possible.
PlanResult<std::vector<Split>> possible_splits(const PlanInput& input, int gpus) {
  std::vector<Split> splits;
  std::string reason;
  for (const ParallelMode mode : {ParallelMode::kTp, ParallelMode::kAdp}) {
    if (mode == ParallelMode::kAdp && (gpus == 1 || input.hardware->is_mixed())) continue;
    Split split = make_split(mode, gpus);
    auto status = check_split(*input.config, *input.weights, split);
    if (!status && mode == ParallelMode::kTp) {
      // Experts kept whole may still be split over the devices.
      split.ep = gpus;
      if (check_split(*input.config, *input.weights, split)) status = {};
    }
    if (status) {
      splits.push_back(split);
    } else {
      reason += (reason.empty() ? "" : ", and ") + status.error().message;
    }
  }
  if (!splits.empty()) return splits;
  const int next = next_valid_count(*input.config, *input.weights, ParallelMode::kTp, gpus);
  const int next_adp = next_valid_count(*input.config, *input.weights, ParallelMode::kAdp, gpus);
  const int nearest = next == 0 ? next_adp : next_adp == 0 ? next : std::min(next, next_adp);
  return plan_error(
      "bad_parallel", fmt::format("{} devices: {}", gpus, reason),
      nearest > 0 ? fmt::format("{} devices, or --parallel layer", nearest) : "--parallel layer");
}

bool fits(const Placement& placement) {
  return placement.verdict == Verdict::kFits || placement.verdict == Verdict::kTight;
}

// Few sequences a device want all devices on each (tp); many want their own devices (adp). Source:
// planner.md section 6. What does not fit gives way to what does.
size_t choose(const std::vector<Placement>& placements, const PlanRequest& request, int gpus) {
  size_t tp = 0;
  size_t adp = 0;
  for (size_t i = 0; i < placements.size(); ++i) {
    (placements[i].split.mode == ParallelMode::kAdp ? adp : tp) = i;
  }
  if (placements.size() == 1) return 0;
  const bool few = request.batch <= 4 * int64_t{gpus};
  const bool long_sequences = placements[adp].memory.tokens < round_up_to_blocks(request.context);
  const size_t wanted = few || long_sequences ? tp : adp;
  const size_t other = wanted == tp ? adp : tp;
  if (fits(placements[wanted]) || !fits(placements[other])) {
    // With neither on the devices alone, offload (which is tp's) is the one that works.
    return !fits(placements[wanted]) && placements[tp].verdict == Verdict::kOffload ? tp : wanted;
  }
  return other;
}

void add_estimates(const PlanInput& input, const PlanModel& model, PlanReport& report) {
  const PlanRequest& request = *input.request;
  const SpeedConstants& speed = input.constants->speed;
  report.ttft_prompt = request.isl > 0 ? request.isl : std::min<int64_t>(1024, request.context);
  const SpeedPoint* point = report.asked_point();
  if (point != nullptr && !report.chosen.offload) {
    const auto prompt = prompt_ms(*input.config, *input.weights, input.device, report.chosen.split,
                                  static_cast<double>(report.ttft_prompt), input.kv, speed);
    if (prompt) report.ttft_ms = *prompt + point->step.total();
  }
  const auto file = static_cast<double>(model.stored && report.format_id == model.stored_format
                                            ? model.stored->file_bytes()
                                            : report.weights.file_bytes());
  if (input.hardware->ssd_rate) {
    // Each GPU's own way from the host: PCIe 5 x16 from Hopper on, PCIe 4 x16 before.
    const bool gen5 = parse_number(input.device.compute_capability).value_or(9) >= 9;
    const double host = input.device.is_cpu() || input.device.is_unified()
                            ? 1e15
                            : report.chosen.split.gpus * (gen5 ? 64e9 : 32e9);
    report.load_s = file / std::min(*input.hardware->ssd_rate, host);
  }
  if (request.net_rate) report.download_s = file / *request.net_rate;
  double watts = 0;
  bool known = !input.hardware->groups.empty();
  for (const DeviceGroup& group : input.hardware->groups) {
    known = known && group.device.tdp_w.has_value();
    watts += group.device.tdp_w.value_or(0) * group.count;
  }
  if (input.hardware->cpu && report.chosen.offload) {
    known = known && input.hardware->cpu->tdp_w.has_value();
    watts += input.hardware->cpu->tdp_w.value_or(0);
  }
  constexpr double kMeanLoad = 0.7;  // planner.md section 8
  if (known && report.exits_with_success()) report.watts = watts * kMeanLoad;
  if (point != nullptr) {
    if (report.watts) report.joules_per_token = *report.watts / point->tokens_per_second;
    if (request.device_hour) {
      report.price_per_mtok = *request.device_hour * input.hardware->num_devices() / 3600 * 1e6 /
                              point->tokens_per_second;
    }
  }
}

void add_notes(const PlanInput& input, PlanReport& report) {
  const PlanRequest& request = *input.request;
  const PlanDevice& device = input.device;
  const Placement& chosen = report.chosen;
  const auto note = [&](std::string text) { report.notes.push_back(std::move(text)); };
  for (const std::string& warning : report.model->warnings) note(warning);
  for (const DeviceGroup& group : input.hardware->groups) {
    const PlanDevice& d = group.device;
    if (d.bytes_source == BytesSource::kNominal) {
      note(fmt::format("{}: the vendor's nominal memory; a driver reports another figure", d.name));
    }
    if (d.id != "custom" && d.id != "local") {
      if (!d.checked) {
        note(fmt::format("{}: unchecked catalogue figures", d.name));
      } else if (d.checked_figures != "all" && d.checked_figures != "computed") {
        note(fmt::format("{}: only {} checked, other catalogue figures unchecked", d.name,
                         d.checked_figures));
      }
    }
  }
  if (input.hardware->is_mixed()) {
    note("mixed devices: every one is planned as the weakest of them");
  }
  const bool nvfp4 = report.weights.cell(WeightKind::kRoutedExperts).storage == Storage::kNvfp4;
  if (nvfp4 && !device.fp4_flops && device.bf16_flops) {
    note(
        fmt::format("{} has no NVFP4 arithmetic: weights stay 4-bit in memory and multiply at the "
                    "BF16 rate",
                    device.name));
  }
  if (!chosen.no_speed.empty()) note(chosen.no_speed);
  if (!chosen.points.empty() && !chosen.points.front().step.comm) {
    note("no link rate is known: time for messages is left out");
  }
  if (chosen.max_num_tokens < input.max_num_tokens) {
    note(fmt::format("max_num_tokens lowered from {} to {} to make room", input.max_num_tokens,
                     chosen.max_num_tokens));
  }
  const auto assume = [&](std::string text) { report.assumptions.push_back(std::move(text)); };
  const MemoryConstants& memory = input.constants->memory;
  assume(fmt::format(
      "{} memory constants: {} MiB context, {} MiB collectives, {} MiB graphs, "
      "experts' imbalance {}",
      input.constants->calibrated ? "calibrated" : "default", memory.context_bytes >> 20,
      memory.collectives_bytes >> 20, memory.graphs_bytes >> 20, memory.expert_imbalance));
  assume(fmt::format("one forward pass of a rank: {} tokens, {} sequences", chosen.max_num_tokens,
                     chosen.max_batch_per_rank));
  if (!chosen.points.empty()) {
    const auto& measured = input.constants->measured;
    assume(measured ? fmt::format("speed: measured by nibble bench ({}, prompts of {} and answers "
                                  "of {} tokens), not estimated; between two batches interpolated",
                                  measured->backend, measured->isl, measured->osl)
           : request.osl > 0
               ? fmt::format("speed: steady serving, prompts of {} and answers of {} tokens, mean "
                             "context {:.0f}",
                             request.isl, request.osl, input.mean_context)
               : fmt::format("speed: decoding alone at a mean context of {:.0f} tokens (half of "
                             "--context; --isl and --osl estimate serving)",
                             input.mean_context));
    const bool copied = chosen.offload && chosen.offload->ram > 0 && !input.hardware->cpu;
    const auto copy_rate = request.host_link_rate ? request.host_link_rate : host_link_rate(device);
    if (copied && copy_rate && !device.is_cpu()) {
      assume(fmt::format(
          "experts in RAM are copied over one link at {:.0f} GB/s, after the "
          "devices' work{}; --cpu NAME: a CPU computes them there",
          *copy_rate / 1e9,
          request.host_link_rate ? "" : " (from 55 GB/s of PCIe 5 x16, measured on an H200)"));
    }
    assume(request.skew
               ? fmt::format("experts are used by a Zipf law of exponent {}", *request.skew)
               : std::string("every expert is used equally often"));
    if (request.draft_tokens > 0) {
      assume(fmt::format("{} tokens a step with {} draft tokens{}", report.accept_length,
                         request.draft_tokens,
                         request.accept_length ? "" : " (TensorRT-LLM's published acceptance)"));
    }
    if (chosen.split.gpus > device.gpus_per_node) {
      assume(
          fmt::format("nodes of {} devices, {:.0f} GB/s between nodes for each device in each "
                      "direction",
                      device.gpus_per_node, request.node_link_rate / 1e9));
    }
    if (device.sockets > 1 && !request.numa_aware) {
      assume("one CPU socket's memory rate counts (--numa-aware counts all)");
    }
  }
}

}  // namespace

std::string_view verdict_name(Verdict verdict) {
  switch (verdict) {
    case Verdict::kFits:
      return "fits";
    case Verdict::kTight:
      return "tight";
    case Verdict::kOffload:
      return "offload";
    case Verdict::kDoesNotFit:
      return "does_not_fit";
  }
  return "?";
}

const SpeedPoint* PlanReport::asked_point() const {
  for (const SpeedPoint& point : chosen.points) {
    if (point.batch == request.batch) return &point;
  }
  return nullptr;
}

double PlanReport::gpu_memory_utilization() const {
  const RankMemory& memory = chosen.memory;
  return static_cast<double>(memory.weights + memory.fixed + memory.workspace + memory.pool) /
         static_cast<double>(std::max<int64_t>(1, memory.device_bytes));
}

double PlanReport::mem_fraction_static() const {
  const RankMemory& memory = chosen.memory;
  return static_cast<double>(memory.weights + memory.pool) /
         static_cast<double>(std::max<int64_t>(1, memory.device_bytes));
}

PlanResult<PlanReport> make_plan(const PlanModel& model, const std::optional<PlanFormat>& format,
                                 const Hardware& hardware, const PlanRequest& request,
                                 const PlanConstants& constants) {
  PlanReport report;
  report.model = &model;
  report.hardware = &hardware;
  report.request = request;
  if (format && (!model.stored || format->id != model.stored_format)) {
    report.weights = NIBBLE_TRY(weights_of(model.config, *format));
    report.format_id = format->id;
    report.format_title = format->title;
  } else if (model.stored) {
    report.weights = *model.stored;
    report.format_id = model.stored_format;
    report.format_title = model.stored_format + " as stored";
  } else {
    const PlanFormat usual = NIBBLE_TRY(find_format("nvfp4-v2"));
    report.weights = NIBBLE_TRY(weights_of(model.config, usual));
    report.format_id = usual.id;
    report.format_title = usual.title;
  }
  NIBBLE_TRY(check_request(model, report.weights, request));
  const bool nvfp4 = report.weights.cell(WeightKind::kRoutedExperts).storage == Storage::kNvfp4;
  report.kv = request.kv.value_or(nvfp4 ? KvFormat::kFp8 : KvFormat::kBf16);
  report.accept_length =
      request.accept_length.value_or(default_accept_length(request.draft_tokens));
  report.mean_context =
      request.osl > 0 ? static_cast<double>(request.isl) + static_cast<double>(request.osl) / 2
                      : static_cast<double>(request.context) / 2;

  PlanInput input;
  input.config = &model.config;
  input.weights = &report.weights;
  input.hardware = &hardware;
  input.request = &report.request;
  input.constants = &constants;
  if (hardware.vram_bytes) {
    input.device.id = "vram";
    input.device.name = "device memory";
    input.device.memory_bytes = *hardware.vram_bytes;
    input.device.bytes_source = BytesSource::kUser;
  } else {
    input.device = hardware.weakest();
  }
  input.kv = report.kv;
  input.accept_length = report.accept_length;
  input.mean_context = report.mean_context;
  input.max_num_tokens = request.max_num_tokens.value_or(input.device.is_cpu() ? 512 : 8192);
  input.max_batch = request.max_batch.value_or(input.device.is_cpu() ? 32 : 256);
  report.device = input.device;

  int gpus = hardware.vram_bytes ? 1 : hardware.num_devices();
  std::vector<Placement> placements;
  if (const auto asked = NIBBLE_TRY(asked_split(input, gpus))) {
    placements.push_back(place(input, *asked));
  } else {
    auto splits = possible_splits(input, gpus);
    // Of a rack of 72 GPUs a power of two is used.
    while (!splits && gpus > 8 && input.device.device_class == "system") {
      splits = possible_splits(input, --gpus);
    }
    if (!splits) return tl::unexpected(splits.error());
    if (gpus != hardware.num_devices() && !hardware.vram_bytes) {
      report.notes.push_back(
          fmt::format("{} of {} devices are used: the model's experts divide no "
                      "other way",
                      gpus, hardware.num_devices()));
    }
    for (const Split& split : *splits) placements.push_back(place(input, split));
  }
  for (Placement& placement : placements) add_speed(input, placement);
  const size_t chosen = choose(placements, request, gpus);
  report.chosen = placements[chosen];
  for (size_t i = 0; i < placements.size(); ++i) {
    if (i != chosen) report.alternatives.push_back(placements[i]);
  }
  add_notes(input, report);
  add_estimates(input, model, report);
  add_launch(report, format);
  return report;
}

}  // namespace nibble
