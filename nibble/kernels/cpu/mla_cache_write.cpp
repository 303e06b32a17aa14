#include <algorithm>

#include "nibble/base/check.h"
#include "nibble/kernels/cpu/cpu_kernels.h"
#include "nibble/kernels/cpu/rows.h"
#include "nibble/kernels/reference/rows.h"

namespace nibble {

void CpuKernels::mla_cache_write(const MatrixView& kv_a, const float* kv_a_layernorm, float epsilon,
                                 const MlaShape& shape, const RopeTable& rope,
                                 const AttentionBatch& batch, const KvCacheView& cache) {
  NIBBLE_CHECK(kv_a.cols == shape.entry_size() && cache.entry_size == shape.entry_size());
  reserve_thread_scratch(ScratchCursor::padded(shape.entry_size()));
  for (const AttentionSegment& segment : batch.segments) {
    const auto write = [&](int64_t begin, int64_t end, int thread_id) {
      float* const entry = thread_scratch(thread_id).take(shape.entry_size());
      for (int64_t i = begin; i < end; ++i) {
        const float* const row = kv_a.row<float>(segment.first_token + i);
        cpu_rms_norm_row(row, kv_a_layernorm, epsilon, shape.kv_lora_rank, entry);
        std::copy(row + shape.kv_lora_rank, row + shape.entry_size(), entry + shape.kv_lora_rank);
        const int64_t position = segment.first_position + i;
        rotate_row(entry + shape.kv_lora_rank, rope, position);
        write_cache_entry(cache, cache.entry_offset(segment.block_table, segment.slot(position)),
                          entry);
      }
    };
    pool_.parallel_for(segment.num_tokens, 8, write);
  }
}

}  // namespace nibble
