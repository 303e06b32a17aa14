#include "nibble/numeric/nvfp4_swizzle.h"

#include "nibble/base/check.h"

namespace nibble {

std::vector<uint8_t> swizzle_nvfp4_scales(std::span<const uint8_t> block_scales, int64_t rows,
                                          int64_t cols) {
  NIBBLE_CHECK(static_cast<int64_t>(block_scales.size()) == rows * cols);
  std::vector<uint8_t> swizzled(static_cast<size_t>(nvfp4_swizzled_bytes(rows, cols)));
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < cols; ++c) {
      swizzled[static_cast<size_t>(nvfp4_swizzled_offset(r, c, cols))] =
          block_scales[static_cast<size_t>(r * cols + c)];
    }
  }
  return swizzled;
}

std::vector<uint8_t> unswizzle_nvfp4_scales(std::span<const uint8_t> swizzled, int64_t rows,
                                            int64_t cols) {
  NIBBLE_CHECK(static_cast<int64_t>(swizzled.size()) == nvfp4_swizzled_bytes(rows, cols));
  std::vector<uint8_t> block_scales(static_cast<size_t>(rows * cols));
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < cols; ++c) {
      block_scales[static_cast<size_t>(r * cols + c)] =
          swizzled[static_cast<size_t>(nvfp4_swizzled_offset(r, c, cols))];
    }
  }
  return block_scales;
}

}  // namespace nibble
