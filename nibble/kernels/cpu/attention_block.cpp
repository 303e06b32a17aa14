#include "nibble/kernels/cpu/attention_block.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "nibble/base/check.h"

namespace nibble {

void AttentionRows::start(ScratchCursor& scratch) {
  sums = scratch.take(rows * value_panels * kPanelRows);
  max = scratch.take(rows);
  total = scratch.take(rows);
  std::fill_n(max, rows, -std::numeric_limits<float>::infinity());
  std::fill_n(total, rows, 0.0f);
}

int64_t attend_block_floats(int64_t dim) { return (slices_of(dim) + 1) * kQueryTile * kSliceCols; }

void weigh_scores(const PanelIsa& isa, const AttentionRows& rows, int64_t block_start,
                  int64_t first, int64_t tile, float* scores) {
  const int64_t sums_stride = rows.value_panels * kPanelRows;
  for (int64_t r = 0; r < tile; ++r) {
    const int64_t m = first + r;
    float* const row = scores + r * kSliceCols;
    const int64_t row_visible = std::min(kContextBlock, rows.visible(m) - block_start);
    if (row_visible <= 0) {
      std::fill_n(row, kContextBlock, 0.0f);
      continue;
    }
    const float correction =
        isa.softmax_block(row, row_visible, rows.softmax_scale, rows.max + m, rows.total + m);
    if (block_start > 0 && correction != 1) {
      isa.scale(rows.sums + m * sums_stride, sums_stride, correction);
    }
  }
}

void attend_block(const PanelIsa& isa, const AttentionRows& rows, int64_t block_start,
                  const float* keys, const float* values, float* scratch) {
  float* const scores = scratch;
  float* const q = scratch + kQueryTile * kSliceCols;
  const int64_t sums_stride = rows.value_panels * kPanelRows;
  for (int64_t first = 0; first < rows.rows; first += kQueryTile) {
    const int64_t tile = std::min(kQueryTile, rows.rows - first);
    const int64_t visible = std::min(kContextBlock, rows.visible(first + tile - 1) - block_start);
    if (visible <= 0) continue;  // the whole tile is masked

    for (int64_t r = 0; r < tile; ++r) {
      const float* const query = rows.query(first + r);
      for (int64_t d = 0; d < rows.dim; d += kSliceCols) {
        std::memcpy(
            q + d * tile + r * kSliceCols, query + d,
            static_cast<size_t>(std::min<int64_t>(kSliceCols, rows.dim - d)) * sizeof(float));
      }
    }
    for (int64_t d = 0; d < rows.dim; d += kSliceCols) {
      isa.multiply(q + d * tile, tile, keys + d * kContextBlock, panels_of(visible),
                   static_cast<int>(std::min<int64_t>(kSliceCols, rows.dim - d)), scores,
                   kSliceCols, kPanelRows, d > 0);
    }
    weigh_scores(isa, rows, block_start, first, tile, scores);
    isa.multiply(scores, tile, values, rows.value_panels, static_cast<int>(visible),
                 rows.sums + first * sums_stride, sums_stride, kPanelRows, block_start > 0);
  }
}

void attend_entries(const PanelIsa& isa, const AttentionRows& rows, int64_t block_start,
                    PanelFormat format, const void* const* entries, float* scratch) {
  const int64_t sums_stride = rows.value_panels * kPanelRows;
  // Rows of one token lie side by side, so a tile is of one token.
  const int64_t tile_rows = std::min(kQueryTile, rows.per_token);
  for (int64_t first = 0; first < rows.rows;) {
    const int64_t token_end = (first / rows.per_token + 1) * rows.per_token;
    const int64_t tile = std::min(tile_rows, token_end - first);
    const int64_t visible = std::min(kContextBlock, rows.visible(first) - block_start);
    if (visible > 0) {
      isa.score_entries(format, entries, visible, rows.dim, rows.query(first), rows.row_stride,
                        tile, scratch, kSliceCols);
      weigh_scores(isa, rows, block_start, first, tile, scratch);
      isa.add_entries(format, entries, visible, sums_stride, scratch, kSliceCols, tile,
                      rows.sums + first * sums_stride, sums_stride, block_start > 0);
    }
    first += tile;
  }
}

PanelFormat cache_format(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return PanelFormat::kF32;
    case DType::kBf16:
      return PanelFormat::kBf16;
    case DType::kF8E4m3:
      return PanelFormat::kFp8;
    default:
      NIBBLE_CHECK(false);
  }
}

void fill_keys(const PanelIsa& isa, const float* source, int64_t stride, int64_t first,
               int64_t valid, int64_t first_dim, int64_t count, float* keys) {
  const int64_t filled = std::clamp<int64_t>(valid - first, 0, kPanelRows);
  const float* in = source + first * stride;
  for (int64_t d = first_dim; d < first_dim + count;) {
    const int64_t piece = std::min(first_dim + count - d, kSliceCols - d % kSliceCols);
    isa.transpose(in, stride, filled, piece,
                  keys + d / kSliceCols * kGroupFloats + first / kPanelRows * kPanelFloats +
                      d % kSliceCols * kPanelRows);
    in += piece;
    d += piece;
  }
}

void read_cache(const PanelIsa& isa, const KvCacheView& cache, const int32_t* block_table,
                int64_t slot, int64_t first, int64_t count, float* out) {
  const int64_t element = cache.entry_offset(block_table, slot) + first;
  const auto* const bytes = static_cast<const std::byte*>(cache.data);
  isa.to_float(cache_format(cache.dtype), bytes + element * dtype_size(cache.dtype), count, out);
}

}  // namespace nibble
