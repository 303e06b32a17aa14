#include "nibble/kernels/cpu/activations.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "nibble/kernels/cpu/block_isa.h"
#include "nibble/kernels/cpu/panel_layout.h"
#include "nibble/kernels/cpu/tile_isa.h"
#include "nibble/numeric/fp4.h"
#include "nibble/numeric/fp8.h"
#include "nibble/numeric/nvfp4.h"

namespace nibble {

void copy_floats_to_slices(const float* x, int64_t cols, int64_t row, int64_t rows, float* slices) {
  for (int64_t c = 0; c < cols; c += kSliceCols) {
    std::memcpy(slices + c * rows + row * kSliceCols, x + c,
                static_cast<size_t>(std::min<int64_t>(kSliceCols, cols - c)) * sizeof(float));
  }
}

void quantize_nvfp4_row(const BlockIsa& isa, const float* x, int64_t count, float input_scale,
                        void* record) {
  auto* const block_scale =
      reinterpret_cast<float*>(static_cast<uint8_t*>(record) + kInt8ScaleOffset);
  float amax[kSliceCols / kNvfp4BlockSize];
  float divisor[kSliceCols / kNvfp4BlockSize];
  isa.block_amaxes(x, count, amax);
  for (int64_t b = 0; b < count / kNvfp4BlockSize; ++b) {
    const bool finite = std::isfinite(amax[b]);
    const float ratio = finite ? amax[b] / (kE2m1Max * input_scale) : 0;
    const float scale = kE4m3Values[float_to_e4m3(std::min(ratio, kE4m3Max))];
    divisor[b] = scale * input_scale;
    block_scale[b] = finite ? 0.5f * scale : std::numeric_limits<float>::quiet_NaN();
  }
  isa.round_e2m1(x, count, divisor, record);
}

bool same_activation(const LinearWeight& a, const LinearWeight& b) {
  // A format's rows may have a form of their own.
  if (a.format != b.format) return false;
  if (a.activation != b.activation) return false;
  return a.activation == ActivationFormat::kUnquantized || a.input_scale == b.input_scale;
}

float output_scale(const LinearWeight& weight, RowFormat rows) {
  const bool tiles = rows == RowFormat::kBf16 || rows == RowFormat::kBf16Split;
  if (weight.format == LinearFormat::kFp8Block) return tiles ? kTileCodeFactor : 1;
  if (weight.format != LinearFormat::kNvfp4) return tiles ? kTileBf16Factor : 1;
  if (weight.activation == ActivationFormat::kNvfp4) {
    return weight.input_scale * weight.global_scale;
  }
  return tiles ? kTileCodeFactor * weight.global_scale : weight.global_scale;
}

}  // namespace nibble
