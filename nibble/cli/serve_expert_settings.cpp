// Settings of nibble serve that say where routed experts are kept: those of expert_arguments.h.
#include <fmt/format.h>

#include "nibble/base/error.h"
#include "nibble/cli/expert_refusals.h"
#include "nibble/cli/serve_setters.h"
#include "nibble/plan/catalogue.h"

namespace nibble {
namespace {

constexpr int64_t kMostBytes = 1'000'000'000'000'000;

Setter size(const std::function<void(ServeOptions&, uint64_t)>& store) {
  return [store](ServeOptions& o, const std::string& v) -> Status {
    // Bytes without a unit, as nibble run takes them.
    if (!v.empty() && v.find_first_not_of("0123456789") == std::string::npos) {
      store(o, static_cast<uint64_t>(NIBBLE_TRY(parse_integer(v, 1, kMostBytes))));
      return {};
    }
    const auto bytes = parse_size(v);
    if (!bytes) return invalid_argument(fmt::format("'{}' is no size such as 24GB", v));
    store(o, static_cast<uint64_t>(*bytes));
    return {};
  };
}

}  // namespace

void add_expert_settings(std::vector<ServeSetting>& s) {
  using Options = ServeOptions;
  constexpr const char* kExperts = "Experts in tiers";
  s.push_back({"expert_memory",
               {"ram", "cpu_cache_size"},
               {},
               kExperts,
               "RAM for routed experts, as 24GB; the others stay in files [all]",
               "SIZE",
               size([](Options& o, uint64_t v) { o.model_options.experts.memory_bytes = v; })});
  s.push_back({"gpu_expert_memory",
               {},
               {},
               kExperts,
               "With backend cuda: GPU memory for routed experts [all, or 85 % of what is free]",
               "SIZE",
               size([](Options& o, uint64_t v) { o.model_options.experts.gpu_memory_bytes = v; })});
  s.push_back(
      {"gpu_expert_slots",
       {},
       {},
       kExperts,
       "The same as a number of experts of each layer",
       "N",
       integer(1, 1 << 20, [](Options& o, int64_t v) { o.model_options.experts.gpu_slots = v; })});
  s.push_back(
      {"gpu_reserved",
       {},
       {},
       kExperts,
       "GPU memory that experts leave when no budget is given [preset: 2GiB]",
       "SIZE",
       size([](Options& o, uint64_t v) { o.model_options.experts.gpu_reserved_bytes = v; })});
  s.push_back({"cpu_experts",
               {},
               {},
               kExperts,
               "With backend cuda: the CPU computes experts in RAM: auto, all or off [off]",
               "NAME",
               [](Options& o, const std::string& v) -> Status {
                 o.model_options.experts.cpu_experts = NIBBLE_TRY(parse_host_experts(v));
                 return {};
               }});
  s.push_back({"expert_preset",
               {},
               {},
               kExperts,
               "balanced, low-latency or high-throughput [balanced]",
               "NAME",
               [](Options& o, const std::string& v) -> Status {
                 o.model_options.experts.preset = NIBBLE_TRY(parse_expert_preset(v));
                 return {};
               }});
  s.push_back({"copy_streams",
               {},
               {},
               kExperts,
               "From RAM to the GPU, 1 or 2 [preset: 1]",
               "N",
               integer(1, 2, [](Options& o, int64_t v) {
                 o.model_options.experts.copy_streams = static_cast<int>(v);
               })});
  s.push_back({"expert_cache",
               {},
               {},
               kExperts,
               "What stays: lfu, lru or score [lfu]",
               "NAME",
               [](Options& o, const std::string& v) -> Status {
                 o.model_options.experts.eviction.kind = NIBBLE_TRY(parse_eviction_kind(v));
                 return {};
               }});
  s.push_back({"ageing_tokens",
               {},
               {},
               kExperts,
               "Tokens after which lfu halves its counts [the number of experts]",
               "N",
               integer(1, int64_t{1} << 40, [](Options& o, int64_t v) {
                 o.model_options.experts.eviction.ageing_tokens = v;
               })});
  s.push_back({"prefetch_min_score",
               {},
               {},
               kExperts,
               "Guesses with a smaller routing weight are not read [0]",
               "X",
               number(0, 1e9, [](Options& o, double v) {
                 o.model_options.experts.prefetch_min_score = static_cast<float>(v);
               })});
  s.push_back(
      {"hot_experts",
       {},
       {},
       kExperts,
       "Counts of nibble trace: the most used are kept",
       "FILE",
       text([](Options& o, const std::string& v) { o.model_options.experts.hot_experts = v; })});
  s.push_back({"prefetch_layers",
               {},
               {},
               kExperts,
               "Layers ahead whose experts are guessed, 0 or 1 [preset: 1]",
               "N",
               integer(0, 1, [](Options& o, int64_t v) {
                 o.model_options.experts.prefetch_layers = static_cast<int>(v);
               })});
  s.push_back({"io",
               {},
               {},
               kExperts,
               "auto, uring, pread or buffered [auto]",
               "NAME",
               [](Options& o, const std::string& v) -> Status {
                 o.model_options.experts.io = NIBBLE_TRY(parse_io_backend(v));
                 return {};
               }});
  s.push_back({"io_depth",
               {},
               {},
               kExperts,
               "Reads of 1 MB under way, 1..256 [16]",
               "N",
               integer(1, 256, [](Options& o, int64_t v) {
                 o.model_options.experts.io_depth = static_cast<int>(v);
               })});
  s.push_back(
      {"routing_trace",
       {},
       {},
       kExperts,
       "Write which experts were chosen, for nibble trace",
       "FILE",
       text([](Options& o, const std::string& v) { o.model_options.experts.routing_trace = v; })});
  for (const ExpertRefusal& refusal : expert_refusals()) {
    s.push_back({refusal.name, {}, {}, kExperts, "Refused", "X", refused(refusal.why)});
  }
}

}  // namespace nibble
