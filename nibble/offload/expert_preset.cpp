#include "nibble/offload/expert_preset.h"

#include <array>

#include "nibble/offload/name_choice.h"

namespace nibble {
namespace {

constexpr std::array kPresets = {ExpertPreset::kBalanced, ExpertPreset::kLowLatency,
                                 ExpertPreset::kHighThroughput};

}  // namespace

ExpertPresetValues preset_values(ExpertPreset preset) {
  constexpr uint64_t kGiB = uint64_t{1} << 30;
  switch (preset) {
    case ExpertPreset::kBalanced:
      break;
    case ExpertPreset::kLowLatency:
      return {1, 0, 2, kGiB, 0.92};
    case ExpertPreset::kHighThroughput:
      return {0, 0, 1, 8 * kGiB, 0.7};
  }
  return {};
}

std::string_view expert_preset_name(ExpertPreset preset) {
  switch (preset) {
    case ExpertPreset::kBalanced:
      return "balanced";
    case ExpertPreset::kLowLatency:
      return "low-latency";
    case ExpertPreset::kHighThroughput:
      return "high-throughput";
  }
  return "";
}

Result<ExpertPreset> parse_expert_preset(std::string_view name) {
  return choose_by_name<ExpertPreset>("the preset", name, kPresets, expert_preset_name);
}

}  // namespace nibble
