// Products of NVFP4, FP8 and BF16 weights with BF16 activations in matrix tiles (AMX): 16 rows of
// activations by 16 outputs by 32 columns an instruction, sums in binary32. One table of functions
// for AMX, one of plain loops that computes the same bits; panel_isa.h's rules for headers and its
// slices, panels and units hold here too.
//
// An E2M1 code times an E4M3 block scale has at most 6 significant bits, an E4M3 code 4: exact in
// BF16. Both enter times 2^-112, for BF16's exponent then holds binary16's as it is, and
// activations times 2^64, so that a product of ordinary size is an ordinary number: a tile takes
// subnormals as 0. So a magnitude of activations from 2^64 on counts as infinite, and a product
// below 2^-78 as 0.
//
// A row of activations takes 256 bytes in each slice of 128 columns: BF16, every 8 columns as
// 0 4 1 5 2 6 3 7, zeros past the last column. What a tile loads is contiguous: rows lie in groups
// of 16, the last of what is left, and a group has for each of the slice's four steps of 32 columns
// its rows' 64 bytes one after the other. With two planes a token is two rows, its values rounded
// to BF16 and what the rounding left (rounded too): 16 significant bits, for twice the products.
//
// Every output sums up its 32 columns at a time in rising order, whatever the number of rows or
// panels: with equal planes a token has the same bits in any batch. FP8 weights' scales, one for
// 128 columns, multiply the sum of these in binary32, which is added to what came before (an FMA).
#pragma once

#include <cstdint>

#include "nibble/kernels/cpu/panel_isa.h"

namespace nibble {

inline constexpr int kTileRecordBytes = 256;
inline constexpr int kTilePanels = 64;        // at most, of all parts together
inline constexpr int kTileDepthSteps = 16;    // of 32 columns: what stays expanded for many rows
inline constexpr int64_t kTileResults = 512;  // tiles of results of a product that stay in L2

// What a product is to be multiplied with, a power of two.
inline constexpr float kTileCodeFactor = 0x1p48f;  // NVFP4 and FP8
inline constexpr float kTileBf16Factor = 0x1p-64f;
inline constexpr int64_t kTileStepCols = 32;
inline constexpr int64_t kTilePlaneBytes = 1024;  // of a step of a panel of tiles

// Panels of one matrix and where their results go: row t, panel p at c + t * c_row + p * c_panel.
struct PanelPart {
  PanelMatrix matrix;
  int64_t first_panel;
  int64_t panels;
  float* c;
};

struct TileAttention;

struct TileIsa {
  // x [count], count <= 128, to the row or rows of token `token` of `tokens` in one slice.
  void (*quantize)(const float* x, int64_t count, int planes, int64_t token, int64_t tokens,
                   void* slice);

  // The same, but a token is one row, a group's rows of a step come plane by plane, and columns lie
  // in their own order.
  void (*quantize_planes)(const float* x, int64_t count, int planes, int64_t token, int64_t tokens,
                          void* slice);

  // The whole product of `tokens` tokens, for parts of equal cols and format, not kF32, of up to
  // kTilePanels panels together; kFp8 with one plane.
  //   a  [slices, planes * tokens] rows of 256 bytes;  scratch  tile_scratch_floats(tokens,
  //   planes, panels), aligned to 64 bytes
  void (*multiply)(const PanelPart* parts, int64_t num_parts, const void* a, int64_t tokens,
                   int planes, int64_t c_row, int64_t c_panel, float* scratch);

  // Panels of tiles: for each step of 32 columns its planes of 1 kB, zeros past what there is.
  // Of floats [count columns, 16 outputs]:
  void (*expand_floats)(const float* w, int64_t count, int planes, void* out);
  // Of BF16 rows, one plane: up to 16 outputs, each a row of `dim` columns;
  void (*expand_rows)(const uint16_t* const* rows, int64_t count, int64_t dim, void* out);
  // `count` columns, each a row of 16 outputs for each of `panels` panels, b_panel bytes apart.
  void (*expand_columns)(const uint16_t* const* rows, int64_t count, int64_t panels, void* out,
                         int64_t b_panel);

  // c[t, p] (+)= sum over `steps` steps of 32 columns, the smallest products of planes left out:
  // those whose numbers add up to max(planes, b_planes) or more.
  //   a  as quantize_planes makes it, planes <= 2, slices a_slice bytes apart; tokens a multiple of
  //   16
  //      unless these are the last;  b  such panels, b_panel bytes apart
  void (*multiply_expanded)(const void* a, int64_t a_slice, int64_t tokens, int planes,
                            const void* b, int64_t b_panel, int64_t panels, int64_t steps,
                            int b_planes, float* c, int64_t c_row, int64_t c_panel,
                            bool accumulate);

  // Attention with one plane: tile_attention.h.
  void (*round)(const float* x, int64_t count, float factor, uint16_t* out);
  void (*attend)(const TileAttention& attention);
};

// Expanded weights of four panels and four results of a slice of FP8's; results of whole tiles
// between blocks of steps or of two planes.
inline constexpr int64_t kPartialFloats = 4 * 256;
inline constexpr int64_t kExpandedFloats = 4 * (kTileDepthSteps + 1) * 256 + kPartialFloats;
constexpr int64_t tile_scratch_floats(int64_t tokens, int planes, int64_t panels) {
  return kExpandedFloats + (planes * tokens + 15) / 16 * panels * 256;
}

extern const TileIsa kTileIsaPortable;  // the definition: for tests, slow
extern const TileIsa kTileIsaAmx;

}  // namespace nibble
