#include <algorithm>
#include <vector>

#include "nibble/base/check.h"
#include "nibble/kernels/reference/reference_kernels.h"
#include "nibble/kernels/reference/rows.h"
#include "nibble/numeric/bf16.h"
#include "nibble/numeric/fp8.h"

namespace nibble {

void write_cache_entry(const KvCacheView& view, int64_t offset, const float* entry) {
  for (int64_t i = 0; i < view.entry_size; ++i) {
    if (view.dtype == DType::kF32) {
      static_cast<float*>(view.data)[offset + i] = entry[i];
    } else if (view.dtype == DType::kBf16) {
      static_cast<uint16_t*>(view.data)[offset + i] = float_to_bf16(entry[i]);
    } else {
      NIBBLE_CHECK(view.dtype == DType::kF8E4m3);
      static_cast<uint8_t*>(view.data)[offset + i] = float_to_e4m3(entry[i]);
    }
  }
}

void read_cache_entry(const KvCacheView& view, int64_t offset, float* entry) {
  for (int64_t i = 0; i < view.entry_size; ++i) {
    if (view.dtype == DType::kF32) {
      entry[i] = static_cast<const float*>(view.data)[offset + i];
    } else if (view.dtype == DType::kBf16) {
      entry[i] = bf16_to_float(static_cast<const uint16_t*>(view.data)[offset + i]);
    } else {
      NIBBLE_CHECK(view.dtype == DType::kF8E4m3);
      entry[i] = kE4m3Values[static_cast<const uint8_t*>(view.data)[offset + i]];
    }
  }
}

void ReferenceKernels::mla_cache_write(const MatrixView& kv_a, const float* kv_a_layernorm,
                                       float epsilon, const MlaShape& shape, const RopeTable& rope,
                                       const AttentionBatch& batch, const KvCacheView& cache) {
  NIBBLE_CHECK(kv_a.cols == shape.entry_size() && cache.entry_size == shape.entry_size());
  std::vector<float> entry(static_cast<size_t>(shape.entry_size()));
  for (const AttentionSegment& segment : batch.segments) {
    for (int64_t i = 0; i < segment.num_tokens; ++i) {
      const float* row = kv_a.row<float>(segment.first_token + i);
      rms_norm_row(row, kv_a_layernorm, epsilon, shape.kv_lora_rank, entry.data());
      std::copy(row + shape.kv_lora_rank, row + shape.entry_size(),
                entry.begin() + shape.kv_lora_rank);
      const int64_t position = segment.first_position + i;
      rotate_row(entry.data() + shape.kv_lora_rank, rope, position);
      write_cache_entry(cache, cache.entry_offset(segment.block_table, segment.slot(position)),
                        entry.data());
    }
  }
}

}  // namespace nibble
