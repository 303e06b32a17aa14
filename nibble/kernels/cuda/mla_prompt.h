// Attention of a prompt's tokens in expanded form: keys and values of each head are made from the
// latents first, which costs 33.5 MFLOP a position for R1 and saves 197 kFLOP for each query that
// sees it (spec kernels section 1.3).
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "nibble/kernels/cuda/mla_attend.h"

namespace nibble::cuda {

// Whether so many tokens of one sequence, the last of which sees `length` positions, are done
// sooner than in absorbed form: from 128 on, and the more the longer the context is, as it is
// expanded for them. Measured on an H200 (docs/cuda.md).
constexpr bool mla_prompt_pays(int64_t tokens, int64_t length) {
  return tokens >= 128 + length / 180;
}

// R1's widths: 128 + 64 a key, 128 a value, a latent of 512; a cache of BF16 or FP8.
bool mla_prompt_fits(const MlaShape& shape, const KvCacheView& cache);

// The latents [length, 512] and rope keys [length, 64] of positions 0 .. length - 1 of the sequence
// that `token` of attend.views belongs to, as BF16.
cudaError_t launch_gather_latents(const AttendArgs& attend, int64_t token, int64_t length,
                                  uint16_t* latents, uint16_t* rope, cudaStream_t stream);

// Tokens 0 .. tokens - 1 stand at positions first_position and up, and see those up to their own;
// length = first_position + tokens.
struct PromptArgs {
  const float* q = nullptr;  // [tokens, heads, 192], rows of q_stride
  int64_t q_stride = 0;
  const uint16_t* keys = nullptr;    // [heads, length, 128]
  const uint16_t* rope = nullptr;    // [length, 64]
  const uint16_t* values = nullptr;  // [heads, length, 128]
  float* out = nullptr;              // [tokens, heads, 128], rows of out_stride
  int64_t out_stride = 0;
  int heads = 0;
  int64_t tokens = 0;
  int64_t first_position = 0;
  int64_t length = 0;
  float softmax_scale = 1;
};
// On wgmma (mla_prompt_wide.cu) where that runs, else on mma.sync.
cudaError_t launch_mla_prompt(const PromptArgs& args, cudaStream_t stream);

bool mla_prompt_wide_runs_here();
cudaError_t launch_mla_prompt_wide(const PromptArgs& args, cudaStream_t stream);

}  // namespace nibble::cuda
