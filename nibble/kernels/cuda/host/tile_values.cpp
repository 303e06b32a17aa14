#include "nibble/kernels/cuda/host/tile_values.h"

#include <bit>
#include <cmath>
#include <cstring>

#include "nibble/kernels/cuda/packed_layout.h"
#include "nibble/numeric/bf16.h"
#include "nibble/numeric/fp4.h"
#include "nibble/numeric/fp8.h"

namespace nibble::cuda {
namespace {

uint32_t word_at(const uint8_t* bytes) {
  uint32_t word = 0;
  std::memcpy(&word, bytes, sizeof(word));
  return word;
}

// nvfp4_scale_code() back: ((floor(log2 s) + 9) << 3) | fraction bits.
float scale_value(uint8_t code) {
  return std::ldexp(1.0f + static_cast<float>(code & 7) / 8, (code >> 3) - 9);
}

void nvfp4_block(uint32_t x, uint32_t y, float scale, float* out) {
  const uint32_t z = (x & 0x60306030u) | (std::rotl(y, 2) & 0x80c180c1u);
  const uint32_t pairs[8] = {x,
                             std::rotr(x, 4),
                             std::rotr(x, 26),
                             y,
                             std::rotr(y, 4),
                             std::rotr(y, 26),
                             std::rotr(z, 8),
                             std::rotr(z, 30)};
  for (int i = 0; i < 16; ++i) {
    const uint32_t half = (pairs[i / 2] & kNvfp4Pair) >> (i % 2 == 0 ? 0 : 16);
    const uint32_t code = (half >> 12 & 8) | (half >> 6 & 7);
    out[i] = kE2m1Values[code] * scale;
  }
}

}  // namespace

void unit_values(LinearFormat format, const uint8_t* unit, float* out) {
  for (int lane = 0; lane < 32; ++lane) {
    for (int half = 0; half < 2; ++half) {
      const int col = 64 * half + 16 * (lane % 4);
      for (int upper = 0; upper < 2; ++upper) {
        float* const to = out + (lane / 4 + 8 * upper) * kUnitCols + col;
        if (format == LinearFormat::kNvfp4) {
          const uint8_t* const words = unit + 512 * half + 16 * lane + 8 * upper;
          nvfp4_block(word_at(words), word_at(words + 4),
                      scale_value(unit[1024 + 4 * lane + 2 * half + upper]), to);
        } else if (format == LinearFormat::kFp8Block) {
          const float scale = std::bit_cast<float>(word_at(unit + 2048));
          const uint8_t* const codes = unit + 1024 * half + 512 * upper + 16 * lane;
          for (int i = 0; i < 16; ++i) to[i] = kE4m3Values[codes[i]] * scale;
        } else {
          for (int i = 0; i < 16; ++i) {
            const int reg = upper + 2 * (i % 4 / 2);
            const uint8_t* const pair = unit + 2048 * half + 512 * (i / 4) + 16 * lane + 4 * reg;
            to[i] = bf16_to_float(static_cast<uint16_t>(word_at(pair) >> (16 * (i % 2))));
          }
        }
      }
    }
  }
}

}  // namespace nibble::cuda
