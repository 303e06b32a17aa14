// A unit of packed weights (packed_layout.h) as tensor cores take it, one struct for each format.
#pragma once

#include <cstdint>

#include "nibble/kernels/cuda/packed_layout.h"
#include "nibble/kernels/cuda/ptx.cuh"

namespace nibble::cuda {

// A step's fragments: rows g and g + 8, columns 4s.. and 4s + 2.. of the lane's block.
struct AFragment {
  uint32_t r[4];
};

struct Nvfp4Unit {
  static constexpr int kBytes = kNvfp4UnitBytes;
  static constexpr int kUnitsPerStage = 2;
  static constexpr int kStages = 4;
  static constexpr bool kUnitScale = false;
  static constexpr float kScale = 0x1p20f;

  // The fragments of 64 columns.
  struct Half {
    uint4 words;
    uint32_t scale_low;   // of row g, twice
    uint32_t scale_high;  // of row g + 8, twice
  };

  __device__ static Half load(const uint8_t* unit, int half, int lane) {
    return half_of(*reinterpret_cast<const uint4*>(unit + 512 * half + 16 * lane),
                   *reinterpret_cast<const uint32_t*>(unit + 1024 + 4 * lane), half);
  }

  // Of a lane's 16 bytes of codes and its 4 scales.
  __device__ static Half half_of(const uint4& words, uint32_t scales, int half) {
    Half h;
    h.words = words;
    // The byte in both halves of the register, then (code << 4) | 0x7000: s * 2^106 in BF16.
    h.scale_low = __byte_perm(scales, 0, half == 0 ? 0x4040 : 0x4242) * 16 + 0x70007000u;
    h.scale_high = __byte_perm(scales, 0, half == 0 ? 0x4141 : 0x4343) * 16 + 0x70007000u;
    return h;
  }

  // e2m1 * 2^-126 of pair `i` (of 8) of the block of 16 codes in words x and y: packed_layout.h.
  __device__ static uint32_t pair(uint32_t x, uint32_t y, int i) {
    const uint32_t z = (x & 0x60306030u) | (__funnelshift_l(y, y, 2) & 0x80c180c1u);
    const uint32_t word = i < 3 ? x : i < 6 ? y : z;
    switch (i) {
      case 0:
      case 3:
        return word & kNvfp4Pair;
      case 1:
      case 4:
        return __funnelshift_r(word, word, 4) & kNvfp4Pair;
      case 2:
      case 5:
        return (word << 6) & kNvfp4Pair;
      case 6:
        return __funnelshift_r(word, word, 8) & kNvfp4Pair;
      default:
        return (word << 2) & kNvfp4Pair;
    }
  }

  __device__ static AFragment fragment(const Half& h, int step) {
    return {{mul_bf16x2(pair(h.words.x, h.words.y, 2 * step), h.scale_low),
             mul_bf16x2(pair(h.words.z, h.words.w, 2 * step), h.scale_high),
             mul_bf16x2(pair(h.words.x, h.words.y, 2 * step + 1), h.scale_low),
             mul_bf16x2(pair(h.words.z, h.words.w, 2 * step + 1), h.scale_high)}};
  }
};

struct Fp8Unit {
  static constexpr int kBytes = kFp8UnitBytes;
  static constexpr int kUnitsPerStage = 1;
  static constexpr int kStages = 4;
  static constexpr bool kUnitScale = true;
  static constexpr float kScale = 1;

  struct Half {
    uint4 low;
    uint4 high;
  };

  __device__ static Half load(const uint8_t* unit, int half, int lane) {
    const uint8_t* const base = unit + 1024 * half + 16 * lane;
    return {*reinterpret_cast<const uint4*>(base), *reinterpret_cast<const uint4*>(base + 512)};
  }

  // Two E4M3 bytes of a word as BF16: moved into place they are the value * 2^-120.
  __device__ static uint32_t pair(uint32_t word, int upper) {
    const uint32_t q = __byte_perm(word, 0, upper == 0 ? 0x1404 : 0x3424);
    return mul_bf16x2((q & 0x80008000u) | ((q >> 4) & 0x07f007f0u), 0x7b807b80u);
  }

  __device__ static AFragment fragment(const Half& h, int step) {
    const uint32_t low = word(h.low, step);
    const uint32_t high = word(h.high, step);
    return {{pair(low, 0), pair(high, 0), pair(low, 1), pair(high, 1)}};
  }
};

struct Bf16Unit {
  static constexpr int kBytes = kBf16UnitBytes;
  static constexpr int kUnitsPerStage = 1;
  static constexpr int kStages = 2;
  static constexpr bool kUnitScale = false;
  static constexpr float kScale = 1;

  struct Half {
    const uint8_t* base;
  };
  __device__ static Half load(const uint8_t* unit, int half, int lane) {
    return {unit + 2048 * half + 16 * lane};
  }
  __device__ static AFragment fragment(const Half& h, int step) {
    const uint4 v = *reinterpret_cast<const uint4*>(h.base + 512 * step);
    return {{v.x, v.y, v.z, v.w}};
  }
};

}  // namespace nibble::cuda
