#include "nibble/kernels/source_codes.h"

#include <fmt/format.h>

#include <algorithm>

#include "nibble/base/error.h"
#include "nibble/numeric/nvfp4.h"

namespace nibble {

Status check_source_codes(const HostLinear& source) {
  if (source.format == LinearFormat::kFp8Block) {
    const auto* const codes = static_cast<const uint8_t*>(source.data);
    for (int64_t r = 0; r < source.rows; ++r) {
      const uint8_t* const row = codes + r * source.cols;
      bool any = false;  // without an early exit the loop becomes vectors
      for (int64_t k = 0; k < source.cols; ++k) any |= (row[k] & 0x7f) == 0x7f;
      if (!any) continue;
      const uint8_t* const bad =
          std::find_if(row, row + source.cols, [](uint8_t code) { return (code & 0x7f) == 0x7f; });
      return corrupt(fmt::format("weight [{}, {}] is 0x{:02x}, an E4M3 NaN, expected a number", r,
                                 bad - row, *bad));
    }
  }
  if (source.format == LinearFormat::kNvfp4) {
    const int64_t blocks = source.cols / kNvfp4BlockSize;
    const auto* scales = static_cast<const uint8_t*>(source.scales);
    const auto bad = find_bad_block_scale({scales, static_cast<size_t>(source.rows * blocks)});
    if (!bad) return {};
    const auto i = static_cast<int64_t>(*bad);
    return corrupt(fmt::format("block scale [{}, {}] is 0x{:02x}, expected 0x00 to 0x7e",
                               i / blocks, i % blocks, scales[i]));
  }
  return {};
}

}  // namespace nibble
