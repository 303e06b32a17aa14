// What the kernels of mla_prompt.h share.
#pragma once

#include <cstdint>

#include "nibble/kernels/cuda/mla_prompt.h"
#include "nibble/kernels/cuda/mla_runs.cuh"
#include "nibble/kernels/cuda/ptx.cuh"

namespace nibble::cuda {

constexpr int kNope = 128;
constexpr int kKey = kNope + kRope;
constexpr int kValue = 128;

// A lane's fragments of the queries of tokens `row` and row + 8, in BF16; zeros behind the last
// token.
__device__ inline void load_queries(const PromptArgs& a, int64_t head, int64_t row, int lane,
                                    uint32_t (&q)[kKey / 16][4]) {
#pragma unroll
  for (int step = 0; step < kKey / 16; ++step) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int64_t token = row + i % 2 * 8;
      const int col = 16 * step + 2 * (lane % 4) + i / 2 * 8;
      const float* const from = a.q + token * a.q_stride + head * kKey + col;
      q[step][i] = token < a.tokens ? bf16x2(from[0], from[1]) : 0;
    }
  }
}

}  // namespace nibble::cuda
