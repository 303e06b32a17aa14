// nibble trace FILE: what each cache policy makes of a recorded routing trace.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "nibble/base/error.h"
#include "nibble/base/output_file.h"
#include "nibble/base/text.h"
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
};

std::string share_text(double rate) { return fmt::format("{:>8.2f}", 100 * rate); }

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
  print(fmt::format("{} layers of {} experts, {} steps of {:.1f} tokens, {:.1f} experts a step\n\n",
                    layers.size(), trace.num_experts, format_count(trace.steps.size()),
                    static_cast<double>(tokens) / static_cast<double>(trace.steps.size()),
                    static_cast<double>(uses) / static_cast<double>(trace.steps.size())));
  print("hits in % of uses, by the share of a layer's experts in memory\n");
  print("share    slots      lfu     lru   score optimum   lfu/optimum\n");
  for (const double share : arguments.shares) {
    const double wanted = std::round(share / 100 * trace.num_experts);
    const int slots = std::clamp(static_cast<int>(wanted), 1, trace.num_experts);
    std::string line = fmt::format("{:>4g} % {:>7}", share, slots);
    double lfu = 0;
    for (const EvictionKind kind : {EvictionKind::kLfu, EvictionKind::kLru, EvictionKind::kScore}) {
      EvictionOptions options;
      options.kind = kind;
      options.ageing_tokens = arguments.ageing_tokens;
      const double rate = replay(trace, options, slots).hit_rate();
      if (kind == EvictionKind::kLfu) lfu = rate;
      line += share_text(rate);
    }
    const double best = replay_offline_optimum(trace, slots).hit_rate();
    line += share_text(best);
    line += fmt::format("   {:>8.1f} %\n", best > 0 ? 100 * lfu / best : 100);
    print(line);
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
