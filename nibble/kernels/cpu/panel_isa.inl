// The inner loops, written once over V16 (simd_*.inl) and built once for each instruction set. All
// functions have internal linkage, so that no other file can be linked with these copies.
//
// multiply is bound by FMAs: a tile of NIBBLE_TILE_TOKENS x kTilePanels accumulators stays in
// registers, its slice of weights (32 KB) in L1. multiply_fused is bound by memory for one token:
// a few panels are walked at once, because one chain of FMAs would wait for its own latency; from a
// few tokens on it too is bound by FMAs. docs/performance-cpu.md has what was reached.

namespace nibble {
namespace {

// Tells the compiler to keep loops over registers as straight code.
#define NIBBLE_UNROLL _Pragma("GCC unroll 16")

template <int kTokens, int kPanels>
void multiply_tile(const float* a, const float* b, int depth, float* c, int64_t c_row,
                   int64_t c_panel, bool accumulate) {
  V16 sum[kTokens][kPanels];
  NIBBLE_UNROLL for (int t = 0; t < kTokens; ++t) {
    NIBBLE_UNROLL for (int p = 0; p < kPanels; ++p) {
      sum[t][p] = accumulate ? v_load(c + t * c_row + p * c_panel) : v_zero();
    }
  }
  for (int k = 0; k < depth; ++k) {
    V16 weight[kPanels];
    NIBBLE_UNROLL for (int p = 0; p < kPanels; ++p) {
      weight[p] = v_load(b + (p * kSliceCols + k) * kPanelRows);
    }
    NIBBLE_UNROLL for (int t = 0; t < kTokens; ++t) {
      const V16 x = v_set(a[t * kSliceCols + k]);
      NIBBLE_UNROLL for (int p = 0; p < kPanels; ++p) sum[t][p] = v_fma(x, weight[p], sum[t][p]);
    }
  }
  NIBBLE_UNROLL for (int t = 0; t < kTokens; ++t) {
    NIBBLE_UNROLL for (int p = 0; p < kPanels; ++p) v_store(c + t * c_row + p * c_panel, sum[t][p]);
  }
}

template <int kPanels>
void multiply_tokens(const float* a, int64_t tokens, const float* b, int depth, float* c,
                     int64_t c_row, int64_t c_panel, bool accumulate) {
  // Tiles of nearly equal height: 8 tokens are 4 + 4, not 6 + 2.
  int64_t tiles = (tokens + NIBBLE_TILE_TOKENS - 1) / NIBBLE_TILE_TOKENS;
  while (tokens > 0) {
    const int64_t height = (tokens + tiles - 1) / tiles;
    switch (height) {
      case 1:
        multiply_tile<1, kPanels>(a, b, depth, c, c_row, c_panel, accumulate);
        break;
      case 2:
        multiply_tile<2, kPanels>(a, b, depth, c, c_row, c_panel, accumulate);
        break;
#if NIBBLE_TILE_TOKENS >= 6
      case 3:
        multiply_tile<3, kPanels>(a, b, depth, c, c_row, c_panel, accumulate);
        break;
      case 4:
        multiply_tile<4, kPanels>(a, b, depth, c, c_row, c_panel, accumulate);
        break;
      case 5:
        multiply_tile<5, kPanels>(a, b, depth, c, c_row, c_panel, accumulate);
        break;
      default:
        multiply_tile<6, kPanels>(a, b, depth, c, c_row, c_panel, accumulate);
        break;
#else
      default:
        break;  // NIBBLE_TILE_TOKENS is 2
#endif
    }
    a += height * kSliceCols;
    c += height * c_row;
    tokens -= height;
    --tiles;
  }
}

void multiply(const float* a, int64_t tokens, const float* b, int64_t panels, int depth, float* c,
              int64_t c_row, int64_t c_panel, bool accumulate) {
  int64_t p = 0;
  for (; p + kTilePanels <= panels; p += kTilePanels) {
    multiply_tokens<kTilePanels>(a, tokens, b + p * kSliceCols * kPanelRows, depth, c + p * c_panel,
                                 c_row, c_panel, accumulate);
  }
  for (; p < panels; ++p) {
    multiply_tokens<1>(a, tokens, b + p * kSliceCols * kPanelRows, depth, c + p * c_panel, c_row,
                       c_panel, accumulate);
  }
}

void dequantize(const PanelMatrix* matrix, int64_t first_panel, int64_t panels, int64_t slice,
                float* out) {
  const int64_t first_col = slice * kSliceCols;
  const int64_t left = matrix->cols - first_col;
  const int depth = left < kSliceCols ? static_cast<int>(left) : kSliceCols;
  for (int64_t p = first_panel; p < first_panel + panels; ++p, out += kSliceCols * kPanelRows) {
    const uint8_t* const data = matrix->data + p * matrix->panel_bytes;
    switch (matrix->format) {
      case PanelFormat::kF32: {
        const float* const w = reinterpret_cast<const float*>(data) + first_col * kPanelRows;
        for (int k = 0; k < depth; ++k) v_store(out + k * kPanelRows, v_load(w + k * kPanelRows));
        break;
      }
      case PanelFormat::kBf16: {
        const uint16_t* const w = reinterpret_cast<const uint16_t*>(data) + first_col * kPanelRows;
        for (int k = 0; k < depth; ++k) {
          v_store(out + k * kPanelRows, v_load_bf16(w + k * kPanelRows));
        }
        break;
      }
      case PanelFormat::kFp8: {
        const uint8_t* const w = data + first_col * kPanelRows;
        const V16 scale = v_set(matrix->scales[p * matrix->panel_scales + slice]);
        for (int k = 0; k < depth; ++k) {
          v_store(out + k * kPanelRows, v_mul(v_load_e4m3_finite(w + k * kPanelRows), scale));
        }
        break;
      }
      case PanelFormat::kNvfp4: {
        for (int k = 0; k < depth; k += 16) {
          const Nvfp4Unit unit = nvfp4_unit(data, matrix->cols / 16, (first_col + k) / 16);
          const V16 scale = v_load_scale(unit.scales);
          for (int half = 0; half < 2; ++half) {
            Codes codes = v_load_codes(unit.codes + 64 * half);
            NIBBLE_UNROLL for (int i = 0; i < 8; ++i) {
              v_store(out + (k + 8 * half + i) * kPanelRows, v_next_column(&codes, scale));
            }
          }
        }
        break;
      }
    }
  }
}

// How far ahead of its use a panel's data is asked for.
constexpr int kPrefetchBytes = 4096;

template <int kTokens, int kPanels, PanelFormat kFormat>
void multiply_fused_tile(const PanelMatrix* matrix, int64_t first_panel, const float* a, float* c,
                         int64_t c_row, int64_t c_panel) {
  const uint8_t* const data = matrix->data + first_panel * matrix->panel_bytes;
  const int64_t panel_bytes = matrix->panel_bytes;
  V16 sum[kTokens][kPanels];
  NIBBLE_UNROLL for (int t = 0; t < kTokens; ++t) {
    NIBBLE_UNROLL for (int p = 0; p < kPanels; ++p) sum[t][p] = v_zero();
  }
  int64_t slice = 0;
  for (int64_t left = matrix->cols; left > 0; left -= kSliceCols, ++slice) {
    const float* const x = a + slice * kTokens * kSliceCols;
    const int depth = left < kSliceCols ? static_cast<int>(left) : kSliceCols;
    if constexpr (kFormat == PanelFormat::kNvfp4) {
      for (int k = 0; k < depth; k += 16) {
        const Nvfp4Unit unit =
            nvfp4_unit(data, matrix->cols / 16, slice * (kSliceCols / 16) + k / 16);
        V16 scale[kPanels];
        NIBBLE_UNROLL for (int p = 0; p < kPanels; ++p) {
          __builtin_prefetch(unit.codes + p * panel_bytes + kPrefetchBytes);
          __builtin_prefetch(unit.codes + p * panel_bytes + kPrefetchBytes + 64);
          scale[p] = v_load_scale(unit.scales + p * panel_bytes);
        }
        for (int half = 0; half < 2; ++half) {
          Codes codes[kPanels];
          NIBBLE_UNROLL for (int p = 0; p < kPanels; ++p) {
            codes[p] = v_load_codes(unit.codes + p * panel_bytes + 64 * half);
          }
          NIBBLE_UNROLL for (int i = 0; i < 8; ++i) {
            V16 xk[kTokens];
            NIBBLE_UNROLL for (int t = 0; t < kTokens; ++t) {
              xk[t] = v_set(x[t * kSliceCols + k + 8 * half + i]);
            }
            NIBBLE_UNROLL for (int p = 0; p < kPanels; ++p) {
              const V16 weight = v_next_column(&codes[p], scale[p]);
              NIBBLE_UNROLL for (int t = 0; t < kTokens; ++t) {
                sum[t][p] = v_fma(xk[t], weight, sum[t][p]);
              }
            }
          }
        }
      }
    } else {
      constexpr int64_t kBytes = kFormat == PanelFormat::kF32    ? 4
                                 : kFormat == PanelFormat::kBf16 ? 2
                                                                 : 1;
      const uint8_t* w = data + slice * kSliceCols * kPanelRows * kBytes;
      V16 scale[kPanels];
      if constexpr (kFormat == PanelFormat::kFp8) {
        NIBBLE_UNROLL for (int p = 0; p < kPanels; ++p) {
          scale[p] = v_set(matrix->scales[(first_panel + p) * matrix->panel_scales + slice]);
        }
      }
      for (int k = 0; k < depth; ++k, w += kPanelRows * kBytes) {
        NIBBLE_UNROLL for (int p = 0; p < kPanels; ++p) {
          const uint8_t* const wp = w + p * panel_bytes;
          V16 weight;
          if constexpr (kFormat == PanelFormat::kF32) {
            __builtin_prefetch(wp + kPrefetchBytes);
            weight = v_load(reinterpret_cast<const float*>(wp));
          } else if constexpr (kFormat == PanelFormat::kBf16) {
            if (k % 2 == 0) __builtin_prefetch(wp + kPrefetchBytes);
            weight = v_load_bf16(reinterpret_cast<const uint16_t*>(wp));
          } else {
            if (k % 4 == 0) __builtin_prefetch(wp + kPrefetchBytes);
            weight = v_mul(v_load_e4m3_finite(wp), scale[p]);
          }
          NIBBLE_UNROLL for (int t = 0; t < kTokens; ++t) {
            sum[t][p] = v_fma(v_set(x[t * kSliceCols + k]), weight, sum[t][p]);
          }
        }
      }
    }
  }
  NIBBLE_UNROLL for (int t = 0; t < kTokens; ++t) {
    NIBBLE_UNROLL for (int p = 0; p < kPanels; ++p) v_store(c + t * c_row + p * c_panel, sum[t][p]);
  }
}

template <int kTokens, PanelFormat kFormat>
void multiply_fused_panels(const PanelMatrix* matrix, int64_t first_panel, int64_t panels,
                           const float* a, float* c, int64_t c_row, int64_t c_panel) {
  constexpr int kWide = fused_panels(kTokens, kFormat);
  int64_t p = 0;
  for (; p + kWide <= panels; p += kWide) {
    multiply_fused_tile<kTokens, kWide, kFormat>(matrix, first_panel + p, a, c + p * c_panel, c_row,
                                                 c_panel);
  }
  for (; p < panels; ++p) {
    multiply_fused_tile<kTokens, 1, kFormat>(matrix, first_panel + p, a, c + p * c_panel, c_row,
                                             c_panel);
  }
}

template <int kTokens>
void multiply_fused_tokens(const PanelMatrix* matrix, int64_t first_panel, int64_t panels,
                           const float* a, float* c, int64_t c_row, int64_t c_panel) {
  switch (matrix->format) {
    case PanelFormat::kF32:
      return multiply_fused_panels<kTokens, PanelFormat::kF32>(matrix, first_panel, panels, a, c,
                                                               c_row, c_panel);
    case PanelFormat::kBf16:
      return multiply_fused_panels<kTokens, PanelFormat::kBf16>(matrix, first_panel, panels, a, c,
                                                                c_row, c_panel);
    case PanelFormat::kFp8:
      return multiply_fused_panels<kTokens, PanelFormat::kFp8>(matrix, first_panel, panels, a, c,
                                                               c_row, c_panel);
    case PanelFormat::kNvfp4:
      return multiply_fused_panels<kTokens, PanelFormat::kNvfp4>(matrix, first_panel, panels, a, c,
                                                                 c_row, c_panel);
  }
}

void multiply_fused(const PanelMatrix* matrix, int64_t first_panel, int64_t panels, const float* a,
                    int64_t tokens, float* c, int64_t c_row, int64_t c_panel) {
  switch (tokens) {
    case 1:
      return multiply_fused_tokens<1>(matrix, first_panel, panels, a, c, c_row, c_panel);
    case 2:
      return multiply_fused_tokens<2>(matrix, first_panel, panels, a, c, c_row, c_panel);
#if NIBBLE_FUSED_TOKENS >= 4
    case 3:
      return multiply_fused_tokens<3>(matrix, first_panel, panels, a, c, c_row, c_panel);
    case 4:
      return multiply_fused_tokens<4>(matrix, first_panel, panels, a, c, c_row, c_panel);
#endif
#if NIBBLE_FUSED_TOKENS >= 8
    case 5:
      return multiply_fused_tokens<5>(matrix, first_panel, panels, a, c, c_row, c_panel);
    case 6:
      return multiply_fused_tokens<6>(matrix, first_panel, panels, a, c, c_row, c_panel);
    case 7:
      return multiply_fused_tokens<7>(matrix, first_panel, panels, a, c, c_row, c_panel);
    case 8:
      return multiply_fused_tokens<8>(matrix, first_panel, panels, a, c, c_row, c_panel);
#endif
    default:
      __builtin_trap();  // the caller asks for 1 .. fused_tokens
  }
}

// exp(x) = 2^n e^r with n = round(x / ln 2), |r| <= ln 2 / 2. ln 2 is split in two so that n * the
// first part is exact; e^r by its Taylor series to r^7 / 5040, whose remainder there is below
// 6e-9. 2^n is applied in two halves, so that results fade through the subnormals to 0.
inline V16 v_exp(V16 x) {
  // v_min and v_max return their second operand for NaN, so NaN comes through.
  const V16 clamped = v_max(v_set(-110.0f), v_min(v_set(90.0f), x));
  const V16 n = v_round(v_mul(clamped, v_set(0x1.715476p+0f)));
  V16 r = v_fma(n, v_set(-0x1.62e4p-1f), clamped);
  r = v_fma(n, v_set(-0x1.7f7d1cp-20f), r);
  V16 series = v_fma(r, v_set(1.0f / 5040.0f), v_set(1.0f / 720.0f));
  series = v_fma(series, r, v_set(1.0f / 120.0f));
  series = v_fma(series, r, v_set(1.0f / 24.0f));
  series = v_fma(series, r, v_set(1.0f / 6.0f));
  series = v_fma(series, r, v_set(0.5f));
  // 1 + r + r^2 * series, the small terms first.
  const V16 value = v_add(v_set(1.0f), v_fma(v_mul(r, r), series, r));
  return v_times_exp2(value, n);
}

// The last, partial vector of a row goes through a buffer.
inline V16 v_load_part(const float* p, int64_t count, float fill) {
  float buffer[16];
  for (int i = 0; i < 16; ++i) buffer[i] = i < count ? p[i] : fill;
  return v_load(buffer);
}
inline void v_store_part(float* p, int64_t count, V16 v) {
  float buffer[16];
  v_store(buffer, v);
  for (int i = 0; i < 16 && i < count; ++i) p[i] = buffer[i];
}

void exp_all(const float* x, int64_t count, float* out) {
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) v_store(out + i, v_exp(v_load(x + i)));
  if (i < count) v_store_part(out + i, count - i, v_exp(v_load_part(x + i, count - i, 0)));
}

inline V16 v_swiglu(V16 gate, V16 up) {
  const V16 one = v_set(1.0f);
  const V16 denominator = v_add(one, v_exp(v_sub(v_zero(), gate)));
  return v_mul(v_div(gate, denominator), up);
}

void swiglu(const float* gate, float gate_scale, const float* up, float up_scale, int64_t count,
            float* out) {
  const V16 gs = v_set(gate_scale);
  const V16 us = v_set(up_scale);
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) {
    v_store(out + i, v_swiglu(v_mul(gs, v_load(gate + i)), v_mul(us, v_load(up + i))));
  }
  if (i < count) {
    const V16 g = v_load_part(gate + i, count - i, 0);
    const V16 u = v_load_part(up + i, count - i, 0);
    v_store_part(out + i, count - i, v_swiglu(v_mul(gs, g), v_mul(us, u)));
  }
}

float softmax_block(float* scores, int64_t visible, float scale, float* max, float* sum) {
  constexpr float kLowest = -__builtin_inff();
  const V16 factor = v_set(scale);
  V16 largest = v_set(kLowest);
  for (int64_t i = 0; i < visible; i += 16) {
    const V16 s =
        visible - i >= 16 ? v_load(scores + i) : v_load_part(scores + i, visible - i, kLowest);
    // Lanes past the end hold -infinity, which a positive scale keeps.
    const V16 scaled = v_mul(s, factor);
    v_store(scores + i, scaled);
    largest = v_max(largest, scaled);
  }
  // A NaN may get lost here; its own weight is NaN and the sum with it.
  const float old_max = *max;
  const float block_max = v_largest(largest);
  const float new_max = block_max > old_max ? block_max : old_max;
  V16 total = v_zero();
  for (int64_t i = 0; i < kSliceCols; i += 16) {
    V16 p = v_zero();
    if (i < visible) {
      p = v_exp(v_sub(v_load(scores + i), v_set(new_max)));
      // exp never sees a lane past the end as anything but -infinity: 0.
    }
    v_store(scores + i, p);
    total = v_add(total, p);
  }
  const float block_sum = v_sum(total);
  float correction[16];
  v_store(correction, v_exp(v_set(old_max - new_max)));
  *max = new_max;
  *sum = *sum * correction[0] + block_sum;
  return correction[0];
}

void scale_all(float* x, int64_t count, float factor) {
  const V16 f = v_set(factor);
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) v_store(x + i, v_mul(v_load(x + i), f));
  for (; i < count; ++i) x[i] *= factor;
}

void to_float(PanelFormat format, const void* source, int64_t count, float* out) {
  int64_t i = 0;
  switch (format) {
    case PanelFormat::kF32: {
      const float* const s = static_cast<const float*>(source);
      for (; i < count; ++i) out[i] = s[i];
      return;
    }
    case PanelFormat::kBf16: {
      const uint16_t* const s = static_cast<const uint16_t*>(source);
      for (; i + 16 <= count; i += 16) v_store(out + i, v_load_bf16(s + i));
      if (i < count) {
        uint16_t buffer[16];
        for (int j = 0; j < 16; ++j) buffer[j] = i + j < count ? s[i + j] : uint16_t{0};
        v_store_part(out + i, count - i, v_load_bf16(buffer));
      }
      return;
    }
    case PanelFormat::kFp8:
    case PanelFormat::kNvfp4: {
      const uint8_t* const s = static_cast<const uint8_t*>(source);
      for (; i + 16 <= count; i += 16) v_store(out + i, v_load_e4m3(s + i));
      if (i < count) {
        uint8_t buffer[16];
        for (int j = 0; j < 16; ++j) buffer[j] = i + j < count ? s[i + j] : uint8_t{0};
        v_store_part(out + i, count - i, v_load_e4m3(buffer));
      }
      return;
    }
  }
}

void transpose(const float* source, int64_t stride, int64_t rows, int64_t count, float* out) {
  int64_t d = 0;
  if (rows == 16) {
    for (; d + 16 <= count; d += 16) {
      V16 block[16];
      for (int r = 0; r < 16; ++r) block[r] = v_load(source + r * stride + d);
      v_transpose(block);
      for (int r = 0; r < 16; ++r) v_store(out + (d + r) * 16, block[r]);
    }
  }
  for (; d < count; ++d) {
    for (int64_t r = 0; r < 16; ++r) out[d * 16 + r] = r < rows ? source[r * stride + d] : 0.0f;
  }
}

// Sixteen elements from `d` of a cached entry.
template <PanelFormat kFormat>
V16 v_load_entry(const void* entry, int64_t d) {
  if constexpr (kFormat == PanelFormat::kF32) return v_load(static_cast<const float*>(entry) + d);
  if constexpr (kFormat == PanelFormat::kBf16) {
    return v_load_bf16(static_cast<const uint16_t*>(entry) + d);
  }
  if constexpr (kFormat == PanelFormat::kFp8) {
    return v_load_e4m3(static_cast<const uint8_t*>(entry) + d);
  }
}

// A tile of query rows and entries: kRows * kEntries accumulators, so that every loaded value is
// used more than once.
template <PanelFormat kFormat, int kRows, int kEntries>
void score_tile(const void* const* entries, int64_t dim, const float* q, int64_t q_row,
                float* scores, int64_t scores_row) {
  V16 sum[kRows][kEntries];
  NIBBLE_UNROLL for (int r = 0; r < kRows; ++r) {
    NIBBLE_UNROLL for (int i = 0; i < kEntries; ++i) sum[r][i] = v_zero();
  }
  for (int64_t d = 0; d < dim; d += 16) {
    V16 x[kEntries];
    NIBBLE_UNROLL for (int i = 0; i < kEntries; ++i) x[i] = v_load_entry<kFormat>(entries[i], d);
    NIBBLE_UNROLL for (int r = 0; r < kRows; ++r) {
      const V16 query = v_load(q + r * q_row + d);
      NIBBLE_UNROLL for (int i = 0; i < kEntries; ++i) sum[r][i] = v_fma(query, x[i], sum[r][i]);
    }
  }
  NIBBLE_UNROLL for (int r = 0; r < kRows; ++r) {
    NIBBLE_UNROLL for (int i = 0; i < kEntries; ++i) {
      scores[r * scores_row + i] = v_sum(sum[r][i]);
    }
  }
}

template <PanelFormat kFormat, int kRows>
void score_rows(const void* const* entries, int64_t count, int64_t dim, const float* q,
                int64_t q_row, float* scores, int64_t scores_row) {
  int64_t i = 0;
  for (; i + kEntryTile <= count; i += kEntryTile) {
    score_tile<kFormat, kRows, kEntryTile>(entries + i, dim, q, q_row, scores + i, scores_row);
  }
  for (; i < count; ++i) {
    score_tile<kFormat, kRows, 1>(entries + i, dim, q, q_row, scores + i, scores_row);
  }
}

template <PanelFormat kFormat>
void score_entries_of(const void* const* entries, int64_t count, int64_t dim, const float* q,
                      int64_t q_row, int64_t rows, float* scores, int64_t scores_row) {
  int64_t r = 0;
  for (; r + kRowTile <= rows; r += kRowTile) {
    score_rows<kFormat, kRowTile>(entries, count, dim, q + r * q_row, q_row,
                                  scores + r * scores_row, scores_row);
  }
  for (; r < rows; ++r) {
    score_rows<kFormat, 1>(entries, count, dim, q + r * q_row, q_row, scores + r * scores_row,
                           scores_row);
  }
}

void score_entries(PanelFormat format, const void* const* entries, int64_t count, int64_t dim,
                   const float* q, int64_t q_row, int64_t rows, float* scores, int64_t scores_row) {
  switch (format) {
    case PanelFormat::kF32:
      return score_entries_of<PanelFormat::kF32>(entries, count, dim, q, q_row, rows, scores,
                                                 scores_row);
    case PanelFormat::kBf16:
      return score_entries_of<PanelFormat::kBf16>(entries, count, dim, q, q_row, rows, scores,
                                                  scores_row);
    case PanelFormat::kFp8:
    case PanelFormat::kNvfp4:
      return score_entries_of<PanelFormat::kFp8>(entries, count, dim, q, q_row, rows, scores,
                                                 scores_row);
  }
}

template <PanelFormat kFormat, int kRows, int kColumns>
void add_tile(const void* const* entries, int64_t count, int64_t first, const float* weights,
              int64_t weights_row, float* sums, int64_t sums_row, bool accumulate) {
  V16 sum[kRows][kColumns];
  NIBBLE_UNROLL for (int r = 0; r < kRows; ++r) {
    NIBBLE_UNROLL for (int c = 0; c < kColumns; ++c) {
      sum[r][c] = accumulate ? v_load(sums + r * sums_row + first + 16 * c) : v_zero();
    }
  }
  for (int64_t i = 0; i < count; ++i) {
    V16 x[kColumns];
    NIBBLE_UNROLL for (int c = 0; c < kColumns; ++c) {
      x[c] = v_load_entry<kFormat>(entries[i], first + 16 * c);
    }
    NIBBLE_UNROLL for (int r = 0; r < kRows; ++r) {
      const V16 weight = v_set(weights[r * weights_row + i]);
      NIBBLE_UNROLL for (int c = 0; c < kColumns; ++c) sum[r][c] = v_fma(weight, x[c], sum[r][c]);
    }
  }
  NIBBLE_UNROLL for (int r = 0; r < kRows; ++r) {
    NIBBLE_UNROLL for (int c = 0; c < kColumns; ++c) {
      v_store(sums + r * sums_row + first + 16 * c, sum[r][c]);
    }
  }
}

template <PanelFormat kFormat, int kRows>
void add_rows(const void* const* entries, int64_t count, int64_t dim, const float* weights,
              int64_t weights_row, float* sums, int64_t sums_row, bool accumulate) {
  int64_t d = 0;
  for (; d + 16 * kEntryTile <= dim; d += 16 * kEntryTile) {
    add_tile<kFormat, kRows, kEntryTile>(entries, count, d, weights, weights_row, sums, sums_row,
                                         accumulate);
  }
  for (; d < dim; d += 16) {
    add_tile<kFormat, kRows, 1>(entries, count, d, weights, weights_row, sums, sums_row,
                                accumulate);
  }
}

template <PanelFormat kFormat>
void add_entries_of(const void* const* entries, int64_t count, int64_t dim, const float* weights,
                    int64_t weights_row, int64_t rows, float* sums, int64_t sums_row,
                    bool accumulate) {
  int64_t r = 0;
  for (; r + kRowTile <= rows; r += kRowTile) {
    add_rows<kFormat, kRowTile>(entries, count, dim, weights + r * weights_row, weights_row,
                                sums + r * sums_row, sums_row, accumulate);
  }
  for (; r < rows; ++r) {
    add_rows<kFormat, 1>(entries, count, dim, weights + r * weights_row, weights_row,
                         sums + r * sums_row, sums_row, accumulate);
  }
}

void add_entries(PanelFormat format, const void* const* entries, int64_t count, int64_t dim,
                 const float* weights, int64_t weights_row, int64_t rows, float* sums,
                 int64_t sums_row, bool accumulate) {
  switch (format) {
    case PanelFormat::kF32:
      return add_entries_of<PanelFormat::kF32>(entries, count, dim, weights, weights_row, rows,
                                               sums, sums_row, accumulate);
    case PanelFormat::kBf16:
      return add_entries_of<PanelFormat::kBf16>(entries, count, dim, weights, weights_row, rows,
                                                sums, sums_row, accumulate);
    case PanelFormat::kFp8:
    case PanelFormat::kNvfp4:
      return add_entries_of<PanelFormat::kFp8>(entries, count, dim, weights, weights_row, rows,
                                               sums, sums_row, accumulate);
  }
}

}  // namespace
}  // namespace nibble

#define NIBBLE_PANEL_ISA_TABLE                                                         \
  {                                                                                    \
    NIBBLE_FUSED_TOKENS, nibble::multiply, nibble::dequantize, nibble::multiply_fused, \
        nibble::swiglu, nibble::softmax_block, nibble::scale_all, nibble::to_float,    \
        nibble::transpose, nibble::score_entries, nibble::add_entries, nibble::exp_all \
  }
