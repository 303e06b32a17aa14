// The order in which tensor cores want block scales: tiles of 128 rows x 4 columns, 512 bytes each,
// rows padded to 128 and columns to 4 with zeros. Never on disk, made at load time. Fused matrices
// are concatenated first and swizzled once. Source: NVIDIA cuBLAS documentation, "1D block scaling
// factors layout" (128x4).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace nibble {

// Bytes of the swizzled form of block scales [rows, cols].
inline constexpr int64_t nvfp4_swizzled_bytes(int64_t rows, int64_t cols) {
  return (rows + 127) / 128 * 128 * ((cols + 3) / 4 * 4);
}

// Where scale (row, col) of a matrix with `cols` columns of scales lies.
inline constexpr int64_t nvfp4_swizzled_offset(int64_t row, int64_t col, int64_t cols) {
  const int64_t tiles_per_row = (cols + 3) / 4;
  return (row / 128 * tiles_per_row + col / 4) * 512 + row % 32 * 16 + row % 128 / 32 * 4 + col % 4;
}

// block_scales [rows, cols], row-major -> nvfp4_swizzled_bytes(rows, cols) bytes, and back.
// Aborts when a span's size is not that.
std::vector<uint8_t> swizzle_nvfp4_scales(std::span<const uint8_t> block_scales, int64_t rows,
                                          int64_t cols);
std::vector<uint8_t> unswizzle_nvfp4_scales(std::span<const uint8_t> swizzled, int64_t rows,
                                            int64_t cols);

}  // namespace nibble
