// A recorded routing trace through a cache of a given size: what each policy would have hit, and
// what could have been hit by one who knows the future.
#pragma once

#include <cstdint>
#include <optional>

#include "nibble/offload/eviction_policy.h"
#include "nibble/offload/routing_trace.h"

namespace nibble {

struct ReplayResult {
  int64_t num_hits = 0;
  int64_t num_uses = 0;

  double hit_rate() const {
    return num_uses == 0 ? 1.0 : static_cast<double>(num_hits) / static_cast<double>(num_uses);
  }
};

// Each layer has `slots` slots (>= 1) of its own, empty at the beginning. An expert that is wanted
// and not there takes a free slot or that of the expert that the policy values least, never of one
// that the same step wants, as long as there is another; then it is read and counts as a miss.
ReplayResult replay(const RoutingTrace& trace, const EvictionOptions& options, int slots);

// The same with Belady's rule: the expert whose next use is farthest goes, and one that is not
// used again before all others is not kept. No policy does better.
ReplayResult replay_offline_optimum(const RoutingTrace& trace, int slots);

// Without the steps of more than max_tokens tokens: prompts, which want nearly everything.
RoutingTrace decode_steps(RoutingTrace trace, int64_t max_tokens);

}  // namespace nibble
