// The paged MLA cache of one layer and the shape of a batch, as attention kernels see them.
#pragma once

#include <cstdint>
#include <span>

#include "nibble/tensor/dtype.h"

namespace nibble {

// One layer's pages: [num_blocks, block_size, kv_lora_rank + qk_rope_head_dim]. An entry is the
// latent after its norm, then the rotated rope key, pairs interleaved. F32, BF16, or F8_E4M3 with
// scale 1 (saturating).
struct KvCacheView {
  void* data = nullptr;
  DType dtype = DType::kBf16;
  int64_t num_blocks = 0;
  int64_t block_size = 0;  // tokens
  int64_t entry_size = 0;  // elements

  // Element index of an entry, given its sequence's block table and AttentionSegment::slot().
  int64_t entry_offset(const int32_t* block_table, int64_t slot) const {
    const int64_t block = block_table[slot / block_size];
    return (block * block_size + slot % block_size) * entry_size;
  }
};

// Which of the two equal forms of MLA a run of tokens takes. kExpanded multiplies the cached
// latents by kv_b_proj first (prompts); kAbsorbed folds kv_b_proj into query and output (generated
// tokens). The choice belongs to a token, not to a step, so that a result never depends on
// chunking.
enum class MlaForm { kExpanded, kAbsorbed };

// A run of neighbouring tokens of one sequence in the batch. The tokens' own cache entries are
// written before attention runs; token i sees positions 0 .. first_position + i.
struct AttentionSegment {
  int64_t first_token = 0;  // row in the batch
  int64_t num_tokens = 0;   // >= 1
  int64_t first_position = 0;
  const int32_t* block_table = nullptr;  // of the sequence; covers the slots of all positions
  MlaForm form = MlaForm::kExpanded;
  // The entry of a position lies slot_offset slots behind the position itself. 1 for the MTP layer,
  // whose entry for position t depends on token t + 1: so a block depends on no token behind it,
  // and two sequences may share it.
  int64_t slot_offset = 0;

  int64_t slot(int64_t position) const { return position + slot_offset; }
};

// The segments cover rows 0 .. num_tokens - 1 of the batch, each once, in order.
struct AttentionBatch {
  int64_t num_tokens = 0;
  std::span<const AttentionSegment> segments;
};

}  // namespace nibble
