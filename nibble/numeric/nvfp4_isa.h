// The encoders of whole runs of NVFP4 blocks for newer processors. Plain data in, plain data out,
// so that the files built with their flags need nothing that could be inlined elsewhere. All give
// the bits of the plain code in nvfp4.cpp, nvfp4_hessian.cpp and fp8_block.cpp.
#pragma once

#include <cstdint>

namespace nibble {

// Sixteen blocks that are worked on together, one to a vector lane: block i reads 16 floats at
// values + i * value_stride and writes 8 bytes at packed + i * packed_stride and one scale at
// scales + i * scale_stride. Strides are in elements.
struct Nvfp4Lanes {
  const float* values;
  int64_t value_stride;
  uint8_t* packed;
  int64_t packed_stride;
  uint8_t* scales;
  int64_t scale_stride;
};

// False when a value is not finite or a divisor underflows: the plain code then says where.
bool encode_nvfp4_max_avx512(const Nvfp4Lanes& lanes, float global_scale);
bool encode_nvfp4_four_over_six_avx512(const Nvfp4Lanes& lanes, float global_scale);
bool encode_nvfp4_mse_avx512(const Nvfp4Lanes& lanes, float global_scale);
// hessian: float [16, 16], symmetric; the same for all sixteen blocks.
bool encode_nvfp4_hessian_avx512(const Nvfp4Lanes& lanes, float global_scale, const float* hessian);

// One row of an FP8 matrix, rounded to BF16, as floats: out[c] = bf16(e4m3(codes[c]) * scales[c /
// 128]). False when a value is not finite, or a scale so large that it has to be done plainly.
bool dequantize_fp8_row_avx512(const uint8_t* codes, const float* scales, int64_t cols, float* out);

// The largest code & 0x7f of `count` bytes: of E4M3 codes without sign, the largest magnitude's.
uint8_t largest_magnitude_code_avx512(const uint8_t* codes, int64_t count);

// y[i, k] += sum_t a[t, i] * b[t, k] for i < m and k < n, t rising: a [depth, kProductTileRows], b
// [depth, kProductTileCols], y's rows y_stride apart; 1 <= m <= kProductTileRows, 1 <= n <=
// kProductTileCols.
inline constexpr int64_t kProductTileRows = 8;
inline constexpr int64_t kProductTileCols = 32;
void add_product_tile_avx512(const float* a, const float* b, int64_t depth, int64_t m, int64_t n,
                             float* y, int64_t y_stride);

}  // namespace nibble
