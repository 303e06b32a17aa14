#include "nibble/engine/lane_choice.h"

#include <algorithm>
#include <tuple>

#include "nibble/base/check.h"

namespace nibble {
namespace {

bool within(int64_t value, int64_t least, int64_t slack, double share) {
  const auto part = static_cast<int64_t>(share * static_cast<double>(least));
  return value <= least + std::max(slack, part);
}

}  // namespace

int choose_lane(std::span<const LaneLoad> lanes, const LaneLimits& limits) {
  NIBBLE_CHECK(!lanes.empty());
  LaneLoad least = lanes[0];
  for (const LaneLoad& lane : lanes) {
    least.num_sequences = std::min(least.num_sequences, lane.num_sequences);
    least.num_tokens = std::min(least.num_tokens, lane.num_tokens);
  }
  // A rank beyond a limit is taken when all are: one may have the fewest sequences, another the
  // fewest tokens.
  const auto order = [&](const LaneLoad& lane) {
    const bool too_many =
        !within(lane.num_sequences, least.num_sequences, limits.num_sequences, limits.share);
    const bool too_long =
        !within(lane.num_tokens, least.num_tokens, limits.num_tokens, limits.share);
    return std::tuple(int{too_many} + int{too_long}, lane.pending_tokens - lane.cached_tokens,
                      lane.num_sequences, lane.num_tokens);
  };
  const auto best =
      std::min_element(lanes.begin(), lanes.end(),
                       [&](const LaneLoad& a, const LaneLoad& b) { return order(a) < order(b); });
  return static_cast<int>(best - lanes.begin());
}

}  // namespace nibble
