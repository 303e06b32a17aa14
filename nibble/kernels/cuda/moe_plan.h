// Which rows go to which expert, worked out on the device so that nothing waits for the host.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "nibble/kernels/cuda/linear_stream.h"

namespace nibble::cuda {

// Sorts the routed slots (token * k + j) by expert, in ascending order within one, and cuts each
// expert's run into pieces of at most work_tokens. With `shared`, group num_experts holds slots
// num_slots + t for every token t. Only experts of class `wanted` get work.
//
//   classes   uint8 [num_experts + shared], or null when all are wanted
//   slots     int32 [num_slots + tokens]
//   work      room for max_moe_work()
struct MoePlanArgs {
  const int32_t* expert_ids = nullptr;  // [num_slots]
  int num_slots = 0;
  int num_tokens = 0;
  int num_experts = 0;  // at most 1022
  bool shared = false;
  int work_tokens = 8;
  const uint8_t* classes = nullptr;
  uint8_t wanted = 0;
  int32_t* slots = nullptr;
  StreamWork* work = nullptr;
  int32_t* num_work = nullptr;
};
cudaError_t launch_moe_plan(const MoePlanArgs& args, cudaStream_t stream);

// The most pieces that the slots can fall into.
int64_t max_moe_work(int64_t num_slots, int64_t num_tokens, int64_t num_experts, int work_tokens);

}  // namespace nibble::cuda
