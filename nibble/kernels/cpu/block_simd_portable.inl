// Lanes, sixteen 32-bit integers, in plain C++. After simd_portable.inl.

namespace nibble {
namespace {

struct Lanes {
  int32_t v[16];
};

constexpr int kBlockPanels = 1;
constexpr int kPairBits = 0;  // v_pairs multiplies doubled codes by 2^kPairBits

template <typename F>
inline Lanes v_make_lanes(F f) {
  Lanes r;
  for (int i = 0; i < 16; ++i) r.v[i] = f(i);
  return r;
}

inline Lanes v_load_lanes(const uint8_t* p) {
  Lanes r;
  std::memcpy(&r, p, sizeof(r));
  return r;
}
inline void v_store_lanes(uint8_t* p, const Lanes& v) { std::memcpy(p, &v, sizeof(v)); }
inline Lanes v_lanes(const uint8_t* p) {
  int32_t x = 0;
  std::memcpy(&x, p, sizeof(x));
  return v_make_lanes([&](int) { return x; });
}
inline V16 v_to_float(const Lanes& v) {
  return v_make([&](int i) { return static_cast<float>(v.v[i]); });
}
// scale * 2^e, given e << 23.
inline V16 v_add_step(const V16& scale, const uint8_t* step) {
  Lanes bits;
  std::memcpy(&bits, &scale, sizeof(bits));
  const Lanes e = v_lanes(step);
  // Modulo 2^32, as vectors add.
  bits = v_make_lanes([&](int i) {
    return static_cast<int32_t>(static_cast<uint32_t>(bits.v[i]) + static_cast<uint32_t>(e.v[i]));
  });
  V16 r;
  std::memcpy(&r, &bits, sizeof(r));
  return r;
}

inline int32_t doubled_code(uint32_t nibble) {
  constexpr int8_t kDoubled[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
  return kDoubled[nibble & 15];
}

// Columns j and j + 4 of eight as 16-bit pairs of doubled codes: nibble j of each 16-bit word.
inline Lanes v_pairs(const Codes& codes, int j) {
  return v_make_lanes([&](int i) {
    const int32_t low = doubled_code(codes.row[i] >> (4 * j));
    const int32_t high = doubled_code(codes.row[i] >> (16 + 4 * j));
    return (low & 0xffff) | high * 65536;
  });
}
inline Lanes v_pair_start(const Lanes& w, const uint8_t* x) {
  int16_t pair[2];
  std::memcpy(pair, x, sizeof(pair));
  return v_make_lanes([&](int i) {
    return static_cast<int16_t>(w.v[i] & 0xffff) * pair[0] + (w.v[i] >> 16) * pair[1];
  });
}
inline Lanes v_pair_add(const Lanes& sum, const Lanes& w, const uint8_t* x) {
  const Lanes product = v_pair_start(w, x);
  return v_make_lanes([&](int i) { return sum.v[i] + product.v[i]; });
}

// Columns 0 2 4 6 (half 0) or 1 3 5 7 (half 1) of eight as bytes, 12 + doubled code.
inline Lanes v_bytes(const Codes& codes, int half) {
  return v_make_lanes([&](int i) {
    uint32_t four = 0;
    for (int k = 0; k < 4; ++k) {
      four |= static_cast<uint32_t>(12 + doubled_code(codes.row[i] >> (8 * k + 4 * half)))
              << (8 * k);
    }
    return static_cast<int32_t>(four);
  });
}
inline Lanes v_byte_add(const Lanes& sum, const Lanes& w, const uint8_t* x) {
  int8_t four[4];
  std::memcpy(four, x, sizeof(four));
  return v_make_lanes([&](int i) {
    int32_t total = sum.v[i];
    for (int k = 0; k < 4; ++k) total += (w.v[i] >> (8 * k) & 255) * four[k];
    return total;
  });
}

}  // namespace
}  // namespace nibble
