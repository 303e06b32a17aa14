// The eight tiles as plain memory, and what AMX's instructions do with them by Intel's description:
// subnormals are 0, products of pairs are added up in two chains for even and odd columns, and
// their sum to the result. A product of two BF16 numbers is exact in binary32, so that one rounding
// of product and sum is that of the sum.
#include <cmath>
#include <cstring>

#include "nibble/numeric/bf16.h"
#include "nibble/numeric/fp8.h"

namespace nibble {
namespace {

struct Tile {
  int rows = 0;
  alignas(64) uint8_t data[16][64] = {};
};
thread_local Tile tile_registers[8];

inline float no_subnormal(float x) { return std::fabs(x) < 0x1p-126f ? std::copysign(0.0f, x) : x; }

inline void t_configure(int rows, int second_rows) {
  const int other = second_rows == 0 ? rows : second_rows;
  const int heights[8] = {rows, rows, other, other, rows, other, 16, 16};
  for (int i = 0; i < 8; ++i) {
    tile_registers[i] = {};
    tile_registers[i].rows = heights[i];
  }
}
inline void t_release() {
  for (Tile& tile : tile_registers) tile = {};
}
template <int kTile>
inline void t_zero() {
  std::memset(tile_registers[kTile].data, 0, sizeof(tile_registers[kTile].data));
}
template <int kTile>
inline void t_load(const void* rows, int64_t stride) {
  for (int i = 0; i < tile_registers[kTile].rows; ++i) {
    std::memcpy(tile_registers[kTile].data[i], static_cast<const uint8_t*>(rows) + i * stride, 64);
  }
}
template <int kTile>
inline void t_load_once(const void* rows, int64_t stride) {
  t_load<kTile>(rows, stride);
}
template <int kTile>
inline void t_store(void* rows, int64_t stride) {
  for (int i = 0; i < tile_registers[kTile].rows; ++i) {
    std::memcpy(static_cast<uint8_t*>(rows) + i * stride, tile_registers[kTile].data[i], 64);
  }
}
template <int kSum, int kRows, int kWeights>
inline void t_dot() {
  for (int m = 0; m < tile_registers[kSum].rows; ++m) {
    uint16_t x[32];
    float sum[16];
    std::memcpy(x, tile_registers[kRows].data[m], sizeof(x));
    std::memcpy(sum, tile_registers[kSum].data[m], sizeof(sum));
    float chain[16][2] = {};
    for (int k = 0; k < 16; ++k) {
      uint16_t w[32];
      std::memcpy(w, tile_registers[kWeights].data[k], sizeof(w));
      for (int n = 0; n < 16; ++n) {
        for (int i = 0; i < 2; ++i) {
          const float product =
              no_subnormal(bf16_to_float(x[2 * k + i])) * no_subnormal(bf16_to_float(w[2 * n + i]));
          chain[n][i] = no_subnormal(chain[n][i] + product);
        }
      }
    }
    for (int n = 0; n < 16; ++n) {
      sum[n] = no_subnormal(no_subnormal(sum[n]) + no_subnormal(chain[n][0] + chain[n][1]));
    }
    std::memcpy(tile_registers[kSum].data[m], sum, sizeof(sum));
  }
}

inline void t_clear(uint8_t* out, int64_t bytes) {
  std::memset(out, 0, static_cast<size_t>(bytes));
}

// As tile_simd_amx.inl's.
inline void t_expand_block(const uint8_t* codes, const uint8_t* scales, uint8_t* out) {
  constexpr float kValues[8] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6};
  for (int r = 0; r < kPanelRows; ++r) {
    const uint32_t bits = (uint32_t{scales[r]} << 20) + (112u << 23);
    float scale = 0;
    std::memcpy(&scale, &bits, sizeof(scale));
    for (int half = 0; half < 2; ++half) {
      for (int j = 0; j < 8; ++j) {
        const int byte = codes[64 * half + 4 * r + j / 2];
        const int code = j % 2 == 0 ? byte & 15 : byte >> 4;
        const float value = kValues[code & 7] * scale * 0x1p-112f;
        const uint16_t weight = float_to_bf16((code & 8) != 0 ? -value : value);
        std::memcpy(out + 256 * half + 64 * (j % 4) + 4 * r + 2 * (j / 4), &weight, 2);
      }
    }
  }
}

inline void t_pair_columns(const uint16_t* w, uint8_t* out) {
  for (int r = 0; r < kPanelRows; ++r) {
    for (int j = 0; j < 8; ++j) {
      std::memcpy(out + 64 * (j % 4) + 4 * r + 2 * (j / 4), w + j * kPanelRows + r, 2);
    }
  }
}

inline void t_pair_columns(const uint8_t* w, uint8_t* out) {
  for (int r = 0; r < kPanelRows; ++r) {
    for (int j = 0; j < 8; ++j) {
      const uint16_t weight = float_to_bf16(kE4m3Values[w[j * kPanelRows + r]] * 0x1p-112f);
      std::memcpy(out + 64 * (j % 4) + 4 * r + 2 * (j / 4), &weight, 2);
    }
  }
}

inline void t_add_scaled(const float* x, float scale, const float* base, int64_t rows, float* out,
                         int64_t stride) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int i = 0; i < 16; ++i) {
      const float v = x[16 * r + i];
      out[r * stride + i] = base == nullptr ? v * scale : std::fma(v, scale, base[16 * r + i]);
    }
  }
}

void tile_expand_floats(const float* w, int64_t count, int planes, void* out) {
  auto* tile = static_cast<uint8_t*>(out);
  for (int64_t first = 0; first < count; first += 32, tile += planes * 1024) {
    for (int64_t k = 0; k < 32; ++k) {
      for (int r = 0; r < kPanelRows; ++r) {
        float v = first + k < count ? w[(first + k) * kPanelRows + r] : 0.0f;
        uint8_t* const pair = tile + k / 2 * 64 + 4 * r + k % 2 * 2;
        for (int plane = 0; plane < planes; ++plane) {
          const uint16_t rounded = float_to_bf16(no_subnormal(v));
          std::memcpy(pair + plane * 1024, &rounded, 2);
          v -= bf16_to_float(rounded);
        }
      }
    }
  }
}

void tile_expand_rows(const uint16_t* const* rows, int64_t count, int64_t dim, void* out) {
  auto* tile = static_cast<uint8_t*>(out);
  for (int64_t first = 0; first < dim; first += 32, tile += 1024) {
    std::memset(tile, 0, 1024);
    for (int64_t i = 0; i < count; ++i) {
      for (int64_t k = 0; k < 32 && first + k < dim; ++k) {
        std::memcpy(tile + k / 2 * 64 + 4 * i + k % 2 * 2, rows[i] + first + k, 2);
      }
    }
  }
}

void tile_expand_columns(const uint16_t* const* rows, int64_t count, int64_t panels, void* out,
                         int64_t b_panel) {
  for (int64_t p = 0; p < panels; ++p) {
    auto* const tiles = static_cast<uint8_t*>(out) + p * b_panel;
    std::memset(tiles, 0, static_cast<size_t>((count + 31) / 32 * 1024));
    for (int64_t k = 0; k < count; ++k) {
      for (int r = 0; r < kPanelRows; ++r) {
        std::memcpy(tiles + k / 32 * 1024 + k % 32 / 2 * 64 + 4 * r + k % 2 * 2,
                    rows[k] + p * kPanelRows + r, 2);
      }
    }
  }
}

void tile_round(const float* x, int64_t count, float factor, uint16_t* out) {
  for (int64_t i = 0; i < count; ++i) out[i] = float_to_bf16(no_subnormal(x[i] * factor));
}

// As tile_simd_amx.inl's, lane by lane.
struct TileLanes {
  float v[16];
};
template <typename F>
inline TileLanes each_lane(F&& f) {
  TileLanes result;
  for (int i = 0; i < 16; ++i) result.v[i] = f(i);
  return result;
}
inline TileLanes l_load(const float* p) {
  return each_lane([&](int i) { return p[i]; });
}
inline void l_store(float* p, const TileLanes& v) { std::memcpy(p, v.v, sizeof(v.v)); }
inline TileLanes l_set(float x) {
  return each_lane([&](int) { return x; });
}
inline TileLanes l_add(const TileLanes& a, const TileLanes& b) {
  return each_lane([&](int i) { return a.v[i] + b.v[i]; });
}
inline TileLanes l_sub(const TileLanes& a, const TileLanes& b) {
  return each_lane([&](int i) { return a.v[i] - b.v[i]; });
}
inline TileLanes l_mul(const TileLanes& a, const TileLanes& b) {
  return each_lane([&](int i) { return a.v[i] * b.v[i]; });
}
inline TileLanes l_fma(const TileLanes& a, const TileLanes& b, const TileLanes& c) {
  return each_lane([&](int i) { return std::fma(a.v[i], b.v[i], c.v[i]); });
}
inline TileLanes l_max(const TileLanes& a, const TileLanes& b) {
  return each_lane([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
}
inline TileLanes l_ceil(const TileLanes& a) {
  return each_lane([&](int i) { return std::ceil(a.v[i]); });
}
inline TileLanes l_times_exp2(const TileLanes& v, const TileLanes& places) {
  return each_lane([&](int i) {
    uint32_t bits = 0;
    uint32_t exponent = 0;
    std::memcpy(&bits, &v.v[i], 4);
    std::memcpy(&exponent, &places.v[i], 4);
    bits += exponent << 23;
    float result = 0;
    std::memcpy(&result, &bits, 4);
    return result;
  });
}
inline TileLanes l_where_greater(const TileLanes& a, const TileLanes& b, const TileLanes& x,
                                 const TileLanes& y) {
  return each_lane([&](int i) { return a.v[i] > b.v[i] ? x.v[i] : y.v[i]; });
}
inline bool l_any_greater(const TileLanes& a, const TileLanes& b) {
  bool any = false;
  for (int i = 0; i < 16; ++i) any = any || a.v[i] > b.v[i];
  return any;
}
struct TileLimits {
  int32_t v[16];
};
inline TileLimits l_limits(const int32_t* p) {
  TileLimits limits;
  std::memcpy(limits.v, p, sizeof(limits.v));
  return limits;
}
inline TileLanes l_keep(const TileLimits& limits, int32_t i, const TileLanes& v,
                        const TileLanes& fill) {
  return each_lane([&](int lane) { return limits.v[lane] > i ? v.v[lane] : fill.v[lane]; });
}
struct TileWords {
  uint32_t v[16];
};
inline TileWords l_pair(const TileLanes& a, const TileLanes& b) {
  TileWords words;
  for (int i = 0; i < 16; ++i) {
    uint32_t low = 0;
    uint32_t high = 0;
    std::memcpy(&low, &a.v[i], 4);
    std::memcpy(&high, &b.v[i], 4);
    words.v[i] = (low + 0x8000) >> 16 | ((high + 0x8000) & 0xffff0000);
  }
  return words;
}
inline void l_store_transposed(TileWords* words, uint8_t* out) {
  for (int j = 0; j < 16; ++j) {
    for (int i = 0; i < 16; ++i) std::memcpy(out + 64 * j + 4 * i, &words[i].v[j], 4);
  }
}

// As tile_simd_amx.inl's.
template <bool kSwap>
void quantize_row(const float* x, int64_t count, int planes, const TileRow& row) {
  for (int64_t i = 0; i < kSliceCols; ++i) {
    const float v = i < count ? x[i] * 0x1p64f : 0.0f;
    const uint16_t rounded = float_to_bf16(no_subnormal(v));
    uint8_t* const out = row.first + i / 32 * row.step_bytes +
                         2 * (kSwap ? i % 32 / 8 * 8 + (i % 4) * 2 + i % 8 / 4 : i % 32);
    std::memcpy(out, &rounded, 2);
    if (planes == 1) continue;
    const uint16_t rest = float_to_bf16(no_subnormal(v - bf16_to_float(rounded)));
    std::memcpy(out + row.plane_bytes, &rest, 2);
  }
}

}  // namespace
}  // namespace nibble
