// Which rank takes a request, with attention data parallel.
#pragma once

#include <cstdint>
#include <span>

namespace nibble {

// What a rank's scheduler holds when a request comes.
struct LaneLoad {
  int64_t cached_tokens = 0;   // of the request's prompt
  int64_t pending_tokens = 0;  // that its sequences, running or waiting, have still to compute
  int64_t num_sequences = 0;   // running and waiting
  int64_t num_tokens = 0;      // prompt and output of all its sequences so far
};

// How much more than the least loaded rank one may hold and still be chosen for its cache: at least
// so many sequences and tokens, or this share of what the least loaded one has. Beyond, the wait
// for the most loaded rank in every layer costs all of them more than computing a prefix again.
struct LaneLimits {
  int64_t num_sequences = 2;
  int64_t num_tokens = 8192;
  double share = 0.25;
};

// The rank, 0 .. lanes.size() - 1, with the most cached tokens less its pending ones, among those
// that are beyond the fewest limits; ties go to fewest sequences, then fewest tokens, then the
// first. `lanes` is not empty.
int choose_lane(std::span<const LaneLoad> lanes, const LaneLimits& limits);

}  // namespace nibble
