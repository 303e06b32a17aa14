// The inner loops of the cpu backend as a table of functions, one table for each level of
// instruction sets. The files that fill the tables are built with that level's flags, so this
// header holds declarations and plain data only: an inline function here could be linked from their
// copy.
//
// Shapes. Work is cut along the inner dimension into slices of 128 columns and along the outputs
// into panels of 16 rows of the weight:
//   activations  [slices, tokens, 128]      token t's columns of slice s at (s * tokens + t) * 128
//   panels       [panels, 128, 16]          one slice of dequantized weight, k by output
//   results      row t, panel p at t * c_row + p * c_panel, 16 floats
//
// Every product sums over k in rising order with one accumulator for each output, whatever the
// number of tokens or panels: an output's bits depend on its own row and column alone.
#pragma once

#include <cstdint>

namespace nibble {

inline constexpr int kPanelRows = 16;   // outputs that share a panel: one AVX-512 register
inline constexpr int kSliceCols = 128;  // columns of a slice: FP8's block, and 8 of NVFP4's
inline constexpr int kGroupPanels = 8;  // panels of a task; 8 * 16 outputs are the next slice
inline constexpr int kNvfp4UnitBytes = 144;
inline constexpr int kNvfp4GroupBlocks = 4;

// How a panel stores its weights, k rising:
enum class PanelFormat : int32_t {
  kF32,    // float [cols, 16]
  kBf16,   // uint16 [cols, 16]
  kFp8,    // finite E4M3 [cols, 16]; scales float [panels, ceil(cols / 128)]
  kNvfp4,  // blocks of 16 columns, 144 bytes each, four by four: first their codes, then their
           // scales, so that every vector of a whole group is aligned. Codes are 128 bytes: bytes
           // 64 h
           // + 4 r .. + 3 are the checkpoint's own four of row r and columns 8 h .. 8 h + 7, the
           // even column in bits 0-3. Scales are 16 bytes, one for each row: E4M3 rewritten as
           // unsigned E5M3, which needs no subnormals (they cost the processor ten cycles each):
           // the byte << 20, plus 112 << 23, is the binary32. A block with scale 0 has codes of 0
           // and scale 1.
};

// How rows of activations enter a product: as floats in slices, as the records of block_isa.h, or
// as those of tile_isa.h in one plane or two.
enum class RowFormat : int32_t { kFloat, kInt16, kInt8, kBf16, kBf16Split };

// A packed matrix. Rows are padded to whole panels with zeros.
struct PanelMatrix {
  const uint8_t* data;
  const float* scales;  // kFp8 only
  int64_t cols;
  int64_t panel_bytes;   // from one panel to the next
  int64_t panel_scales;  // ceil(cols / 128)
  PanelFormat format;
  RowFormat rows;
};

struct PanelIsa {
  // Up to so many tokens multiply_fused is the faster one.
  int fused_tokens;

  // c[t, p] (+)= sum of a[t, k] b[p, k] over k < depth <= 128, for `tokens` rows of a at distance
  // 128 and `panels` panels. Adds to c when `accumulate`, otherwise starts at 0.
  void (*multiply)(const float* a, int64_t tokens, const float* b, int64_t panels, int depth,
                   float* c, int64_t c_row, int64_t c_panel, bool accumulate);

  // One slice of `panels` panels as floats: out [panels, 128, 16]. Columns past the matrix are not
  // written. NVFP4 without its global scale.
  void (*dequantize)(const PanelMatrix* matrix, int64_t first_panel, int64_t panels, int64_t slice,
                     float* out);

  // The whole product for few tokens, dequantizing in registers: a [slices, tokens, 128].
  void (*multiply_fused)(const PanelMatrix* matrix, int64_t first_panel, int64_t panels,
                         const float* a, int64_t tokens, float* c, int64_t c_row, int64_t c_panel);

  // out[i] = silu(gate_scale * gate[i]) * (up_scale * up[i])
  void (*swiglu)(const float* gate, float gate_scale, const float* up, float up_scale,
                 int64_t count, float* out);

  // One block of an online softmax, in place: scores[i] becomes exp(scale * scores[i] - max) for
  // i < visible and 0 for visible <= i < 128. *max and *sum are the running maximum and sum;
  // returns the factor for what was accumulated before, exp(old max - new max).
  float (*softmax_block)(float* scores, int64_t visible, float scale, float* max, float* sum);

  // x[i] *= factor
  void (*scale)(float* x, int64_t count, float factor);

  // Exact conversions: format kF32 (copy), kBf16 or kFp8 (E4M3 with scale 1, NaN codes to NaN).
  void (*to_float)(PanelFormat format, const void* source, int64_t count, float* out);

  // out[d * 16 + r] = source[r * stride + d] for d < count and r < rows <= 16; 0 for rows <= r
  // < 16.
  void (*transpose)(const float* source, int64_t stride, int64_t rows, int64_t count, float* out);

  // Attention of a few query rows on cached entries as they are stored; `dim` is a multiple of 16,
  // the first of an entry's elements, in `format` (kF32, kBf16 or kFp8, whose NaN codes are NaN).
  // scores[r, i] = sum over dim of q[r, d] entry i [d], in 16 partial sums and a fixed tree.
  void (*score_entries)(PanelFormat format, const void* const* entries, int64_t count, int64_t dim,
                        const float* q, int64_t q_row, int64_t rows, float* scores,
                        int64_t scores_row);

  // sums[r, d] (+)= sum over i < count, rising, of weights[r, i] entry i [d]; adds when
  // `accumulate`.
  void (*add_entries)(PanelFormat format, const void* const* entries, int64_t count, int64_t dim,
                      const float* weights, int64_t weights_row, int64_t rows, float* sums,
                      int64_t sums_row, bool accumulate);

  // out[i] = exp(x[i]), within 2 units of binary32; 0 below -104, infinity above 88.73.
  void (*exp)(const float* x, int64_t count, float* out);
};

extern const PanelIsa kPanelIsaPortable;
extern const PanelIsa kPanelIsaAvx2;
extern const PanelIsa kPanelIsaAvx512;

}  // namespace nibble
