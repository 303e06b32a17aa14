// The block products, written once over V16, Codes and Lanes (simd_*.inl, block_simd_*.inl) and
// built once for each instruction set, with internal linkage as in panel_isa.inl.
//
// multiply_fused reads each panel from one end to the other, one at a time where memory gives its
// full rate to one sequential stream and two thirds of it to four (Zen 5), four side by side where
// it is the other way round (Xeons with AMX). Accumulators of neighbouring
// blocks are independent, so one panel is enough to keep the units busy. multiply keeps a tile of
// NIBBLE_BLOCK_TOKENS x kBlockPanels sums in registers and is bound by the products: of a block's
// instructions on the two multiplying ports, 8 of 9 are products (16 bit), 4 of 6 (8 bit).

namespace nibble {
namespace {

#ifndef NIBBLE_UNROLL
#define NIBBLE_UNROLL _Pragma("GCC unroll 16")
#endif

#ifndef NIBBLE_BLOCK_WALKED
#define NIBBLE_BLOCK_WALKED 1  // panels that few tokens read side by side
#define NIBBLE_BLOCK_AHEAD 12288
#endif

// How far ahead of its use a panel's data is asked for.
constexpr int kBlockPrefetchBytes = NIBBLE_BLOCK_AHEAD;

template <RowFormat kRows>
struct Record;

template <>
struct Record<RowFormat::kInt16> {
  static constexpr int kBytes = kInt16RecordBytes;
  static constexpr int kExpandedBytes = kInt16ExpandedBytes;
  static constexpr int kSteps = 8;                    // vectors of weights in a block
  static constexpr int kScalePower = -1 - kPairBits;  // codes enter doubled, times 2^kPairBits
  static Lanes weights(const Codes* codes, int step) { return v_pairs(codes[step / 4], step % 4); }
  static Lanes start(const uint8_t* record, int block, Lanes w) {
    return v_pair_start(w, record + 32 * block);
  }
  static Lanes add(Lanes sum, const uint8_t* record, int block, int step, Lanes w) {
    return v_pair_add(sum, w, record + 32 * block + 4 * step);
  }
  static V16 scale(V16 weight_scale, const uint8_t* record, int block) {
    return v_add_step(weight_scale, record + kInt16StepOffset + 4 * block);
  }
  static V16 first(V16 sum, const uint8_t* record) {
    return v_add(sum, v_set(*reinterpret_cast<const float*>(record + kInt16PoisonOffset)));
  }
};

template <>
struct Record<RowFormat::kInt8> {
  static constexpr int kBytes = kInt8RecordBytes;
  static constexpr int kExpandedBytes = kInt8ExpandedBytes;
  static constexpr int kSteps = 4;
  static constexpr int kScalePower = -1;
  static Lanes weights(const Codes* codes, int step) { return v_bytes(codes[step / 2], step % 2); }
  static Lanes start(const uint8_t* record, int block, Lanes w) {
    return v_byte_add(v_lanes(record + kInt8BiasOffset + 4 * block), w, record + 16 * block);
  }
  static Lanes add(Lanes sum, const uint8_t* record, int block, int step, Lanes w) {
    return v_byte_add(sum, w, record + 16 * block + 4 * step);
  }
  static V16 scale(V16 weight_scale, const uint8_t* record, int block) {
    return v_mul(weight_scale,
                 v_set(*reinterpret_cast<const float*>(record + kInt8ScaleOffset + 4 * block)));
  }
  static V16 first(V16 sum, const uint8_t*) { return sum; }
};

template <RowFormat kRows>
void block_expand(const PanelMatrix* matrix, int64_t first_panel, int64_t panels, int64_t slice,
                  void* out) {
  using R = Record<kRows>;
  const int64_t left = (matrix->cols - slice * kSliceCols) / 16;
  const int blocks = left < 8 ? static_cast<int>(left) : 8;
  auto* expanded = static_cast<uint8_t*>(out);
  for (int64_t p = first_panel; p < first_panel + panels; ++p, expanded += R::kExpandedBytes) {
    const uint8_t* const panel = matrix->data + p * matrix->panel_bytes;
    uint8_t* weights = expanded;
    auto* scales = reinterpret_cast<float*>(expanded + R::kExpandedBytes - kExpandedScaleBytes);
    for (int b = 0; b < blocks; ++b) {
      const Nvfp4Unit unit = nvfp4_unit(panel, matrix->cols / 16, 8 * slice + b);
      // The panel's next slice, which is wanted when this one's products are done.
      const uint8_t* const next = panel + ((slice + 1) * 8 + b) * kNvfp4UnitBytes;
      __builtin_prefetch(next);
      __builtin_prefetch(next + 64);
      __builtin_prefetch(next + 128);
      const Codes codes[2] = {v_load_codes(unit.codes), v_load_codes(unit.codes + 64)};
      NIBBLE_UNROLL for (int s = 0; s < R::kSteps; ++s) {
        v_store_lanes(weights + 64 * s, R::weights(codes, s));
      }
      weights += 64 * R::kSteps;
      v_store(scales + 16 * b, v_load_scale(unit.scales, R::kScalePower));
    }
  }
}

template <RowFormat kRows, int kTokens, int kPanels>
void block_tile(const uint8_t* a, const uint8_t* b, int blocks, float* c, int64_t c_row,
                int64_t c_panel, bool accumulate) {
  using R = Record<kRows>;
  V16 sum[kTokens][kPanels];
  NIBBLE_UNROLL for (int t = 0; t < kTokens; ++t) {
    NIBBLE_UNROLL for (int p = 0; p < kPanels; ++p) {
      sum[t][p] =
          R::first(accumulate ? v_load(c + t * c_row + p * c_panel) : v_zero(), a + t * R::kBytes);
    }
  }
  const uint8_t* weights = b;
  const uint8_t* scales = b + R::kExpandedBytes - kExpandedScaleBytes;
  for (int block = 0; block < blocks; ++block) {
    Lanes dot[kTokens][kPanels];
    NIBBLE_UNROLL for (int s = 0; s < R::kSteps; ++s) {
      Lanes w[kPanels];
      NIBBLE_UNROLL for (int p = 0; p < kPanels; ++p) {
        w[p] = v_load_lanes(weights + p * R::kExpandedBytes + 64 * s);
      }
      NIBBLE_UNROLL for (int t = 0; t < kTokens; ++t) {
        NIBBLE_UNROLL for (int p = 0; p < kPanels; ++p) {
          dot[t][p] = s == 0 ? R::start(a + t * R::kBytes, block, w[p])
                             : R::add(dot[t][p], a + t * R::kBytes, block, s, w[p]);
        }
      }
    }
    NIBBLE_UNROLL for (int p = 0; p < kPanels; ++p) {
      const V16 scale = v_load(reinterpret_cast<const float*>(scales + p * R::kExpandedBytes));
      NIBBLE_UNROLL for (int t = 0; t < kTokens; ++t) {
        sum[t][p] =
            v_fma(v_to_float(dot[t][p]), R::scale(scale, a + t * R::kBytes, block), sum[t][p]);
      }
    }
    weights += 64 * R::kSteps;
    scales += 64;
  }
  NIBBLE_UNROLL for (int t = 0; t < kTokens; ++t) {
    NIBBLE_UNROLL for (int p = 0; p < kPanels; ++p) v_store(c + t * c_row + p * c_panel, sum[t][p]);
  }
}

template <RowFormat kRows, int kPanels>
void block_tokens(const uint8_t* a, int64_t tokens, const uint8_t* b, int blocks, float* c,
                  int64_t c_row, int64_t c_panel, bool accumulate) {
  // Tiles of nearly equal height: 8 tokens are 4 + 4, not 6 + 2.
  int64_t tiles = (tokens + NIBBLE_BLOCK_TOKENS - 1) / NIBBLE_BLOCK_TOKENS;
  while (tokens > 0) {
    const int64_t height = (tokens + tiles - 1) / tiles;
    switch (height) {
      case 1:
        block_tile<kRows, 1, kPanels>(a, b, blocks, c, c_row, c_panel, accumulate);
        break;
      case 2:
        block_tile<kRows, 2, kPanels>(a, b, blocks, c, c_row, c_panel, accumulate);
        break;
#if NIBBLE_BLOCK_TOKENS >= 6
      case 3:
        block_tile<kRows, 3, kPanels>(a, b, blocks, c, c_row, c_panel, accumulate);
        break;
      case 4:
        block_tile<kRows, 4, kPanels>(a, b, blocks, c, c_row, c_panel, accumulate);
        break;
      case 5:
        block_tile<kRows, 5, kPanels>(a, b, blocks, c, c_row, c_panel, accumulate);
        break;
      default:
        block_tile<kRows, 6, kPanels>(a, b, blocks, c, c_row, c_panel, accumulate);
        break;
#else
      default:
        break;  // NIBBLE_BLOCK_TOKENS is 2
#endif
    }
    a += height * Record<kRows>::kBytes;
    c += height * c_row;
    tokens -= height;
    --tiles;
  }
}

template <RowFormat kRows>
void block_multiply(const void* a, int64_t tokens, const void* b, int64_t panels, int blocks,
                    float* c, int64_t c_row, int64_t c_panel, bool accumulate) {
  const auto* const rows = static_cast<const uint8_t*>(a);
  const auto* const expanded = static_cast<const uint8_t*>(b);
  constexpr int kBytes = Record<kRows>::kExpandedBytes;
  int64_t p = 0;
  for (; p + kBlockPanels <= panels; p += kBlockPanels) {
    block_tokens<kRows, kBlockPanels>(rows, tokens, expanded + p * kBytes, blocks, c + p * c_panel,
                                      c_row, c_panel, accumulate);
  }
  for (; p < panels; ++p) {
    block_tokens<kRows, 1>(rows, tokens, expanded + p * kBytes, blocks, c + p * c_panel, c_row,
                           c_panel, accumulate);
  }
}

// One block of a panel against kTokens rows.
template <RowFormat kRows, int kTokens>
inline __attribute__((always_inline)) void block_step(Nvfp4Unit unit, const uint8_t* rows,
                                                      int block, V16* sum) {
  using R = Record<kRows>;
  const Codes codes[2] = {v_load_codes(unit.codes), v_load_codes(unit.codes + 64)};
  Lanes dot[kTokens];
  NIBBLE_UNROLL for (int s = 0; s < R::kSteps; ++s) {
    const Lanes w = R::weights(codes, s);
    NIBBLE_UNROLL for (int t = 0; t < kTokens; ++t) {
      dot[t] = s == 0 ? R::start(rows + t * R::kBytes, block, w)
                      : R::add(dot[t], rows + t * R::kBytes, block, s, w);
    }
  }
  const V16 scale = v_load_scale(unit.scales, R::kScalePower);
  NIBBLE_UNROLL for (int t = 0; t < kTokens; ++t) {
    sum[t] = v_fma(v_to_float(dot[t]), R::scale(scale, rows + t * R::kBytes, block), sum[t]);
  }
}

// kWalked panels side by side, each read from one end to the other.
template <RowFormat kRows, int kTokens, int kWalked>
void block_fused_walk(const PanelMatrix* matrix, const uint8_t* panel, const uint8_t* a, float* c,
                      int64_t c_row, int64_t c_panel) {
  using R = Record<kRows>;
  constexpr int kGroupBytes = kNvfp4GroupBlocks * kNvfp4UnitBytes;
  const int64_t panel_bytes = matrix->panel_bytes;
  V16 sum[kWalked][kTokens];
  NIBBLE_UNROLL for (int p = 0; p < kWalked; ++p) {
    NIBBLE_UNROLL for (int t = 0; t < kTokens; ++t) sum[p][t] = v_zero();
  }
  const uint8_t* group = panel;
  const uint8_t* rows = a;
  int64_t left = matrix->cols;
  for (; left > 0; left -= kSliceCols, rows += kTokens * R::kBytes) {
    NIBBLE_UNROLL for (int p = 0; p < kWalked; ++p) {
      NIBBLE_UNROLL for (int t = 0; t < kTokens; ++t) {
        sum[p][t] = R::first(sum[p][t], rows + t * R::kBytes);
      }
    }
    if (left < kSliceCols) break;
    for (int half = 0; half < 2; ++half, group += kGroupBytes) {
      // Past its end a panel's next is the one that is walked in its place.
      const uint8_t* const ahead =
          group + kBlockPrefetchBytes +
          (group - panel + kBlockPrefetchBytes >= panel_bytes ? (kWalked - 1) * panel_bytes : 0);
      NIBBLE_UNROLL for (int p = 0; p < kWalked; ++p) {
        const uint8_t* const codes = group + p * panel_bytes;
        NIBBLE_UNROLL for (int i = 0; i < kGroupBytes; i += 64) {
          __builtin_prefetch(ahead + p * panel_bytes + i);
        }
        NIBBLE_UNROLL for (int i = 0; i < kNvfp4GroupBlocks; ++i) {
          block_step<kRows, kTokens>({codes + 128 * i, codes + 128 * kNvfp4GroupBlocks + 16 * i},
                                     rows, kNvfp4GroupBlocks * half + i, sum[p]);
        }
      }
    }
  }
  const int64_t blocks = matrix->cols / 16;
  NIBBLE_UNROLL for (int p = 0; p < kWalked; ++p) {
    for (int64_t b = blocks / 8 * 8; b < blocks; ++b) {
      block_step<kRows, kTokens>(nvfp4_unit(panel + p * panel_bytes, blocks, b), rows,
                                 static_cast<int>(b % 8), sum[p]);
    }
    NIBBLE_UNROLL for (int t = 0; t < kTokens; ++t) {
      v_store(c + t * c_row + p * c_panel, sum[p][t]);
    }
  }
}

template <RowFormat kRows, int kTokens>
void block_fused_panels(const PanelMatrix* matrix, int64_t first_panel, int64_t panels,
                        const uint8_t* a, float* c, int64_t c_row, int64_t c_panel) {
  // Few tokens are bound by memory, more by products, which gain nothing from more panels.
  constexpr int kMostWalked = NIBBLE_BLOCK_WALKED;
  constexpr int kWalked = kTokens <= 2 ? kMostWalked : 1;
  const uint8_t* const first = matrix->data + first_panel * matrix->panel_bytes;
  int64_t p = 0;
  for (; p + kWalked <= panels; p += kWalked) {
    block_fused_walk<kRows, kTokens, kWalked>(matrix, first + p * matrix->panel_bytes, a,
                                              c + p * c_panel, c_row, c_panel);
  }
  for (; p < panels; ++p) {
    block_fused_walk<kRows, kTokens, 1>(matrix, first + p * matrix->panel_bytes, a, c + p * c_panel,
                                        c_row, c_panel);
  }
}

template <RowFormat kRows>
void block_fused(const PanelMatrix* matrix, int64_t first_panel, int64_t panels, const void* a,
                 int64_t tokens, float* c, int64_t c_row, int64_t c_panel) {
  const auto* const rows = static_cast<const uint8_t*>(a);
  switch (tokens) {
    case 1:
      return block_fused_panels<kRows, 1>(matrix, first_panel, panels, rows, c, c_row, c_panel);
    case 2:
      return block_fused_panels<kRows, 2>(matrix, first_panel, panels, rows, c, c_row, c_panel);
#if NIBBLE_BLOCK_FUSED_TOKENS >= 8
    case 3:
      return block_fused_panels<kRows, 3>(matrix, first_panel, panels, rows, c, c_row, c_panel);
    case 4:
      return block_fused_panels<kRows, 4>(matrix, first_panel, panels, rows, c, c_row, c_panel);
    case 5:
      return block_fused_panels<kRows, 5>(matrix, first_panel, panels, rows, c, c_row, c_panel);
    case 6:
      return block_fused_panels<kRows, 6>(matrix, first_panel, panels, rows, c, c_row, c_panel);
    case 7:
      return block_fused_panels<kRows, 7>(matrix, first_panel, panels, rows, c, c_row, c_panel);
    case 8:
      return block_fused_panels<kRows, 8>(matrix, first_panel, panels, rows, c, c_row, c_panel);
#endif
    default:
      __builtin_trap();  // the caller asks for 1 .. fused_tokens
  }
}

inline uint32_t float_bits(float x) {
  uint32_t bits = 0;
  __builtin_memcpy(&bits, &x, sizeof(bits));
  return bits;
}
inline float bits_float(uint32_t bits) {
  float x = 0;
  __builtin_memcpy(&x, &bits, sizeof(x));
  return x;
}

#ifndef NIBBLE_BLOCK_OWN_ROUNDING
// The bits of the largest magnitude of 16 activations: those of an infinity or NaN are the largest.
inline uint32_t block_amax(const float* x) {
  uint32_t amax = 0;
  for (int i = 0; i < 16; ++i) {
    const uint32_t magnitude = float_bits(x[i]) & 0x7fffffffu;
    amax = magnitude > amax ? magnitude : amax;
  }
  return amax;
}

// round(x * inverse), at most 32767, in a record's order.
inline void round_int16(const float* x, float inverse, int16_t* out) {
  int32_t rounded[16];
  for (int i = 0; i < 16; ++i) {
    float v = x[i] * inverse;
    v = v < 32767.0f ? v : 32767.0f;  // 32767.5 and above, and NaN
    // Adding 1.5 * 2^23 rounds to the nearest integer and leaves it in the low bits.
    rounded[i] = static_cast<int32_t>(float_bits(v + 12582912.0f));
  }
  for (int i = 0; i < 4; ++i) {
    out[2 * i] = static_cast<int16_t>(rounded[i]);
    out[2 * i + 1] = static_cast<int16_t>(rounded[i + 4]);
    out[2 * i + 8] = static_cast<int16_t>(rounded[i + 8]);
    out[2 * i + 9] = static_cast<int16_t>(rounded[i + 12]);
  }
}

// round(x * inverse) in a record's order; returns the sum. |x * inverse| is at most 128.
inline int32_t round_int8(const float* x, float inverse, int8_t* out) {
  int32_t rounded[16];
  int32_t sum = 0;
  for (int i = 0; i < 16; ++i) {
    rounded[i] = static_cast<int32_t>(float_bits(x[i] * inverse + 12582912.0f)) - 0x4b400000;
    sum += rounded[i];
  }
  for (int i = 0; i < 4; ++i) {
    out[i] = static_cast<int8_t>(rounded[2 * i]);
    out[i + 4] = static_cast<int8_t>(rounded[2 * i + 1]);
    out[i + 8] = static_cast<int8_t>(rounded[2 * i + 8]);
    out[i + 12] = static_cast<int8_t>(rounded[2 * i + 9]);
  }
  return sum;
}

// Twice the nearest E2M1 of x / divisor, divisor > 0, in a record's order; returns the sum. Steps
// of a half up to 2, of one up to 4, then 6; ties to the even code.
inline int32_t round_doubled_e2m1(const float* x, float divisor, int8_t* out) {
  int32_t rounded[16];
  int32_t sum = 0;
  for (int i = 0; i < 16; ++i) {
    const float v = x[i] / divisor;
    const float a = v < 0 ? -v : v;
    const int step = (a > 0.25f) + (a >= 0.75f) + (a > 1.25f) + (a >= 1.75f) +
                     2 * ((a > 2.5f) + (a >= 3.5f)) + 4 * (a > 5.0f);
    rounded[i] = v < 0 ? -step : step;
    sum += rounded[i];
  }
  for (int i = 0; i < 4; ++i) {
    out[i] = static_cast<int8_t>(rounded[2 * i]);
    out[i + 4] = static_cast<int8_t>(rounded[2 * i + 1]);
    out[i + 8] = static_cast<int8_t>(rounded[2 * i + 8]);
    out[i + 12] = static_cast<int8_t>(rounded[2 * i + 9]);
  }
  return sum;
}
#endif

void quantize_int16(const float* x, int64_t count, void* record) {
  auto* const values = static_cast<int16_t*>(record);
  auto* const steps = reinterpret_cast<int32_t*>(static_cast<uint8_t*>(record) + kInt16StepOffset);
  uint32_t largest = 0;
  for (int64_t block = 0; block < count / 16; ++block) {
    const uint32_t amax = block_amax(x + 16 * block);
    largest = amax > largest ? amax : largest;
    // Exponents below 40 would leave binary32 when they meet the smallest block scale: what is
    // smaller than 2^-87 is as good as 0. 255 is poison anyway.
    uint32_t exponent = amax >> 23;
    exponent = exponent < 40 ? 40 : exponent > 254 ? 254 : exponent;
    // amax / 2^e lies in 2^14 .. 2^15 for e = exponent - 127 - 14.
    steps[block] = static_cast<int32_t>((exponent - 141) << 23);
    round_int16(x + 16 * block, bits_float((268 - exponent) << 23), values + 16 * block);
  }
  const float poison = largest >= 0x7f800000u ? __builtin_nanf("") : 0.0f;
  __builtin_memcpy(static_cast<uint8_t*>(record) + kInt16PoisonOffset, &poison, sizeof(poison));
}

void quantize_int8(const float* x, int64_t count, void* record) {
  auto* const values = static_cast<int8_t*>(record);
  auto* const bias = reinterpret_cast<int32_t*>(values + kInt8BiasOffset);
  auto* const scale = reinterpret_cast<float*>(values + kInt8ScaleOffset);
  for (int64_t block = 0; block < count / 16; ++block) {
    const uint32_t amax_bits = block_amax(x + 16 * block);
    if (amax_bits >= 0x7f800000u) {  // an infinity or a NaN
      __builtin_memset(values + 16 * block, 0, 16);
      bias[block] = 0;
      scale[block] = __builtin_nanf("");
      continue;
    }
    const float amax = bits_float(amax_bits);
    const float inverse = amax < 0x1p-100f ? 0.0f : 127.0f / amax;
    bias[block] = -12 * round_int8(x + 16 * block, inverse, values + 16 * block);
    scale[block] = inverse == 0 ? 0.0f : amax / 127.0f;
  }
}

void block_amaxes(const float* x, int64_t count, float* amax) {
  for (int64_t block = 0; block < count / 16; ++block) {
    amax[block] = bits_float(block_amax(x + 16 * block));
  }
}

void round_e2m1(const float* x, int64_t count, const float* divisors, void* record) {
  auto* const values = static_cast<int8_t*>(record);
  auto* const bias = reinterpret_cast<int32_t*>(values + kInt8BiasOffset);
  for (int64_t block = 0; block < count / 16; ++block) {
    if (divisors[block] == 0) {
      __builtin_memset(values + 16 * block, 0, 16);
      bias[block] = 0;
      continue;
    }
    bias[block] = -12 * round_doubled_e2m1(x + 16 * block, divisors[block], values + 16 * block);
  }
}

}  // namespace
}  // namespace nibble

#define NIBBLE_BLOCK_PRODUCTS(rows)                                                      \
  {                                                                                      \
    NIBBLE_BLOCK_FUSED_TOKENS, nibble::block_expand<rows>, nibble::block_multiply<rows>, \
        nibble::block_fused<rows>                                                        \
  }
#define NIBBLE_BLOCK_ISA_TABLE                                                   \
  {                                                                              \
    NIBBLE_BLOCK_PRODUCTS(nibble::RowFormat::kInt16),                            \
        NIBBLE_BLOCK_PRODUCTS(nibble::RowFormat::kInt8), nibble::quantize_int16, \
        nibble::quantize_int8, nibble::block_amaxes, nibble::round_e2m1          \
  }
