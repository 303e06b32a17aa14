#include "nibble/kernels/reference/dequantize.h"

#include "nibble/kernels/reference/reference_kernels.h"
#include "nibble/numeric/bf16.h"
#include "nibble/numeric/fp4.h"
#include "nibble/numeric/fp8.h"
#include "nibble/numeric/nvfp4.h"

namespace nibble {

void dequantize_row(const LinearWeight& weight, int64_t row, float* out) {
  const int64_t cols = weight.cols;
  switch (weight.format) {
    case LinearFormat::kF32: {
      const float* values = static_cast<const float*>(weight.data) + row * cols;
      for (int64_t c = 0; c < cols; ++c) out[c] = values[c];
      return;
    }
    case LinearFormat::kBf16: {
      const uint16_t* values = static_cast<const uint16_t*>(weight.data) + row * cols;
      for (int64_t c = 0; c < cols; ++c) out[c] = bf16_to_float(values[c]);
      return;
    }
    case LinearFormat::kFp8Block: {
      const uint8_t* codes = static_cast<const uint8_t*>(weight.data) + row * cols;
      const int64_t blocks = (cols + kFp8BlockSize - 1) / kFp8BlockSize;
      const float* scales = static_cast<const float*>(weight.scales) + row / kFp8BlockSize * blocks;
      for (int64_t c = 0; c < cols; ++c) out[c] = kE4m3Values[codes[c]] * scales[c / kFp8BlockSize];
      return;
    }
    case LinearFormat::kNvfp4: {
      const uint8_t* packed = static_cast<const uint8_t*>(weight.data) + row * cols / 2;
      const uint8_t* scales =
          static_cast<const uint8_t*>(weight.scales) + row * cols / kNvfp4BlockSize;
      for (int64_t c = 0; c < cols; ++c) {
        const int byte = packed[c / 2];
        const int code = c % 2 == 0 ? byte & 0xf : byte >> 4;
        const float scale = kE4m3Values[scales[c / kNvfp4BlockSize]] * weight.global_scale;
        out[c] = kE2m1Values[code] * scale;
      }
      return;
    }
  }
}

void ReferenceKernels::dequantize(const LinearWeight& weight, float* out) {
  for (int64_t r = 0; r < weight.rows; ++r) dequantize_row(weight, r, out + r * weight.cols);
}

}  // namespace nibble
