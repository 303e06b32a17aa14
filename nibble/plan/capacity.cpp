#include "nibble/plan/capacity.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "nibble/plan/kv_cache_size.h"
#include "nibble/plan/placement.h"

namespace nibble {
namespace {

double number(int64_t value) { return static_cast<double>(value); }

PlanStatus check(const CapacityRequest& capacity, const PlanRequest& request) {
  const auto above_zero = [](const char* option, double value) -> PlanStatus {
    if (value > 0 && value < 1e9) return {};
    return plan_error("bad_value",
                      fmt::format("{} is {}, expected a number above 0", option, value));
  };
  NIBBLE_TRY(above_zero("--capacity", capacity.requests_per_second));
  NIBBLE_TRY(above_zero("--max-tpot", capacity.max_tpot_ms));
  if (capacity.max_ttft_ms != 0) NIBBLE_TRY(above_zero("--max-ttft", capacity.max_ttft_ms));
  if (!(capacity.prefix_share >= 0 && capacity.prefix_share < 1)) {
    return plan_error("bad_value", fmt::format("--prefix-share is {}, expected 0 to below 1",
                                               capacity.prefix_share));
  }
  if (!(capacity.load > 0 && capacity.load <= 1)) {
    return plan_error("bad_value",
                      fmt::format("--load is {}, expected above 0 to 1", capacity.load));
  }
  if (request.isl <= 0 || request.osl <= 0) {
    return plan_error("usage", "--capacity needs the tokens of a prompt and of an answer",
                      "--isl 4000 --osl 1000");
  }
  return {};
}

// One split of one size, as fast as the formulas say.
struct Replica {
  const PlanReport* report;
  const Placement* placement;
  const PlanConstants* constants;

  const ModelConfig& config() const { return report->model->config; }

  // One step of `batch` sequences, without prompts.
  double step_ms(int64_t batch) const {
    Workload load;
    load.batch = number(batch);
    load.mean_context = report->mean_context;
    load.draft_tokens = report->request.draft_tokens;
    load.accept_length = report->accept_length;
    load.kv = report->kv;
    const Split& split = placement->split;
    const LinkSpeed link = link_speed(report->device, split.tp * split.dp, constants->speed,
                                      report->request.node_link_rate);
    return decode_step(config(), report->weights, device_as_run(report->device, report->request),
                       split, load, constants->speed,
                       device_overhead(report->device, report->request.graphs), link)
        .total();
  }

  // A prompt of which this share was found: the work of all of it less that of its beginning.
  double prompt_work_ms(double found) const {
    const auto ms = [&](double tokens) {
      return *prompt_ms(config(), report->weights, report->device, placement->split, tokens,
                        report->kv, constants->speed);
    };
    const double isl = number(report->request.isl);
    return ms(isl) - ms(found * isl);
  }

  // Sequences that end in a step.
  double ending(int64_t batch) const {
    return number(batch) * report->accept_length / number(report->request.osl);
  }

  // What memory and the workspace that was counted hold.
  int64_t max_batch() const {
    const Split& split = placement->split;
    const int lanes = split.mode == ParallelMode::kAdp ? split.dp : 1;
    return std::min(placement->max_batch, placement->max_batch_per_rank * lanes);
  }

  // The largest batch whose step, with the prompts that come in meanwhile, is within the limit; 0:
  // not even one sequence.
  int64_t largest_batch(double max_step_ms, double prompt_ms_each) const {
    int64_t low = 0;
    int64_t high = max_batch();
    while (low < high) {
      const int64_t middle = high - (high - low) / 2;
      if (step_ms(middle) + ending(middle) * prompt_ms_each <= max_step_ms) {
        low = middle;
      } else {
        high = middle - 1;
      }
    }
    return low;
  }

  // Seconds that a prompt's cache takes to the replica that goes on with it: every device sends its
  // part over its own link.
  double transfer_ms() const {
    const double bytes =
        number(report->request.isl) *
        number(kv_bytes_per_token(config(), report->kv, report->request.draft_tokens > 0));
    return bytes /
           (report->request.node_link_rate * constants->speed.eta_link * placement->split.gpus) *
           1e3;
  }
};

int64_t count_for(double wanted, double each) {
  return static_cast<int64_t>(std::ceil(wanted / each * (1 - 1e-12)));
}

// Prompts and answers on the same devices, with this share of prompts found.
CapacityRow together(const Replica& replica, CapacityWay way, double found,
                     const CapacityRequest& capacity) {
  CapacityRow row;
  row.way = way;
  row.split = replica.placement->split;
  const double accept = replica.report->accept_length;
  const double prompt = replica.prompt_work_ms(found);
  row.batch = replica.largest_batch(capacity.max_tpot_ms * accept, prompt);
  if (row.batch == 0) {
    row.problem = fmt::format("a token takes {:.0f} ms with one sequence",
                              (replica.step_ms(1) + replica.ending(1) * prompt) / accept);
    return row;
  }
  const double step = replica.step_ms(row.batch) + replica.ending(row.batch) * prompt;
  row.tpot_ms = step / accept;
  row.ttft_ms = prompt + step;
  row.rate = replica.ending(row.batch) / step * 1e3;
  row.replicas = count_for(capacity.requests_per_second, row.rate * capacity.load);
  row.gpus = row.replicas * row.split.gpus;
  return row;
}

CapacityRow apart(const Replica& answers, const Replica& prompts, const CapacityRequest& capacity) {
  CapacityRow row;
  row.way = CapacityWay::kDisaggregated;
  row.split = answers.placement->split;
  const double accept = answers.report->accept_length;
  row.batch = answers.largest_batch(capacity.max_tpot_ms * accept, 0);
  if (row.batch == 0) {
    row.problem =
        fmt::format("a token takes {:.0f} ms with one sequence", answers.step_ms(1) / accept);
    return row;
  }
  const double step = answers.step_ms(row.batch);
  const double prompt = prompts.prompt_work_ms(capacity.prefix_share);
  // The link of whoever has the fewest devices carries the caches of all its requests.
  row.transfer_ms = std::max(answers.transfer_ms(), prompts.transfer_ms());
  row.tpot_ms = step / accept;
  row.ttft_ms = prompt + row.transfer_ms + step;
  row.rate = std::min(answers.ending(row.batch) / step, 1 / answers.transfer_ms()) * 1e3;
  row.prompt_rate = std::min(1 / prompt, 1 / prompts.transfer_ms()) * 1e3;
  row.replicas = count_for(capacity.requests_per_second, row.rate * capacity.load);
  row.prompt_replicas = count_for(capacity.requests_per_second, row.prompt_rate * capacity.load);
  row.gpus = row.replicas * row.split.gpus + row.prompt_replicas * prompts.placement->split.gpus;
  return row;
}

// The better of two rows of one way and size.
bool is_better(const CapacityRow& a, const CapacityRow& b) {
  if (a.problem.empty() != b.problem.empty()) return a.problem.empty();
  return a.gpus < b.gpus || (a.gpus == b.gpus && a.tpot_ms < b.tpot_ms);
}

}  // namespace

std::string_view capacity_way_name(CapacityWay way) {
  switch (way) {
    case CapacityWay::kRandom:
      return "any replica";
    case CapacityWay::kCacheAware:
      return "cache-aware";
    case CapacityWay::kDisaggregated:
      return "prompts apart";
  }
  return "";
}

const CapacityRow* CapacityReport::best(CapacityWay way) const {
  const CapacityRow* found = nullptr;
  for (const CapacityRow& row : rows) {
    if (row.way != way || !row.problem.empty()) continue;
    if (found == nullptr || is_better(row, *found)) found = &row;
  }
  return found;
}

PlanResult<CapacityReport> plan_capacity(const PlanModel& model,
                                         const std::optional<PlanFormat>& format,
                                         const Hardware& hardware, const PlanRequest& request,
                                         const CapacityRequest& capacity,
                                         const PlanConstants& constants) {
  NIBBLE_TRY(check(capacity, request));
  if (hardware.groups.size() != 1) {
    return plan_error("conflict", "--capacity counts replicas of equal devices", "--gpu h200x8");
  }
  CapacityReport result;
  result.model = &model;
  result.capacity = capacity;
  PlanRequest of_plan = request;
  of_plan.context = request.isl + request.osl;

  std::optional<PlanReport> smallest;  // for prompts
  Hardware replica_hardware = hardware;
  const int base = hardware.groups.front().count;
  for (int times = 1; base * times <= std::max(base, capacity.max_replica_gpus); times *= 2) {
    replica_hardware.groups.front().count = base * times;
    auto plan = make_plan(model, format, replica_hardware, of_plan, constants);
    if (!plan && times > 1) continue;  // a count that the model's sizes don't divide into
    PlanReport report = NIBBLE_TRY(std::move(plan));
    if (!report.device.bandwidth || !report.device.bf16_flops) {
      return plan_error("conflict",
                        fmt::format("--capacity needs rates of memory and arithmetic, which the "
                                    "catalogue doesn't have for {}",
                                    report.device.name));
    }
    if (times == 1) {
      result.request = report.request;
      result.format_title = report.format_title;
      result.device = report.device;
      if (!report.exits_with_success() || report.chosen.offload) {
        return plan_error("conflict",
                          fmt::format("{} devices don't hold the model and one request of {} "
                                      "tokens: a replica needs more",
                                      base, of_plan.context));
      }
      smallest = report;
      result.prompt_split = smallest->chosen.split;
    }
    std::vector<const Placement*> placements = {&report.chosen};
    for (const Placement& other : report.alternatives) placements.push_back(&other);
    for (const CapacityWay way :
         {CapacityWay::kRandom, CapacityWay::kCacheAware, CapacityWay::kDisaggregated}) {
      std::optional<CapacityRow> best;
      for (const Placement* const placement : placements) {
        const bool holds =
            placement->verdict == Verdict::kFits || placement->verdict == Verdict::kTight;
        if (!holds || placement->split.mode == ParallelMode::kLayer) continue;
        const Replica replica{&report, placement, &constants};
        const Replica prompts{&*smallest, &smallest->chosen, &constants};
        CapacityRow row;
        if (way == CapacityWay::kDisaggregated) {
          row = apart(replica, prompts, capacity);
        } else if (way == CapacityWay::kCacheAware) {
          row = together(replica, way, capacity.prefix_share, capacity);
        } else {
          // What is found depends on the number of replicas, and the other way round.
          row = together(replica, way, 0, capacity);
          if (row.problem.empty()) {
            row = together(replica, way, capacity.prefix_share / static_cast<double>(row.replicas),
                           capacity);
          }
        }
        if (row.problem.empty() && capacity.max_ttft_ms > 0 && row.ttft_ms > capacity.max_ttft_ms) {
          row.problem = fmt::format("the first token comes after {:.0f} ms", row.ttft_ms);
        }
        if (!best || is_better(row, *best)) best = row;
      }
      if (best) result.rows.push_back(*std::move(best));
    }
  }
  std::stable_sort(result.rows.begin(), result.rows.end(),
                   [](const CapacityRow& a, const CapacityRow& b) { return a.way < b.way; });
  result.notes.push_back(fmt::format(
      "estimates, each rate x{} to x{}; no queues: a replica is planned for {:.0f} % of its rate",
      kRangeLow, kRangeHigh, 100 * capacity.load));
  if (capacity.prefix_share > 0) {
    result.notes.push_back(fmt::format(
        "{:.0f} % of a prompt are found where its beginning was computed before; that takes a "
        "cache that still holds it",
        100 * capacity.prefix_share));
  }
  result.notes.push_back(
      "nibble has no gateway of its own and sends no cache between replicas: both are this model's "
      "assumptions");
  return result;
}

}  // namespace nibble
