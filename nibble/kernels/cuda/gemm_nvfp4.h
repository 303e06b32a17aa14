// Products of many tokens with NVFP4 weights on Hopper's wgmma: for the experts of a prompt, and
// for dense matrices between few tokens and cuBLASLt's. Weights go to the tensor cores as BF16 from
// registers, where they are decoded; tokens come from shared memory.
//
// Tokens lie in memory as the tensor cores want them in shared memory ("arranged"), so that a tile
// of them is one contiguous copy:
//   [ceil(cols / 64)][row_capacity][64 values of BF16]
// rows are those of the plan (gemm_plan), a group's at a multiple of 8; the 64 values are in the
// order of the packed weights (packed_layout.h): value 16 s + 8 h + 2 t + j is column
// 16 t + 4 s + 2 h + j, and 16-byte chunk i of row r lies at i ^ (r & 7).
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "nibble/kernels/cuda/linear_stream.h"

namespace nibble::cuda {

inline constexpr int kGemmTokens = 128;  // of a piece of work
inline constexpr int kGemmClasses = 4;   // of pieces by their size
inline constexpr int kMaxGemmGroups = 1022;

// Sorts the routed slots (token * k + j) by expert; each expert's rows start at a multiple of 8 and
// fall into pieces of at most kGemmTokens. With `shared`, group num_experts holds slots
// num_slots + t for every token t. Without expert_ids there is one group, of num_slots rows.
//
//   rows    int32 [gemm_row_capacity()]: the slot of a row, -1 for padding
//   work    [kGemmClasses][max_gemm_work()]: pieces of 1..32, 33..64, 65..96 and 97..128 rows;
//           `first` counts rows
//   num_work  int32 [kGemmClasses]
struct GemmPlanArgs {
  const int32_t* expert_ids = nullptr;
  int num_slots = 0;
  int num_tokens = 0;
  int num_experts = 0;
  bool shared = false;
  const uint8_t* classes = nullptr;  // as in moe_plan.h
  uint8_t wanted = 0;
  int32_t* rows = nullptr;
  int64_t row_capacity = 0;
  StreamWork* work = nullptr;
  int64_t work_capacity = 0;  // of a class
  int32_t* num_work = nullptr;
};
cudaError_t launch_gemm_plan(const GemmPlanArgs& args, cudaStream_t stream);
int64_t gemm_row_capacity(int64_t slots, int64_t groups);
int64_t max_gemm_work(int64_t slots, int64_t groups);

// Gathers float rows into the arranged form. The row of x of a slot: slot / x_divisor below
// x_routed, slot - x_routed behind it.
struct ArrangeArgs {
  const float* x = nullptr;
  int64_t x_stride = 0;
  int64_t cols = 0;
  const int32_t* rows = nullptr;
  int64_t row_capacity = 0;
  int x_divisor = 1;
  int x_routed = 0;
  uint16_t* out = nullptr;  // [ceil(cols / 128) * 2][row_capacity][64]
};
cudaError_t launch_arrange(const ArrangeArgs& args, cudaStream_t stream);

struct GemmArgs {
  const StreamGroup* groups = nullptr;  // in device memory, or null: `group` alone
  StreamGroup group;
  bool gate_up = false;  // two matrices; the output is silu(a) * b, arranged BF16
  int out_rows = 0;      // outputs of a matrix
  int tiles = 0;
  int units = 0;
  const StreamWork* work = nullptr;
  int64_t work_capacity = 0;
  const int32_t* num_work = nullptr;
  int64_t most_rows = 0;  // of one group
  const int32_t* rows = nullptr;
  int64_t row_capacity = 0;
  const uint16_t* x = nullptr;
  uint16_t* act = nullptr;  // gate_up: arranged
  float* out = nullptr;     // otherwise, by slot
  int64_t out_row_stride = 0;
};
cudaError_t launch_gemm_nvfp4(const GemmArgs& args, cudaStream_t stream);

// Whether the current device has wgmma and this build code for it.
bool gemm_nvfp4_runs_here();

}  // namespace nibble::cuda
