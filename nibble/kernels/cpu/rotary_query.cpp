// Rows are rotated by the reference's own function: a rotation is a handful of operations a head.
#include "nibble/base/check.h"
#include "nibble/kernels/cpu/cpu_kernels.h"
#include "nibble/kernels/reference/rows.h"

namespace nibble {

void CpuKernels::rotary_query(const MatrixView& q, const MlaShape& shape, const RopeTable& rope,
                              const AttentionBatch& batch) {
  NIBBLE_CHECK(q.cols == shape.num_heads * shape.qk_head_dim());
  NIBBLE_CHECK(2 * rope.half_dim == shape.qk_rope_head_dim);
  for (const AttentionSegment& segment : batch.segments) {
    const auto rotate = [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) {
        float* const row = q.row<float>(segment.first_token + i) + shape.qk_nope_head_dim;
        for (int64_t h = 0; h < shape.num_heads; ++h) {
          rotate_row(row + h * shape.qk_head_dim(), rope, segment.first_position + i);
        }
      }
    };
    pool_.parallel_for(segment.num_tokens, 4, rotate);
  }
}

}  // namespace nibble
