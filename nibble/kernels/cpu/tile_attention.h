// Attention of many query rows in matrix tiles (AMX), with queries, keys, softmax weights and
// values of one BF16 number each and sums in binary32: 32 rows at a time against a block of 256
// positions.
//
// Scores are made transposed, positions by rows, because entries of the cache then are what a tile
// takes as it is, and because a vector holds one position of 16 rows: maxima and sums of a row need
// no step across lanes. Their exponentials, rounded to BF16, are transposed back, 16 x 32 at a
// time.
//
// A row's weights are 2^(score - m) for a whole number m, its largest score of the first block
// rounded up, which rises only where a later block's is more than 2^8 above it: what was summed
// before is then multiplied by a power of two, and no rounding depends on the other rows.
#pragma once

#include <cstdint>

namespace nibble {

inline constexpr int64_t kTileContext = 256;  // positions of a block
inline constexpr int64_t kTileContextSteps = kTileContext / 32;
// Bytes of a panel of values: [kTileContextSteps] tiles.
inline constexpr int64_t kTileValueBytes = kTileContextSteps * 1024;
// Scores [2, kTileContext, 16] floats, then weights [2, kTileContextSteps] tiles.
inline constexpr int64_t kTileAttentionScratch = 2 * kTileContext * 64 + 2 * kTileValueBytes;

// One block of positions for all rows. Buffers are aligned to 64 bytes.
struct TileAttention {
  const uint8_t* queries;  // [panels of 16 rows, steps] tiles (TileIsa::expand_rows)
  int64_t rows;
  int64_t steps;  // of 32 elements of a query and a key
  // Row i sees positions below visible[i], which does not fall from row to row; padded to whole
  // panels with the last.
  const int32_t* visible;
  // BF16 keys of 16 positions each, key_stride bytes apart; past the last visible position they may
  // be anything that may be read.
  const void* const* keys;
  int64_t key_stride;
  const uint8_t* values;  // [value_panels] of kTileValueBytes, finite past the last position
  int64_t value_panels;
  int64_t start;  // the first position, a multiple of kTileContext; the first call has 0
  float scale;    // softmax_scale * log2(e)
  float* max;     // [rows, padded], -infinity before the first block
  float* total;   // [rows, padded], sum of weights, 0 before the first block
  float* sums;    // [panels of 16 rows, value_panels] tiles [16, 16], sum of weights times values
  uint8_t* scratch;  // kTileAttentionScratch bytes
  // What the next block will read is asked for: `asked` pieces of `ask_bytes`.
  const void* const* ask;
  int64_t asked;
  int64_t ask_bytes;
};

}  // namespace nibble
