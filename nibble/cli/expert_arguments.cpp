#include "nibble/cli/expert_arguments.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>

#include "nibble/base/error.h"
#include "nibble/base/text.h"

namespace nibble {

namespace {

std::string dashed(std::string name) {
  std::replace(name.begin(), name.end(), '_', '-');
  return name;
}

}  // namespace

void add_expert_options(CLI::App& command, ExpertArguments* a) {
  const std::string group = "Experts in tiers";
  command
      .add_option("--expert-memory,--ram,--cpu-cache-size", a->memory,
                  "RAM for routed experts, as 24GB; the others stay in the model's files [all]")
      ->transform(CLI::AsSizeValue(true).description(""))
      ->type_name("SIZE")
      ->group(group);
  command
      .add_option("--gpu-expert-memory", a->gpu_memory,
                  "With --backend cuda: GPU memory for routed experts [all, or 85 % of what is "
                  "free]")
      ->transform(CLI::AsSizeValue(true).description(""))
      ->type_name("SIZE")
      ->group(group);
  command
      .add_option("--gpu-expert-slots", a->gpu_slots,
                  "The same as a number of experts of each layer")
      ->type_name("N")
      ->group(group);
  command
      .add_option("--gpu-reserved", a->gpu_reserved,
                  "GPU memory that experts leave when no budget is given [preset: 2GiB]")
      ->transform(CLI::AsSizeValue(true).description(""))
      ->type_name("SIZE")
      ->group(group);
  command.add_option("--copy-streams", a->copy_streams, "From RAM to the GPU, 1 or 2 [preset: 1]")
      ->type_name("N")
      ->group(group);
  command
      .add_option("--cpu-experts", a->cpu_experts,
                  "With --backend cuda: the CPU computes experts that lie in RAM: auto (where that "
                  "is sooner done than copying), all or off; changes last bits [off]")
      ->type_name("NAME")
      ->group(group);
  command
      .add_option("--expert-preset", a->preset,
                  "balanced, low-latency or high-throughput: options that say nothing [balanced]")
      ->type_name("NAME")
      ->group(group);
  command.add_option("--expert-cache", a->cache, "What stays: lfu, lru or score [lfu]")
      ->type_name("NAME")
      ->group(group);
  command
      .add_option("--ageing-tokens", a->ageing_tokens,
                  "Tokens after which lfu halves its counts [the number of experts]")
      ->type_name("N")
      ->group(group);
  command
      .add_option("--hot-experts", a->hot_experts,
                  "Counts of nibble trace: half of each layer's room is kept for the most used")
      ->type_name("FILE")
      ->group(group);
  command
      .add_option("--prefetch-layers", a->prefetch_layers,
                  "Layers ahead whose experts are guessed and read, 0 or 1 [preset: 1]")
      ->type_name("N")
      ->group(group);
  command
      .add_option("--prefetch-min-score", a->prefetch_min_score,
                  "Guesses with a smaller routing weight are not read [0]")
      ->type_name("X")
      ->group(group);
  command.add_option("--io", a->io, "auto, uring, pread or buffered [auto]")
      ->type_name("NAME")
      ->group(group);
  command.add_option("--io-depth", a->io_depth, "Reads of 1 MB under way, 1..256 [16]")
      ->type_name("N")
      ->group(group);
  command
      .add_option("--routing-trace", a->routing_trace,
                  "Write which experts were chosen, for nibble trace")
      ->type_name("FILE")
      ->group(group);
  for (const ExpertRefusal& refusal : expert_refusals()) {
    command
        .add_option_function<std::vector<std::string>>(
            "--" + dashed(refusal.name),
            [a, &refusal](const std::vector<std::string>&) { a->refused = &refusal; })
        ->expected(0, 1)
        ->group("");  // not in --help
  }
}

Result<ExpertOptions> expert_options(const ExpertArguments& a) {
  if (a.refused != nullptr) {
    return unsupported(
        fmt::format("--{} is refused: {}", dashed(a.refused->name), dashed(a.refused->why)));
  }
  ExpertOptions options;
  options.memory_bytes = a.memory;
  options.gpu_memory_bytes = a.gpu_memory;
  if (a.gpu_slots && *a.gpu_slots < 1) {
    return invalid_argument(
        fmt::format("--gpu-expert-slots is {}, expected 1 or more", *a.gpu_slots));
  }
  options.gpu_slots = a.gpu_slots;
  options.gpu_reserved_bytes = a.gpu_reserved;
  if (a.copy_streams && (*a.copy_streams < 1 || *a.copy_streams > 2)) {
    return invalid_argument(fmt::format("--copy-streams is {}, expected 1 or 2", *a.copy_streams));
  }
  options.cpu_experts = NIBBLE_TRY(parse_host_experts(a.cpu_experts));
  if (a.preset) options.preset = NIBBLE_TRY(parse_expert_preset(*a.preset));
  options.copy_streams = a.copy_streams;
  options.eviction.kind = NIBBLE_TRY(parse_eviction_kind(a.cache));
  if (a.ageing_tokens && *a.ageing_tokens < 1) {
    return invalid_argument(
        fmt::format("--ageing-tokens is {}, expected 1 or more", *a.ageing_tokens));
  }
  options.eviction.ageing_tokens = a.ageing_tokens.value_or(0);
  if (a.prefetch_layers && (*a.prefetch_layers < 0 || *a.prefetch_layers > 1)) {
    return invalid_argument(
        fmt::format("--prefetch-layers is {}, expected 0 or 1", *a.prefetch_layers));
  }
  options.prefetch_layers = a.prefetch_layers;
  if (a.prefetch_min_score && !(*a.prefetch_min_score >= 0)) {
    return invalid_argument(
        fmt::format("--prefetch-min-score is {}, expected 0 or more", *a.prefetch_min_score));
  }
  options.prefetch_min_score = a.prefetch_min_score;
  options.hot_experts = a.hot_experts;
  if (a.io) options.io = NIBBLE_TRY(parse_io_backend(*a.io));
  if (a.io_depth && (*a.io_depth < 1 || *a.io_depth > 256)) {
    return invalid_argument(fmt::format("--io-depth is {}, expected 1..256", *a.io_depth));
  }
  options.io_depth = a.io_depth;
  options.routing_trace = a.routing_trace;
  return options;
}

std::string describe_experts(const ExpertStoreStats& s) {
  const auto count = [](int64_t value) { return format_count(static_cast<uint64_t>(value)); };
  std::string text = fmt::format("experts: {} of {} in memory; {:.1f} % of {} were there",
                                 count(s.num_resident), count(s.num_experts), 100 * s.hit_rate(),
                                 count(s.num_hits + s.num_misses + s.num_guesses_late));
  if (s.bytes_read > 0) {
    text += fmt::format("; read {}", format_bytes(static_cast<uint64_t>(s.bytes_read)));
    if (s.read_seconds > 0) {
      const double rate = static_cast<double>(s.bytes_read) / s.read_seconds;
      text += fmt::format(" at {}/s", format_bytes(static_cast<uint64_t>(rate)));
    }
    text += fmt::format("; waited {:.2f} s; {} evicted", s.stall_seconds, count(s.num_evictions));
  }
  if (s.num_on_host > 0) {
    text +=
        fmt::format("; {} computed by the CPU in {:.2f} s", count(s.num_on_host), s.host_seconds);
  }
  if (s.below.num_slots > 0) {
    text += fmt::format("; below it {} of {} in RAM, {:.1f} % of {} were there",
                        count(s.below.num_resident), count(s.below.num_slots),
                        100 * s.below.hit_rate(), count(s.below.num_hits + s.below.num_misses));
    if (s.below.bytes_read > 0) {
      text += fmt::format(", read {}", format_bytes(static_cast<uint64_t>(s.below.bytes_read)));
    }
  }
  if (s.num_guesses > 0) {
    text += fmt::format("; {} guessed: {} in time, {} late, {} wasted", count(s.num_guesses),
                        count(s.num_guesses_used), count(s.num_guesses_late),
                        count(s.num_guesses_wasted));
  }
  return text;
}

}  // namespace nibble
