// Products of NVFP4 weights with activations that are whole numbers: each block of 16 columns has
// its own step, a block's 16 products add up exactly in 32 bits, and the sum enters the output by
// one FMA with the product of both scales. One table of functions for each level, as in
// panel_isa.h, whose rules for headers and whose slices, panels and units hold here too.
//
// A row of activations is a record for each slice of 128 columns, [slices, tokens] records:
//   int16   values 256 bytes, steps 8 int32, poison float, padding to 320 bytes. A value is
//           round(x / 2^e), e chosen so that the block's largest magnitude fills 15 bits; a step is
//           e << 23, what multiplying a binary32 by 2^e adds to its bits. Every 8 columns lie as
//           0 4 1 5 2 6 3 7: a pair meets the same nibble of a code's two 16-bit words. poison is
//           0, or NaN where x has a NaN or an infinity.
//   int8    values 128 bytes, 8 biases int32, 8 scales float: 192 bytes. Every 8 columns lie as
//           0 2 4 6 1 3 5 7. A bias is -12 times the sum of the block's values, for the weights
//           enter as 12 + twice their code. A scale is NaN where x has a NaN or an infinity. Made
//           of NVFP4 activations (W4A4, exact) or by quantize_int8 (W4A8, an option).
#pragma once

#include <cstdint>

#include "nibble/kernels/cpu/panel_isa.h"

namespace nibble {

inline constexpr int kInt16RecordBytes = 320;
inline constexpr int kInt16StepOffset = 256;
inline constexpr int kInt16PoisonOffset = 288;
inline constexpr int kInt8RecordBytes = 192;
inline constexpr int kInt8BiasOffset = 128;
inline constexpr int kInt8ScaleOffset = 160;

// A slice of a panel, expanded for many tokens: 16-bit pairs (64 bytes for two columns) or bytes
// (64 for four), then 8 vectors of float scales.
inline constexpr int kExpandedScaleBytes = 8 * 64;
inline constexpr int kInt16ExpandedBytes = kSliceCols * kPanelRows * 2 + kExpandedScaleBytes;
inline constexpr int kInt8ExpandedBytes = kSliceCols * kPanelRows + kExpandedScaleBytes;

// The functions of one row format.
struct BlockProducts {
  // Up to so many tokens multiply_fused is the faster one.
  int fused_tokens;

  // One slice of `panels` panels: out [panels] expanded slices. Columns past the matrix are not
  // written.
  void (*expand)(const PanelMatrix* matrix, int64_t first_panel, int64_t panels, int64_t slice,
                 void* out);

  // c[t, p] (+)= the slice's part, for `blocks` <= 8 blocks. Adds to c when `accumulate`.
  void (*multiply)(const void* a, int64_t tokens, const void* b, int64_t panels, int blocks,
                   float* c, int64_t c_row, int64_t c_panel, bool accumulate);

  // The whole product for few tokens, decoding in registers: a [slices, tokens] records.
  void (*multiply_fused)(const PanelMatrix* matrix, int64_t first_panel, int64_t panels,
                         const void* a, int64_t tokens, float* c, int64_t c_row, int64_t c_panel);
};

struct BlockIsa {
  BlockProducts int16;
  BlockProducts int8;

  // x [count], count <= 128 and a multiple of 16, to an int16 record.
  void (*quantize_int16)(const float* x, int64_t count, void* record);

  // The same to an int8 record, each block with the step amax / 127; below 2^-100 it is zeros.
  void (*quantize_int8)(const float* x, int64_t count, void* record);

  // What an int8 record of NVFP4 codes is made with. amax [count / 16]: each block's largest
  // magnitude, an infinity or a NaN if there is one.
  void (*block_amaxes)(const float* x, int64_t count, float* amax);
  // Values, twice the nearest E2M1 of x / divisors [count / 16], ties to the even code, and biases;
  // zeros where the divisor is 0.
  void (*round_e2m1)(const float* x, int64_t count, const float* divisors, void* record);
};

extern const BlockIsa kBlockIsaPortable;
extern const BlockIsa kBlockIsaAvx2;
extern const BlockIsa kBlockIsaAvx512;
extern const BlockIsa kBlockIsaAvx512Vnni;
extern const BlockIsa kBlockIsaAmx;

}  // namespace nibble
