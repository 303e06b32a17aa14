// Products of few tokens with packed weights: the weights are streamed once, and that is the bound.
//
// One persistent launch serves one matrix, a group of matrices of one shape (the heads of MLA), or
// the experts that a step's tokens chose, by a list of work that lies in device memory. Each block
// takes an equal run of row tiles; in it each of 8 warps takes every S-th unit of columns, keeps
// the tokens' fragments of that unit in registers and multiplies them with that unit of one tile
// after another, as they arrive in its ring of shared memory (bulk copies, each lane reads its own
// fragments). Sums of a tile over the warps are added in a fixed order: no atomics, and a token's
// bits do not depend on the other tokens.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "nibble/kernels/linear_weight.h"

namespace nibble::cuda {

// An expert: one matrix, or gate (a) and up (b).
struct StreamGroup {
  const uint8_t* a = nullptr;
  const uint8_t* b = nullptr;
  float scale_a = 1;  // of the sums: the global scale
  float scale_b = 1;
};

// A run of at most StreamConfig::tokens rows of one group.
struct StreamWork {
  int32_t group;
  int32_t first;  // in `slots`
  int32_t count;
};

struct StreamArgs {
  LinearFormat format = LinearFormat::kNvfp4;
  // Weights: `groups` in device memory, or one group of which further ones lie group_bytes apart.
  const StreamGroup* groups = nullptr;
  StreamGroup group;
  int64_t group_bytes = 0;
  int num_groups = 1;
  bool gate_up = false;  // two matrices; the output is silu(a) * b
  int rows = 0;          // outputs of a matrix
  int tiles = 0;
  int units = 0;
  int x_units = 0;

  // A second matrix of the same columns (not for NVFP4, groups or gate_up): tiles from second_tile
  // on, of second_rows outputs.
  StreamGroup second;
  int second_tile = 0;  // 0: there is none
  int second_rows = 0;
  float* second_out = nullptr;
  int64_t second_out_row_stride = 0;

  // Rows: with `work`, the slots it names; otherwise rows 0 .. num_tokens - 1 of every group.
  const StreamWork* work = nullptr;
  const int32_t* num_work = nullptr;
  const int32_t* slots = nullptr;
  int max_work = 0;  // that num_work can be
  int64_t max_slots = 0;
  // The list was there before the launch in front of this one, which was linear_ring.cuh's.
  bool work_is_older = false;
  // A token's bits may not depend on what else is in the list.
  bool fixed_order = false;
  int num_tokens = 0;
  // The row of x that belongs to a slot: slot / x_divisor below x_routed, slot - x_routed behind
  // it; x_divisor 0: the slot itself.
  int x_divisor = 0;
  int x_routed = 0;

  // Activations in BF16, [parts][rows][x_units * 128], columns behind the last one zero.
  const uint16_t* x = nullptr;
  int x_parts = 1;
  int64_t x_part_stride = 0;
  int64_t x_row_stride = 0;
  int64_t x_group_stride = 0;
  // Instead of x where stream_takes_floats() says so: the values themselves, strides in floats.
  const float* x_float = nullptr;

  // Output: float rows (by slot), or for gate_up BF16 parts as x has them.
  float* out = nullptr;
  int64_t out_row_stride = 0;
  int64_t out_group_stride = 0;
  // Where it is given, the same in BF16; groups lie as in `out`.
  uint16_t* out_copy = nullptr;
  int64_t out_copy_row_stride = 0;
  uint16_t* act = nullptr;
  int act_parts = 1;
  int64_t act_part_stride = 0;
  int64_t act_row_stride = 0;
};

// Rows of one StreamWork for x_parts parts when up to `tokens` rows of one group are expected: 8 or
// 16.
int stream_work_tokens(int x_parts, int64_t tokens);

// Whether few tokens of `cols` values, in x_parts parts, need no conversion in front: x then goes
// to StreamArgs::x_float. Bits are the same either way; more tokens are cheaper to read as BF16.
bool stream_takes_floats(int64_t cols, int x_parts, int64_t tokens, const float* x,
                         int64_t x_stride);

// `work_tokens` as stream_work_tokens() gave it.
cudaError_t launch_linear_stream(const StreamArgs& args, int work_tokens, cudaStream_t stream);

// One for each format, in files of their own; called by launch_linear_stream.
cudaError_t launch_linear_stream_nvfp4(const StreamArgs& args, int work_tokens,
                                       cudaStream_t stream);
cudaError_t launch_linear_stream_fp8(const StreamArgs& args, int work_tokens, cudaStream_t stream);
cudaError_t launch_linear_stream_bf16(const StreamArgs& args, int work_tokens, cudaStream_t stream);

}  // namespace nibble::cuda
