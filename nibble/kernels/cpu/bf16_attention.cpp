#include "nibble/kernels/cpu/bf16_attention.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "nibble/base/check.h"

namespace nibble {
namespace {

constexpr float kLog2E = 0x1.715476p+0f;

int64_t padded_rows(int64_t rows) { return panels_of(rows) * kPanelRows; }
int64_t query_floats(int64_t rows, int64_t dim) { return padded_rows(rows) * tile_width(dim) / 2; }
int64_t sum_floats(int64_t rows, int64_t value_panels) {
  return padded_rows(rows) * value_panels * kPanelRows;
}
// Of a row of keys made of entries.
int64_t latent_width(const MlaShape& shape) {
  return tile_width(MlaPanels(shape).latent * kPanelRows + shape.qk_rope_head_dim);
}

}  // namespace

int64_t Bf16Attention::scratch_floats(int64_t rows, int64_t dim, int64_t value_panels) {
  return query_floats(rows, dim) + sum_floats(rows, value_panels) + 3 * padded_rows(rows) +
         kTileAttentionScratch / 4 + query_floats(kPanelRows, dim);
}

Bf16Attention::Bf16Attention(const TileIsa& tiles, const AttentionRows& rows,
                             ScratchCursor& scratch)
    : tiles_(tiles), work_() {
  const int64_t padded = padded_rows(rows.rows);
  const int64_t width = tile_width(rows.dim);
  auto* const queries = reinterpret_cast<uint8_t*>(scratch.take(query_floats(rows.rows, rows.dim)));
  work_.queries = queries;
  work_.rows = rows.rows;
  work_.steps = width / kTileStepCols;
  work_.value_panels = rows.value_panels;
  work_.scale = rows.softmax_scale * kLog2E;
  work_.sums = scratch.take(sum_floats(rows.rows, rows.value_panels));
  work_.max = scratch.take(padded);
  work_.total = scratch.take(padded);
  visible_ = reinterpret_cast<int32_t*>(scratch.take(padded));
  work_.visible = visible_;
  work_.scratch = reinterpret_cast<uint8_t*>(scratch.take(kTileAttentionScratch / 4));
  auto* const rounded =
      reinterpret_cast<uint16_t*>(scratch.take(query_floats(kPanelRows, rows.dim)));
  std::fill_n(work_.max, padded, -std::numeric_limits<float>::infinity());
  std::fill_n(work_.total, padded, 0.0f);
  for (int64_t first = 0; first < padded; first += kPanelRows) {
    const uint16_t* source[kPanelRows];
    const int64_t count = std::min<int64_t>(kPanelRows, rows.rows - first);
    for (int64_t i = 0; i < count; ++i) {
      source[i] = rounded + i * width;
      tiles.round(rows.query(first + i), rows.dim, 1, rounded + i * width);
    }
    tiles.expand_rows(source, count, rows.dim, queries + first * width * 2);
    for (int64_t i = 0; i < kPanelRows; ++i) {
      visible_[first + i] = static_cast<int32_t>(rows.visible(std::min(first + i, rows.rows - 1)));
    }
  }
}

void Bf16Attention::attend(const Block& block) {
  NIBBLE_CHECK(block.start % kTileContext == 0);
  work_.start = block.start;
  work_.keys = block.keys;
  work_.key_stride = block.key_stride;
  work_.values = block.values;
  work_.ask = block.ask;
  work_.asked = block.asked;
  work_.ask_bytes = block.ask_bytes;
  tiles_.attend(work_);
}

void Bf16Attention::result(int64_t m, float factor, int64_t count, float* out) const {
  const float* tile = work_.sums + m / kPanelRows * work_.value_panels * kPanelRows * kPanelRows +
                      m % kPanelRows * kPanelRows;
  const float scale = factor / work_.total[m];
  for (int64_t first = 0; first < count; first += kPanelRows) {
    const int64_t part = std::min<int64_t>(kPanelRows, count - first);
    for (int64_t i = 0; i < part; ++i) out[first + i] = scale * tile[i];
    tile += kPanelRows * kPanelRows;
  }
}

int64_t LatentBlocks::scratch_floats(const MlaShape& shape) {
  return kTileContext * latent_width(shape) / 2 + MlaPanels(shape).latent * kTileValueBytes / 4 +
         ScratchCursor::padded(shape.entry_size());
}

LatentBlocks::LatentBlocks(const PanelIsa& isa, const TileIsa& tiles, const KvCacheView& cache,
                           const MlaShape& shape, const AttentionSegment& segment,
                           ScratchCursor& scratch)
    : isa_(isa),
      tiles_(tiles),
      cache_(cache),
      shape_(shape),
      segment_(segment),
      panels_(shape),
      width_(latent_width(shape)),
      as_stored_(cache.dtype == DType::kBf16 && shape.kv_lora_rank % kPanelRows == 0 &&
                 shape.entry_size() == width_),
      in_place_(as_stored_ && cache.block_size % kPanelRows == 0 &&
                segment.slot_offset % kPanelRows == 0),
      rows_(reinterpret_cast<uint16_t*>(scratch.take(kTileContext * width_ / 2))),
      piece_(scratch.take(shape.entry_size())),
      values_(reinterpret_cast<uint8_t*>(scratch.take(panels_.latent * kTileValueBytes / 4))) {
  std::fill_n(rows_, kTileContext * width_, uint16_t{0});
}

int64_t LatentBlocks::find_entries(int64_t start, int64_t context, Entries* entries) const {
  const int64_t valid = std::clamp<int64_t>(context - start, 0, kTileContext);
  const auto* const bytes = static_cast<const std::byte*>(cache_.data);
  for (int64_t p = 0; p < valid; ++p) {
    const int64_t element = cache_.entry_offset(segment_.block_table, segment_.slot(start + p));
    (*entries)[static_cast<size_t>(p)] = bytes + element * dtype_size(cache_.dtype);
  }
  return valid;
}

void LatentBlocks::copy_entry(const void* entry, uint16_t* row) const {
  const int64_t rank = shape_.kv_lora_rank;
  uint16_t* const rope = row + panels_.latent * kPanelRows;
  if (cache_.dtype == DType::kBf16) {
    const auto* const from = static_cast<const uint16_t*>(entry);
    std::copy_n(from, rank, row);
    std::copy_n(from + rank, shape_.qk_rope_head_dim, rope);
    return;
  }
  isa_.to_float(cache_format(cache_.dtype), entry, shape_.entry_size(), piece_);
  tiles_.round(piece_, rank, 1, row);
  tiles_.round(piece_ + rank, shape_.qk_rope_head_dim, 1, rope);
}

Bf16Attention::Block LatentBlocks::block(int64_t start, int64_t context) {
  const int64_t valid = find_entries(start, context, &entries_);
  std::array<const uint16_t*, kTileContext> rows = {};
  for (int64_t p = 0; p < valid; ++p) {
    const void* const entry = entries_[static_cast<size_t>(p)];
    uint16_t* const row = rows_ + p * width_;
    if (!in_place_) copy_entry(entry, row);
    rows[static_cast<size_t>(p)] = in_place_ ? static_cast<const uint16_t*>(entry) : row;
  }
  tiles_.expand_columns(rows.data(), valid, panels_.latent, values_, kTileValueBytes);
  // Positions past the last are read as whole tiles.
  for (size_t t = 0; t < keys_.size(); ++t) {
    const auto first = static_cast<int64_t>(t) * kPanelRows;
    keys_[t] =
        in_place_ && first < valid ? entries_[static_cast<size_t>(first)] : rows_ + first * width_;
  }
  Bf16Attention::Block block = {start, keys_.data(), width_ * 2, values_};
  block.ask = next_.data();
  block.asked = find_entries(start + kTileContext, context, &next_);
  block.ask_bytes = shape_.entry_size() * dtype_size(cache_.dtype);
  return block;
}

}  // namespace nibble
