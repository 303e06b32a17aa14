#include "nibble/base/check.h"
#include "nibble/kernels/reference/reference_kernels.h"
#include "nibble/kernels/reference/rows.h"

namespace nibble {

void rotate_row(float* x, const RopeTable& rope, int64_t position) {
  NIBBLE_CHECK(position >= 0 && position < rope.max_positions);
  const float* cos = rope.cos + position * rope.half_dim;
  const float* sin = rope.sin + position * rope.half_dim;
  for (int64_t i = 0; i < rope.half_dim; ++i) {
    const float even = x[2 * i];
    const float odd = x[2 * i + 1];
    x[2 * i] = even * cos[i] - odd * sin[i];
    x[2 * i + 1] = even * sin[i] + odd * cos[i];
  }
}

void ReferenceKernels::rotary_query(const MatrixView& q, const MlaShape& shape,
                                    const RopeTable& rope, const AttentionBatch& batch) {
  NIBBLE_CHECK(q.cols == shape.num_heads * shape.qk_head_dim());
  NIBBLE_CHECK(2 * rope.half_dim == shape.qk_rope_head_dim);
  for (const AttentionSegment& segment : batch.segments) {
    for (int64_t i = 0; i < segment.num_tokens; ++i) {
      float* row = q.row<float>(segment.first_token + i);
      for (int64_t head = 0; head < shape.num_heads; ++head) {
        rotate_row(row + head * shape.qk_head_dim() + shape.qk_nope_head_dim, rope,
                   segment.first_position + i);
      }
    }
  }
}

}  // namespace nibble
