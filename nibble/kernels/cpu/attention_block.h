// The part of attention that both forms of MLA share: many query rows against one block of 128
// context positions, with a running softmax (Milakov and Gimelshein, arXiv 1805.02867).
//
// Blocks start at multiples of 128 positions whatever the batch, a row's sums run over positions in
// rising order, and positions it may not see add exact zeros: a token's bits depend on its own
// context alone.
#pragma once

#include <algorithm>
#include <cstdint>

#include "nibble/kernels/attention_view.h"
#include "nibble/kernels/cpu/panel_layout.h"
#include "nibble/kernels/cpu/scratch.h"

namespace nibble {

inline constexpr int64_t kContextBlock = kSliceCols;  // positions: one slice of the value product
inline constexpr int64_t kQueryTile = 64;             // rows whose scores stay in L1 and L2

// Calls take(part) for runs of at most `most` tokens of a prompt's segment, in their order.
template <typename Take>
void for_parts(const AttentionSegment& segment, int64_t most, const Take& take) {
  for (int64_t first = 0; first < segment.num_tokens; first += most) {
    AttentionSegment part = segment;
    part.first_token += first;
    part.first_position += first;
    part.num_tokens = std::min(most, segment.num_tokens - first);
    take(part);
  }
}

// Query rows of one task: `per_token` rows for each token; row m belongs to token m / per_token.
struct AttentionRows {
  int64_t rows = 0;
  int64_t per_token = 1;
  const float* q =
      nullptr;  // row m at q + (m / per_token) * token_stride + (m % per_token) * row_stride
  int64_t token_stride = 0;
  int64_t row_stride = 0;
  int64_t dim = 0;            // of q and of the keys
  int64_t first_visible = 0;  // positions that token 0 sees; token i sees i more
  int64_t value_panels = 0;   // panels of 16 value columns
  float softmax_scale = 1;

  float* sums = nullptr;   // [rows, value_panels * 16], sum of exp(score - max) * value
  float* max = nullptr;    // [rows]
  float* total = nullptr;  // [rows], sum of exp(score - max)

  const float* query(int64_t m) const {
    return q + m / per_token * token_stride + m % per_token * row_stride;
  }
  int64_t visible(int64_t m) const { return first_visible + m / per_token; }

  // Floats of the three outputs for `rows` rows.
  static int64_t scratch_floats(int64_t rows, int64_t value_panels) {
    return rows * value_panels * kPanelRows + 2 * ScratchCursor::padded(rows);
  }
  // Points the outputs into scratch and prepares them for the first block.
  void start(ScratchCursor& scratch);
};

// Scores [tile, 128] of the rows from `first` on become weights, and what was summed before is
// scaled to them.
void weigh_scores(const PanelIsa& isa, const AttentionRows& rows, int64_t block_start,
                  int64_t first, int64_t tile, float* scores);

// Scratch floats of attend_block for keys of `dim`.
int64_t attend_block_floats(int64_t dim);

// Adds one block to all rows that see any of it.
//   block_start  its first position, a multiple of kContextBlock; the first call has 0
//   keys         [slices of dim, 8, 128, 16]: position panels, dim by position
//   values       [value_panels, 128, 16]: value panels, position by column
void attend_block(const PanelIsa& isa, const AttentionRows& rows, int64_t block_start,
                  const float* keys, const float* values, float* scratch);

// As attend_block, but reads the entries as the cache stores them: nothing is converted or
// transposed into scratch first, which would cost more than the products for a few rows. Each row
// reads the entries anew. The latent (rows.value_panels * 16 elements) and the key (rows.dim) are
// multiples of
// 16. `scratch` holds kQueryTile * kSliceCols floats.
//   entries      the block's positions as far as any row sees them
void attend_entries(const PanelIsa& isa, const AttentionRows& rows, int64_t block_start,
                    PanelFormat format, const void* const* entries, float* scratch);

// The cache's type as the inner loops name it.
PanelFormat cache_format(DType dtype);

// keys[., d, position] for the positions [first, first + 16) of a block and dims [first_dim,
// first_dim + count): from rows of `source` (position p at source + p * stride); positions from
// `valid` on become zeros.
void fill_keys(const PanelIsa& isa, const float* source, int64_t stride, int64_t first,
               int64_t valid, int64_t first_dim, int64_t count, float* keys);

// `count` elements of the cache from element `first` of the entry in `slot`, as binary32.
void read_cache(const PanelIsa& isa, const KvCacheView& cache, const int32_t* block_table,
                int64_t slot, int64_t first, int64_t count, float* out);

}  // namespace nibble
