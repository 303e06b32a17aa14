// nibble trace FILE: what each cache policy makes of a recorded routing trace.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "nibble/base/error.h"
#include "nibble/base/output_file.h"
#include "nibble/base/text.h"
#include "nibble/checkpoint/json.h"
#include "nibble/cli/cli_common.h"
#include "nibble/cli/command.h"
#include "nibble/model/expert_placement.h"
#include "nibble/offload/routing_trace.h"
#include "nibble/offload/trace_replay.h"

namespace nibble {
namespace {

struct TraceArguments {
  std::string file;
  std::vector<double> shares = {5, 10, 25, 50, 75};
  int64_t ageing_tokens = 0;
  int64_t max_tokens = 0;
  std::string counts;
  std::string placement;
  int ep_size = 0;
  int replicas = 0;
  bool json = false;
};

// Hit rates with a share, in %, of each layer's experts in memory.
struct Replay {
  double share;
  int slots;
  double lfu, lru, score, optimum;
};
using Replays = std::vector<Replay>;

Replays replay_all(const RoutingTrace& trace, const TraceArguments& arguments) {
  Replays replays;
  for (const double share : arguments.shares) {
    const double wanted = std::round(share / 100 * trace.num_experts);
    const int slots = std::clamp(static_cast<int>(wanted), 1, trace.num_experts);
    const auto hits = [&](EvictionKind kind) {
      EvictionOptions options;
      options.kind = kind;
      options.ageing_tokens = arguments.ageing_tokens;
      return replay(trace, options, slots).hit_rate();
    };
    replays.push_back({share, slots, hits(EvictionKind::kLfu), hits(EvictionKind::kLru),
                       hits(EvictionKind::kScore),
                       replay_offline_optimum(trace, slots).hit_rate()});
  }
  return replays;
}

std::string replays_json(const Replays& replays, const RoutingTrace& trace, size_t layers) {
  JsonValue list = JsonValue::array();
  for (const Replay& r : replays) {
    list.push_back(JsonValue::object({
        {"share", JsonValue::number(r.share / 100)},
        {"slots", JsonValue::integer(r.slots)},
        {"lfu", JsonValue::number(r.lfu)},
        {"lru", JsonValue::number(r.lru)},
        {"score", JsonValue::number(r.score)},
        {"optimum", JsonValue::number(r.optimum)},
    }));
  }
  return to_json(JsonValue::object({
             {"layers", JsonValue::integer(static_cast<int64_t>(layers))},
             {"experts", JsonValue::integer(trace.num_experts)},
             {"steps", JsonValue::integer(static_cast<int64_t>(trace.steps.size()))},
             {"hit_rates", std::move(list)},
         })) +
         "\n";
}

// In how many steps each expert was used: with steps of one token its tokens.
ExpertLoad load_of(const RoutingTrace& trace) {
  ExpertLoad load;
  for (const auto& [layer, counts] : count_experts(trace)) {
    load[layer].assign(counts.begin(), counts.end());
  }
  return load;
}

Status write_placement(const RoutingTrace& trace, const TraceArguments& arguments) {
  const ExpertLoad load = load_of(trace);
  const ExpertPlacement by_number =
      NIBBLE_TRY(balance_experts({}, trace.num_experts, arguments.ep_size, 0));
  const ExpertPlacement placement =
      NIBBLE_TRY(balance_experts(load, trace.num_experts, arguments.ep_size, arguments.replicas));
  NIBBLE_TRY(write_text_file(arguments.placement, to_text(placement)));
  const auto tell = [&](const char* what, const ExpertPlacement& of) {
    double sum = 0;
    double most = 1;
    for (const auto& [layer, of_expert] : load) {
      const double value = imbalance(of.slots_of(layer), of.num_groups, of_expert);
      sum += value;
      most = std::max(most, value);
    }
    print(fmt::format("  {:<12} {:.3f} in the mean of the layers, {:.3f} at most\n", what,
                      sum / static_cast<double>(load.size()), most));
  };
  print(fmt::format("{} groups of {} experts; the busiest group's load over the mean:\n",
                    placement.num_groups, placement.slots_per_group));
  tell("by number", by_number);
  tell("as placed", placement);
  return {};
}

Status run_trace(const TraceArguments& arguments) {
  RoutingTrace trace = NIBBLE_TRY(load_routing_trace(arguments.file));
  if (arguments.max_tokens > 0) trace = decode_steps(std::move(trace), arguments.max_tokens);
  if (trace.steps.empty()) return invalid_argument("no step is as small as --max-tokens");
  std::set<int> layers;
  int64_t uses = 0;
  int64_t tokens = 0;
  for (const RoutingStep& step : trace.steps) {
    layers.insert(step.layer);
    uses += static_cast<int64_t>(step.uses.size());
    tokens += step.num_tokens;
  }
  if (!arguments.counts.empty()) {
    NIBBLE_TRY(write_text_file(arguments.counts, expert_counts_text(trace)));
  }
  if (!arguments.placement.empty()) return write_placement(trace, arguments);
  const Replays replays = replay_all(trace, arguments);
  const auto steps = static_cast<double>(trace.steps.size());
  if (arguments.json) {
    print(replays_json(replays, trace, layers.size()));
    return {};
  }
  print(fmt::format("{} layers of {} experts, {} steps of {:.1f} tokens, {:.1f} experts a step\n\n",
                    layers.size(), trace.num_experts, format_count(trace.steps.size()),
                    static_cast<double>(tokens) / steps, static_cast<double>(uses) / steps));
  print("hits in % of uses, by the share of a layer's experts in memory\n");
  print("share    slots      lfu     lru   score optimum   lfu/optimum\n");
  for (const Replay& r : replays) {
    print(fmt::format("{:>4g} % {:>7}{:>8.2f}{:>8.2f}{:>8.2f}{:>8.2f}   {:>8.1f} %\n", r.share,
                      r.slots, 100 * r.lfu, 100 * r.lru, 100 * r.score, 100 * r.optimum,
                      r.optimum > 0 ? 100 * r.lfu / r.optimum : 100));
  }
  return {};
}

}  // namespace

void add_trace_command(CLI::App& app, int* exit_code) {
  auto arguments = std::make_shared<TraceArguments>();
  CLI::App* const command =
      app.add_subcommand("trace", "Replay a recorded routing trace through every cache of experts");
  command->footer(
      "examples:\n"
      "  nibble run demo -p \"The capital of France is\" -n 500 --routing-trace routing.txt\n"
      "  nibble trace routing.txt --counts hot.txt\n"
      "  nibble run demo --expert-memory 5MB --hot-experts hot.txt\n"
      "  nibble trace routing.txt --max-tokens 1 --ep-size 4 --placement placed.txt\n"
      "  nibble run demo --tp-size 4 --ep-size 4 --expert-placement placed.txt");
  command->add_option("FILE", arguments->file, "What --routing-trace wrote")->required();
  command
      ->add_option("--shares", arguments->shares,
                   "Percent of a layer's experts in memory [5,10,25,50,75]")
      ->delimiter(',')
      ->check(CLI::Range(0.0, 100.0).description(""))
      ->type_name("LIST");
  command
      ->add_option("--ageing-tokens", arguments->ageing_tokens,
                   "Tokens after which lfu halves its counts [the number of experts]")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 40).description(""))
      ->type_name("N");
  command
      ->add_option("--max-tokens", arguments->max_tokens,
                   "Leave out steps of more tokens: 1 keeps decoding alone [all steps]")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 40).description(""))
      ->type_name("N");
  command->add_option("--counts", arguments->counts, "Write how often each expert was used")
      ->type_name("FILE");
  command->add_flag("--json", arguments->json, "Print the hit rates as JSON");
  CLI::Option* const placement =
      command
          ->add_option("--placement", arguments->placement,
                       "Write which experts each group of ranks should hold, by this load")
          ->type_name("FILE");
  CLI::Option* const ep_size =
      command->add_option("--ep-size", arguments->ep_size, "Groups of ranks that deal the experts")
          ->check(CLI::Range(2, 1024).description(""))
          ->needs(placement)
          ->type_name("N");
  placement->needs(ep_size);
  command
      ->add_option("--replicas", arguments->replicas,
                   "Copies of busy experts in each layer, beside one of each [0]")
      ->check(CLI::Range(0, 65536).description(""))
      ->needs(placement)
      ->type_name("N");
  command->callback(
      [arguments, exit_code] { *exit_code = report_status(run_trace(*arguments), "trace"); });
}

}  // namespace nibble
