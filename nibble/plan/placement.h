// One placement of a model on devices: does it fit, how much context and batch, how fast.
// planner.cpp chooses between placements.
#pragma once

#include "nibble/plan/planner.h"

namespace nibble {

// What every placement of one plan shares, with all defaults filled in.
struct PlanInput {
  const ModelConfig* config = nullptr;
  const ModelWeights* weights = nullptr;
  const Hardware* hardware = nullptr;
  const PlanRequest* request = nullptr;
  const PlanConstants* constants = nullptr;
  PlanDevice device;  // the weakest, with its memory for --vram
  KvFormat kv = KvFormat::kFp8;
  double accept_length = 1;
  double mean_context = 0;
  int64_t max_num_tokens = 8192;
  int64_t max_batch = 256;

  bool with_mtp() const { return request->draft_tokens > 0; }
};

// Memory, limits and verdict of a split that check_split accepts; experts go to RAM and SSD when
// the devices don't hold them and there is such a place.
Placement place(const PlanInput& input, const Split& split);

// What launching a step costs on such devices, all experts on them: graphs only where vendors of
// that kind of device have them.
StepOverhead device_overhead(const PlanDevice& device, bool graphs);

// The device as the request runs it: numa_aware leaves no traffic between sockets.
PlanDevice device_as_run(PlanDevice device, const PlanRequest& request);

// Adds the estimates: batches 1, 4, 16, ... up to the largest that fits, and the batch asked.
void add_speed(const PlanInput& input, Placement& placement);

}  // namespace nibble
