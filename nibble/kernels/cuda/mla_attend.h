// Absorbed attention over the paged latents: scores, softmax and the weighted sum of latents.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "nibble/kernels/attention_view.h"
#include "nibble/kernels/kernels.h"

namespace nibble::cuda {

inline constexpr int64_t kMaxEntrySize = 1280;  // of launch_mla_attend

// What attention needs to know of one token of the batch.
struct TokenView {
  int64_t visible;      // positions 0 .. visible - 1 are seen
  int64_t table;        // where its sequence's block table starts in `tables`
  int64_t slot_offset;  // AttentionSegment::slot_offset
};

struct AttendArgs {
  const float* absorbed = nullptr;  // [tokens, heads, rank]: W_UK^T q_nope
  const float* q = nullptr;         // [tokens, heads * qk_head_dim], for its rotated part
  int64_t q_stride = 0;
  int64_t tokens = 0;
  MlaShape shape;
  KvCacheView cache;
  const TokenView* views = nullptr;  // [tokens]
  const int32_t* tables = nullptr;
  int64_t max_visible = 0;
  float* out = nullptr;          // [tokens, heads, rank]: sum_p softmax_p latent_p
  uint16_t* out_bf16 = nullptr;  // instead of out, rounded; launch_mla_decode alone
  bool batch_invariant = false;  // the kernel may not depend on the number of tokens
};

// For any widths. One block for each token and head: every cached entry is read once for each head.
cudaError_t launch_mla_attend(const AttendArgs& args, cudaStream_t stream);

// The same on tensor cores (mla_decode.cu), for R1's widths and a cache of BF16 or FP8.
bool mla_decode_fits(const MlaShape& shape, const KvCacheView& cache);

// For `tokens` tokens from first_token on. A token's positions fall into up to max_runs runs of at
// least 64, which go to different blocks; with more than one, `scratch` holds mla_decode_scratch()
// floats.
inline constexpr int kMaxMlaRuns = 64;
// Where a token's sums may not depend on its batch.
inline constexpr int kInvariantMlaRuns = 16;
cudaError_t launch_mla_decode(const AttendArgs& args, int64_t first_token, int64_t tokens,
                              int max_runs, float* scratch, cudaStream_t stream);
int64_t mla_decode_scratch(int64_t tokens, int64_t heads, int max_runs);
// The number of runs of each token that fills the GPU: 1 to kMaxMlaRuns.
int mla_runs(int64_t tokens, const MlaShape& shape, const KvCacheView& cache, int64_t max_visible);

}  // namespace nibble::cuda
