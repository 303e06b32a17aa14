// attention_block.h's product of many query rows with one block of positions, in matrix tiles
// (tile_isa.h). Rows and softmax weights are of two planes unless 8 bits are enough, keys and
// values of one where that is exact; what a product of three leaves out is below 2^-16 of it.
#pragma once

#include <cstdint>

#include "nibble/kernels/cpu/attention_block.h"
#include "nibble/kernels/cpu/tile_isa.h"

namespace nibble {

class AttentionTiles {
 public:
  // What scores and sums are to be multiplied with.
  static constexpr float kFactor = kTileBf16Factor;

  struct Planes {
    int rows;
    int entries;  // keys and values
  };

  // Floats of scratch for so many rows.
  static int64_t scratch_floats(int64_t rows, int64_t dim, int64_t value_panels, Planes planes);

  // Prepares the queries of `rows`, whose softmax_scale has kFactor in it.
  AttentionTiles(const TileIsa& tiles, Planes planes, const AttentionRows& rows,
                 ScratchCursor& scratch);

  // The block's first `valid` positions: keys and values as attend_block takes them, or entries of
  // rows.dim BF16 numbers, of which the first are the value's (planes.entries 1; value_panels * 16
  // of them).
  void set_entries(int64_t valid, const float* keys, const float* values);
  void set_entries(int64_t valid, const uint16_t* const* entries);

  // Then as attend_block.
  void attend(const PanelIsa& isa, int64_t block_start);

 private:
  const TileIsa& tiles_;
  const Planes planes_;
  const AttentionRows& rows_;
  uint8_t* queries_;  // [slices of dim, rows, planes] times 256 bytes
  uint8_t* keys_;     // [8, steps of dim, planes] tiles
  uint8_t* values_;   // [value_panels, 4, planes] tiles
  uint8_t* weights_;  // [kQueryTile, planes] times 256 bytes
  float* scores_;     // [kQueryTile, 128]
};

}  // namespace nibble
