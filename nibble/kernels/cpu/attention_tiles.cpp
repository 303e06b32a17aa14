#include "nibble/kernels/cpu/attention_tiles.h"

#include <algorithm>

#include "nibble/base/check.h"

namespace nibble {
namespace {

constexpr int64_t kRecordFloats = kTileRecordBytes / static_cast<int64_t>(sizeof(float));
constexpr int64_t kPlaneFloats = kTilePlaneBytes / static_cast<int64_t>(sizeof(float));
constexpr int64_t kBlockSteps = kContextBlock / kTileStepCols;
constexpr int64_t kBlockPanels = kContextBlock / kPanelRows;

uint8_t* take_bytes(ScratchCursor& scratch, int64_t floats) {
  return reinterpret_cast<uint8_t*>(scratch.take(floats));
}

int64_t query_floats(int64_t rows, int64_t dim, int planes) {
  return slices_of(dim) * rows * planes * kRecordFloats;
}
int64_t key_floats(int64_t dim, int planes) {
  return kBlockPanels * ceil_div(dim, kTileStepCols) * planes * kPlaneFloats;
}
int64_t value_floats(int64_t value_panels, int planes) {
  return value_panels * kBlockSteps * planes * kPlaneFloats;
}
int64_t weight_floats(int planes) { return kQueryTile * planes * kRecordFloats; }

}  // namespace

int64_t AttentionTiles::scratch_floats(int64_t rows, int64_t dim, int64_t value_panels,
                                       Planes planes) {
  return query_floats(rows, dim, planes.rows) + key_floats(dim, planes.entries) +
         value_floats(value_panels, planes.entries) + weight_floats(planes.rows) +
         kQueryTile * kContextBlock;
}

AttentionTiles::AttentionTiles(const TileIsa& tiles, Planes planes, const AttentionRows& rows,
                               ScratchCursor& scratch)
    : tiles_(tiles),
      planes_(planes),
      rows_(rows),
      queries_(take_bytes(scratch, query_floats(rows.rows, rows.dim, planes.rows))),
      keys_(take_bytes(scratch, key_floats(rows.dim, planes.entries))),
      values_(take_bytes(scratch, value_floats(rows.value_panels, planes.entries))),
      weights_(take_bytes(scratch, weight_floats(planes.rows))),
      scores_(scratch.take(kQueryTile * kContextBlock)) {
  uint8_t* slice = queries_;
  for (int64_t d = 0; d < rows.dim; d += kSliceCols) {
    const int64_t count = std::min<int64_t>(kSliceCols, rows.dim - d);
    for (int64_t m = 0; m < rows.rows; ++m) {
      tiles.quantize_planes(rows.query(m) + d, count, planes.rows, m, rows.rows, slice);
    }
    slice += rows.rows * planes.rows * kTileRecordBytes;
  }
}

void AttentionTiles::set_entries(int64_t valid, const float* keys, const float* values) {
  const int64_t tile_bytes = planes_.entries * kTilePlaneBytes;
  const int64_t key_steps = ceil_div(rows_.dim, kTileStepCols);
  for (int64_t p = 0; p < panels_of(valid); ++p) {
    for (int64_t d = 0; d < rows_.dim; d += kSliceCols) {
      tiles_.expand_floats(keys + d * kContextBlock + p * kPanelFloats,
                           std::min<int64_t>(kSliceCols, rows_.dim - d), planes_.entries,
                           keys_ + (p * key_steps + d / kTileStepCols) * tile_bytes);
    }
  }
  for (int64_t p = 0; p < rows_.value_panels; ++p) {
    tiles_.expand_floats(values + p * kPanelFloats, valid, planes_.entries,
                         values_ + p * kBlockSteps * tile_bytes);
  }
}

void AttentionTiles::set_entries(int64_t valid, const uint16_t* const* entries) {
  NIBBLE_CHECK(planes_.entries == 1);
  const int64_t key_steps = ceil_div(rows_.dim, kTileStepCols);
  for (int64_t p = 0; p < panels_of(valid); ++p) {
    tiles_.expand_rows(entries + p * kPanelRows,
                       std::min<int64_t>(kPanelRows, valid - p * kPanelRows), rows_.dim,
                       keys_ + p * key_steps * kTilePlaneBytes);
  }
  tiles_.expand_columns(entries, valid, rows_.value_panels, values_, kBlockSteps * kTilePlaneBytes);
}

void AttentionTiles::attend(const PanelIsa& isa, int64_t block_start) {
  const int64_t row_bytes = planes_.rows * kTileRecordBytes;
  const int64_t tile_bytes = planes_.entries * kTilePlaneBytes;
  const int64_t key_steps = ceil_div(rows_.dim, kTileStepCols);
  const int64_t sums_stride = rows_.value_panels * kPanelRows;
  for (int64_t first = 0; first < rows_.rows; first += kQueryTile) {
    const int64_t tile = std::min(kQueryTile, rows_.rows - first);
    const int64_t visible = std::min(kContextBlock, rows_.visible(first + tile - 1) - block_start);
    if (visible <= 0) continue;  // the whole tile is masked
    tiles_.multiply_expanded(queries_ + first * row_bytes, rows_.rows * row_bytes, tile,
                             planes_.rows, keys_, key_steps * tile_bytes, panels_of(visible),
                             key_steps, planes_.entries, scores_, kContextBlock, kPanelRows,
                             /*accumulate=*/false);
    weigh_scores(isa, rows_, block_start, first, tile, scores_);
    for (int64_t r = 0; r < tile; ++r) {
      tiles_.quantize_planes(scores_ + r * kContextBlock, kContextBlock, planes_.rows, r, tile,
                             weights_);
    }
    tiles_.multiply_expanded(weights_, 0, tile, planes_.rows, values_, kBlockSteps * tile_bytes,
                             rows_.value_panels, ceil_div(visible, kTileStepCols), planes_.entries,
                             rows_.sums + first * sums_stride, sums_stride, kPanelRows,
                             /*accumulate=*/block_start > 0);
  }
}

}  // namespace nibble
