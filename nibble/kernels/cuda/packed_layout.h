// How the cuda backend lays weights out: in the order in which tensor cores take them.
//
// A matrix is a row of tiles of 16 output rows (the last one padded with zeros); a tile is a row of
// units of 128 columns (padded with zeros), and a unit is contiguous: a warp's next 1 to 4 KB.
// Within a unit each lane of the warp finds, with 16-byte reads, its own fragments of the A operand
// of mma.m16n8k16 (and of wgmma's, which is the same for 16 rows): lane l holds rows g = l / 4 and
// g + 8, and of each 64 columns the block of 16 that starts at 16 t, t = l % 4. The order of
// columns inside an mma is free as long as the tokens follow it: step s (0..3) takes columns 4s
// .. 4s + 3 of every lane's block, the first two as the mma's columns 2t, 2t + 1 and the others as
// 2t + 8, 2t + 9, so that a lane needs one NVFP4 block scale a row for four steps.
//
//   NVFP4  1152 bytes: [2 halves of 64 columns][32 lanes][16]   codes: row g 8 bytes, row g + 8
//                      [32 lanes][4]                            scales: half 0 row g, row g + 8,
//                      half 1
//   FP8    2064 bytes: [2 halves][row g, row g + 8][32 lanes][16], then the block's float scale
//   BF16   4096 bytes: [2 halves][4 steps][32 lanes][4 registers of 2 values]
//   F32    3 x BF16:   the value as a sum of three BF16 values, exactly; all units of the first
//                      part of a tile, then those of the second, then those of the third
//
// The 16 codes of a block, 8 pairs in two words x and y, are rearranged so that a pair becomes two
// BF16 values by a rotation and an AND. Its template has the sign of a code in bit 15 of a half,
// the magnitude in bits 8 to 6, the even column in the lower half. x holds pairs 0, 1 and 2 rotated
// left by 0, 4 and 26 bits, y the same of pairs 3, 4 and 5; pairs 6 and 7, rotated by 8 and 30,
// make a third word z, of which x holds bits 14, 13, 5 and 4 of each half where they are, and y
// bits 15, 7, 6 and 0, rotated right by 2. The template alone does not tile 16 bits: no layout of
// single words does without more instructions (tried by enumeration). Block scales are re-encoded
// without subnormals: nvfp4_scale_code(). Both are exact; spec kernels section 3.4.
#pragma once

#include <cstddef>
#include <cstdint>

#include "nibble/kernels/linear_weight.h"

namespace nibble::cuda {

inline constexpr int kTileRows = 16;
inline constexpr int kUnitCols = 128;
inline constexpr int kNvfp4UnitBytes = 1152;
inline constexpr uint32_t kNvfp4Pair = 0x81c081c0;  // the bits of a pair's template
inline constexpr int kFp8UnitBytes = 2064;
inline constexpr int kBf16UnitBytes = 4096;
inline constexpr int kF32Parts = 3;

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// What a matrix takes in this layout.
struct PackedShape {
  int64_t tiles = 0;
  int64_t units = 0;    // of a tile, all parts together
  int64_t x_units = 0;  // of the activations: ceil(cols / 128)
  int64_t unit_bytes = 0;

  size_t bytes() const { return static_cast<size_t>(tiles * units * unit_bytes); }
};

constexpr PackedShape packed_shape(LinearFormat format, int64_t rows, int64_t cols) {
  PackedShape shape;
  shape.tiles = ceil_div(rows, kTileRows);
  shape.x_units = ceil_div(cols, kUnitCols);
  shape.units = shape.x_units * (format == LinearFormat::kF32 ? kF32Parts : 1);
  shape.unit_bytes = format == LinearFormat::kNvfp4      ? kNvfp4UnitBytes
                     : format == LinearFormat::kFp8Block ? kFp8UnitBytes
                                                         : kBf16UnitBytes;
  return shape;
}

}  // namespace nibble::cuda
