// Which group of ranks holds which routed experts, when it isn't by their numbers: an order from
// measured load, the busiest experts more than once (DeepSeek's EPLB, as a plan that stays).
//
//   nibble-expert-placement 1 experts 256 groups 4 slots 66
//   LAYER EXPERT EXPERT ...
//
// One line for each layer: the experts of group 0, then of group 1, ..., `slots` of each.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/base/result.h"

namespace nibble {

// Which slots of a layer hold an expert: ExpertSlotsView, the slots of an expert ascending. Empty:
// expert e is in slot e.
struct ExpertSlots {
  std::vector<int32_t> begin;  // [num_experts + 1]
  std::vector<int32_t> slots;  // [num_slots]

  // ExpertDispatch::place(), in host memory.
  void place(int64_t count, const float* weights, int32_t* expert_ids) const;
};

struct ExpertPlacement {
  int num_experts = 0;
  int num_groups = 0;       // ep_size
  int slots_per_group = 0;  // experts that each group holds of a layer; those of all: num_slots()
  // By layer: [num_slots] experts, each at least once, and not twice in a group.
  std::map<int, std::vector<int32_t>> layers;

  int num_slots() const { return num_groups * slots_per_group; }

  // Of a layer that has no line: experts in order of their numbers; where there are more slots than
  // experts, each group repeats those that follow its own.
  std::vector<int32_t> slots_of(int layer) const;

  ExpertSlots index_of(int layer) const;
};

// Errors: kCorrupt naming the line and what is wrong with it.
Result<ExpertPlacement> parse_expert_placement(std::string_view text);
Result<ExpertPlacement> load_expert_placement(const std::filesystem::path& path);
std::string to_text(const ExpertPlacement& placement);

// Load by layer and expert, in any unit: tokens, or steps that used it.
using ExpertLoad = std::map<int, std::vector<double>>;

// A placement for this load. With num_replicas > 0 the expert with the most load for each of its
// copies gets one more, as often; then, the heaviest copy first, each goes to the group with the
// least load that has room and doesn't hold the expert yet (longest processing time first); at last
// exchanges between two groups take from the busiest what they can. Ties go
// to the lower number, so that the same load gives the same plan. Errors: kInvalidArgument when
// num_groups doesn't divide num_experts + num_replicas, or a group would hold an expert twice.
Result<ExpertPlacement> balance_experts(const ExpertLoad& load, int num_experts, int num_groups,
                                        int num_replicas);

// How much more than the mean the busiest group has to do: its load over the mean, 1 or more, of
// `slots` as in ExpertPlacement::layers. An expert's load is shared by its copies.
double imbalance(std::span<const int32_t> slots, int num_groups, std::span<const double> load);

}  // namespace nibble
