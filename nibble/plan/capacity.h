// How many devices a stream of requests takes: replicas of one model behind a gateway, with random
// or cache-aware routing, or with prompts and answers on devices of their own.
//
// All from the estimates of speed.h, so as uncertain as they are (kRangeLow, kRangeHigh); waiting
// in queues is not modelled, a replica is planned for `load` of what it can do instead.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "nibble/plan/planner.h"

namespace nibble {

// The prompts' and answers' lengths are PlanRequest::isl and osl, in tokens, both above 0.
struct CapacityRequest {
  double requests_per_second = 1;
  double max_tpot_ms = 50;  // between two tokens of an answer
  double max_ttft_ms = 0;   // to the first token, in an idle replica; 0: no limit
  double prefix_share = 0;  // 0..1: of a prompt's tokens, found in the cache of a replica that has
                            // had the beginning before (a conversation, a system prompt)
  double load = 0.8;        // 0..1: of a replica's rate that is planned for
  int max_replica_gpus = 64;
};

enum class CapacityWay {
  kRandom,         // any replica takes a request: with n of them 1/n of the prefixes are found
  kCacheAware,     // the one that has the prefix takes it
  kDisaggregated,  // cache-aware; prompts on replicas of their own, whose cache is sent over
};
std::string_view capacity_way_name(CapacityWay way);

struct CapacityRow {
  CapacityWay way = CapacityWay::kRandom;
  Split split;        // of a replica that makes answers
  int64_t batch = 0;  // sequences that it decodes together
  double tpot_ms = 0;
  double ttft_ms = 0;
  double rate = 0;  // requests a second of such a replica, all of its time
  int64_t replicas = 0;
  double prompt_rate = 0;       // prompts a second of a replica for prompts; disaggregated only
  int64_t prompt_replicas = 0;  // of CapacityReport::prompt_split
  double transfer_ms = 0;       // of a prompt's cache, in ttft_ms
  int64_t gpus = 0;             // in all
  std::string problem;          // why this can't be; then only way and split mean something
};

struct CapacityReport {
  const PlanModel* model = nullptr;
  PlanRequest request;
  CapacityRequest capacity;
  std::string format_title;
  PlanDevice device;
  Split prompt_split;  // of a replica for prompts: the set that was given
  std::vector<CapacityRow> rows;
  std::vector<std::string> notes;

  // The row of the fewest devices of a way; null when none is possible.
  const CapacityRow* best(CapacityWay way) const;
};

// `hardware` is the smallest replica, of equal devices; replicas of 2, 4, ... times as many are
// tried too. Of each size the faster split is taken. Errors: those of make_plan; bad_value for
// numbers out of range; conflict without device rates.
PlanResult<CapacityReport> plan_capacity(const PlanModel& model,
                                         const std::optional<PlanFormat>& format,
                                         const Hardware& hardware, const PlanRequest& request,
                                         const CapacityRequest& capacity,
                                         const PlanConstants& constants);

}  // namespace nibble
