// attention_block.h's product of many query rows with blocks of positions, in matrix tiles of BF16
// (tile_attention.h): the state of its rows from block to block.
#pragma once

#include <array>
#include <cstdint>

#include "nibble/kernels/cpu/attention_block.h"
#include "nibble/kernels/cpu/panel_layout.h"
#include "nibble/kernels/cpu/tile_attention.h"
#include "nibble/kernels/cpu/tile_isa.h"

namespace nibble {

// What a tile's row of `dim` BF16 numbers is padded to.
inline int64_t tile_width(int64_t dim) { return ceil_div(dim, kTileStepCols) * kTileStepCols; }

class Bf16Attention {
 public:
  // Floats of scratch for so many rows.
  static int64_t scratch_floats(int64_t rows, int64_t dim, int64_t value_panels);

  // Rounds the queries; `rows` needs no outputs.
  Bf16Attention(const TileIsa& tiles, const AttentionRows& rows, ScratchCursor& scratch);

  // A block of kTileContext positions from `start` on.
  struct Block {
    int64_t start;
    const void* const* keys;  // as in TileAttention, rows of tile_width(dim)
    int64_t key_stride;
    const uint8_t* values;
    const void* const* ask = nullptr;
    int64_t asked = 0;
    int64_t ask_bytes = 0;
  };
  // Blocks come in rising order; one that no row sees may be left out.
  void attend(const Block& block);

  // out[i] = factor * the weighted mean of row m's values, i < count.
  void result(int64_t m, float factor, int64_t count, float* out) const;

 private:
  const TileIsa& tiles_;
  TileAttention work_;
  int32_t* visible_;
};

// A sequence's entries as keys of latent and rope key and values of the latent, padded to whole
// panels of 16: BF16 entries as they lie in the cache where 16 positions always lie side by side
// and widths are whole steps, copies of them otherwise.
class LatentBlocks {
 public:
  static int64_t scratch_floats(const MlaShape& shape);

  LatentBlocks(const PanelIsa& isa, const TileIsa& tiles, const KvCacheView& cache,
               const MlaShape& shape, const AttentionSegment& segment, ScratchCursor& scratch);

  // The block of positions from `start` on, of `context` in all; valid until the next call.
  Bf16Attention::Block block(int64_t start, int64_t context);

 private:
  using Entries = std::array<const void*, kTileContext>;

  int64_t find_entries(int64_t start, int64_t context, Entries* entries) const;
  void copy_entry(const void* entry, uint16_t* row) const;

  const PanelIsa& isa_;
  const TileIsa& tiles_;
  const KvCacheView& cache_;
  const MlaShape& shape_;
  const AttentionSegment& segment_;
  const MlaPanels panels_;
  const int64_t width_;
  bool as_stored_;  // an entry is a row
  bool in_place_;   // and rows of 16 positions are equally far apart
  uint16_t* rows_;
  float* piece_;
  uint8_t* values_;
  Entries entries_ = {};
  Entries next_ = {};
  std::array<const void*, kTileContext / kPanelRows> keys_ = {};
};

}  // namespace nibble
