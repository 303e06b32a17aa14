// V16, sixteen floats, in plain C++ that any compiler turns into whatever vectors it has. v_fma
// rounds twice: a fused one in software would be a hundred times slower.
#include <cmath>
#include <cstring>

#include "nibble/numeric/fp4.h"
#include "nibble/numeric/fp8.h"

namespace nibble {
namespace {

struct V16 {
  float v[16];
};

constexpr int kRowTile = 1;    // query rows of a tile of score_entries and add_entries
constexpr int kEntryTile = 1;  // entries, or columns / 16
constexpr int kTilePanels = 1;
constexpr int fused_panels(int, PanelFormat) { return 1; }

template <typename F>
inline V16 v_make(F f) {
  V16 r;
  for (int i = 0; i < 16; ++i) r.v[i] = f(i);
  return r;
}

inline V16 v_load(const float* p) {
  return v_make([&](int i) { return p[i]; });
}
inline void v_store(float* p, const V16& v) {
  for (int i = 0; i < 16; ++i) p[i] = v.v[i];
}
inline V16 v_set(float x) {
  return v_make([&](int) { return x; });
}
inline V16 v_zero() { return v_set(0); }
inline V16 v_fma(const V16& a, const V16& b, const V16& c) {
  return v_make([&](int i) { return a.v[i] * b.v[i] + c.v[i]; });
}
inline V16 v_mul(const V16& a, const V16& b) {
  return v_make([&](int i) { return a.v[i] * b.v[i]; });
}
inline V16 v_add(const V16& a, const V16& b) {
  return v_make([&](int i) { return a.v[i] + b.v[i]; });
}
inline V16 v_sub(const V16& a, const V16& b) {
  return v_make([&](int i) { return a.v[i] - b.v[i]; });
}
inline V16 v_div(const V16& a, const V16& b) {
  return v_make([&](int i) { return a.v[i] / b.v[i]; });
}
// b where either is NaN.
inline V16 v_max(const V16& a, const V16& b) {
  return v_make([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
}
inline V16 v_min(const V16& a, const V16& b) {
  return v_make([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
}
// To nearest even, for |a| < 2^22: the sum's last place is 1.
inline V16 v_round(const V16& a) {
  return v_make([&](int i) { return a.v[i] + 0x1.8p23f - 0x1.8p23f; });
}
// 2^n for whole n in -126 .. 127.
inline V16 v_exp2i(const V16& n) {
  return v_make([&](int i) {
    // NaN may not be converted to an integer.
    const int32_t e = n.v[i] >= -126 && n.v[i] <= 127 ? static_cast<int32_t>(n.v[i]) : 0;
    const uint32_t bits = static_cast<uint32_t>(e + 127) << 23;
    float value = 0;
    std::memcpy(&value, &bits, sizeof(value));
    return value;
  });
}

// v * 2^n for whole n in -252 .. 254.
inline V16 v_times_exp2(const V16& v, const V16& n) {
  const V16 half = v_round(v_mul(n, v_set(0.5f)));
  return v_mul(v_mul(v, v_exp2i(half)), v_exp2i(v_sub(n, half)));
}

inline float v_largest(const V16& v) {
  float largest = v.v[0];
  for (int i = 1; i < 16; ++i) largest = v.v[i] > largest ? v.v[i] : largest;
  return largest;
}

// The lanes' sum: i with i + 8, then + 4, + 2, + 1.
inline float v_sum(const V16& v) {
  V16 sums = v;
  for (int width = 8; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) sums.v[i] += sums.v[i + width];
  }
  return sums.v[0];
}

// rows[i][j] and rows[j][i] change places.
inline void v_transpose(V16* rows) {
  float in[16][16];
  float out[16][16];
  for (int i = 0; i < 16; ++i) v_store(in[i], rows[i]);
  for (int i = 0; i < 16; ++i) {
    for (int j = 0; j < 16; ++j) out[j][i] = in[i][j];
  }
  for (int i = 0; i < 16; ++i) rows[i] = v_load(out[i]);
}

inline V16 v_load_bf16(const uint16_t* p) {
  return v_make([&](int i) {
    const uint32_t bits = static_cast<uint32_t>(p[i]) << 16;
    float value = 0;
    std::memcpy(&value, &bits, sizeof(value));
    return value;
  });
}
inline V16 v_load_e4m3(const uint8_t* p) {
  return v_make([&](int i) { return kE4m3Values[p[i]]; });
}
inline V16 v_load_e4m3_finite(const uint8_t* p) { return v_load_e4m3(p); }
// NVFP4's block scales as a panel keeps them, times 2^power.
inline V16 v_load_scale(const uint8_t* p, int power = 0) {
  return v_make([&](int i) {
    const uint32_t bits =
        (static_cast<uint32_t>(p[i]) << 20) + (static_cast<uint32_t>(112 + power) << 23);
    float value = 0;
    std::memcpy(&value, &bits, sizeof(value));
    return value;
  });
}

// Eight columns of 16 rows of NVFP4 codes: a word is a row, its nibbles from the lowest up the
// columns.
struct Codes {
  uint32_t row[16];
};
inline Codes v_load_codes(const uint8_t* p) {
  Codes codes;
  for (int i = 0; i < 16; ++i) {
    const uint8_t* const b = p + 4 * i;
    codes.row[i] = static_cast<uint32_t>(b[0]) | static_cast<uint32_t>(b[1]) << 8 |
                   static_cast<uint32_t>(b[2]) << 16 | static_cast<uint32_t>(b[3]) << 24;
  }
  return codes;
}

// The next column's values times the rows' scales.
inline V16 v_next_column(Codes* codes, const V16& scale) {
  return v_make([&](int i) {
    const float value = kE2m1Values[codes->row[i] & 0xf];
    codes->row[i] >>= 4;
    return value * scale.v[i];
  });
}

}  // namespace
}  // namespace nibble
