// The options that say where routed experts are kept, for every command that runs a model.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "nibble/base/result.h"
#include "nibble/cli/expert_refusals.h"
#include "nibble/engine/expert_options.h"
#include "nibble/model/expert_store.h"

namespace CLI {
class App;
}

namespace nibble {

struct ExpertArguments {
  std::optional<uint64_t> memory;
  std::optional<uint64_t> gpu_memory;
  std::optional<int64_t> gpu_slots;
  std::optional<uint64_t> gpu_reserved;
  std::optional<int> copy_streams;
  std::string cpu_experts = "off";
  std::optional<std::string> preset;
  std::string cache = "lfu";
  std::optional<int64_t> ageing_tokens;
  std::optional<int> prefetch_layers;
  std::optional<float> prefetch_min_score;
  std::string hot_experts;
  std::optional<std::string> io;
  std::optional<int> io_depth;
  std::string routing_trace;
  const ExpertRefusal* refused = nullptr;  // a name that was given and is not taken
};

// Registers them in a group of their own.
void add_expert_options(CLI::App& command, ExpertArguments* arguments);

// Errors: kInvalidArgument naming option and range.
Result<ExpertOptions> expert_options(const ExpertArguments& arguments);

// "experts: 96.1 % of 12,345 in memory, ...": what a run ends with.
std::string describe_experts(const ExpertStoreStats& stats);

}  // namespace nibble
