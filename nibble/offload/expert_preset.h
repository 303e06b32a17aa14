// Named sets of values for options of expert tiers that say nothing themselves.
#pragma once

#include <cstdint>
#include <string_view>

#include "nibble/base/result.h"

namespace nibble {

// What a machine is asked for. None changes a token.
enum class ExpertPreset {
  kBalanced,
  kLowLatency,      // few requests: most memory to experts, guesses read ahead, two copy streams
  kHighThroughput,  // many requests: room for their cache, no guesses (a batch wants nearly all)
};

struct ExpertPresetValues {
  int prefetch_layers = 1;
  float prefetch_min_score = 0;
  int copy_streams = 1;
  uint64_t gpu_reserved_bytes = uint64_t{2} << 30;
  double share_of_free = 0.85;  // of free memory, for experts without a budget of their own
};

ExpertPresetValues preset_values(ExpertPreset preset);

// balanced, low-latency, high-throughput. Errors: kInvalidArgument naming these and the nearest.
Result<ExpertPreset> parse_expert_preset(std::string_view name);
std::string_view expert_preset_name(ExpertPreset preset);

}  // namespace nibble
