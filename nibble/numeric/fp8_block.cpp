#include "nibble/numeric/fp8_block.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>

#include "nibble/base/check.h"
#include "nibble/base/error.h"
#include "nibble/numeric/bf16.h"
#include "nibble/numeric/nvfp4_isa.h"

namespace nibble {
namespace {

constexpr int32_t kInfinityBits = 0x7f800000;

tl::unexpected<Error> not_finite_weight(const Fp8BlockMatrix& matrix, int64_t row, int64_t col) {
  const float scale =
      matrix.scales_inv[row / kFp8BlockSize * num_fp8_blocks(matrix.cols) + col / kFp8BlockSize];
  return corrupt(fmt::format("weight [{}, {}] is not finite: code 0x{:02x}, weight_scale_inv {}",
                             row, col, matrix.codes[row * matrix.cols + col], scale));
}

// Calls store(column, value) for one row; false if a value was not finite. Rounding to BF16 may
// still overflow: the caller's `store` says so by returning the magnitude bits it kept.
template <typename Store>
bool dequantize_row(const Fp8BlockMatrix& matrix, int64_t row, const Store& store) {
  const uint8_t* const codes = matrix.codes + row * matrix.cols;
  const float* const scales = matrix.scales_inv + row / kFp8BlockSize * num_fp8_blocks(matrix.cols);
  int32_t largest = 0;
  for (int64_t begin = 0; begin < matrix.cols; begin += kFp8BlockSize) {
    const int64_t end = std::min(begin + kFp8BlockSize, matrix.cols);
    const float scale = scales[begin / kFp8BlockSize];
    for (int64_t c = begin; c < end; ++c) {
      largest = std::max(largest, store(c, kE4m3Values[codes[c]] * scale));
    }
  }
  return largest < kInfinityBits;
}

template <typename Out, typename Convert>
Status dequantize_rows(const Fp8BlockMatrix& matrix, int64_t row_begin, int64_t row_end, Out* out,
                       const Convert& convert) {
  NIBBLE_CHECK(0 <= row_begin && row_begin <= row_end && row_end <= matrix.rows);
  for (int64_t row = row_begin; row < row_end; ++row, out += matrix.cols) {
    const bool finite = dequantize_row(
        matrix, row, [&](int64_t c, float value) { return convert(value, out + c); });
    if (finite) continue;
    for (int64_t c = 0; c < matrix.cols; ++c) {
      if (convert(kE4m3Values[matrix.codes[row * matrix.cols + c]] *
                      matrix.scales_inv[row / kFp8BlockSize * num_fp8_blocks(matrix.cols) +
                                        c / kFp8BlockSize],
                  out + c) >= kInfinityBits) {
        return not_finite_weight(matrix, row, c);
      }
    }
  }
  return {};
}

}  // namespace

Status dequantize_fp8_block(const Fp8BlockMatrix& matrix, int64_t row_begin, int64_t row_end,
                            float* out) {
  return dequantize_rows(matrix, row_begin, row_end, out, [](float value, float* place) {
    *place = value;
    return std::bit_cast<int32_t>(value) & 0x7fffffff;
  });
}

Status dequantize_fp8_block_to_bf16(const Fp8BlockMatrix& matrix, int64_t row_begin,
                                    int64_t row_end, uint16_t* out) {
  return dequantize_rows(matrix, row_begin, row_end, out, [](float value, uint16_t* place) {
    *place = float_to_bf16(value);
    return (int32_t{*place} & 0x7fff) << 16;
  });
}

Status dequantize_fp8_block_rounded(const Fp8BlockMatrix& matrix, int64_t row_begin,
                                    int64_t row_end, float* out, [[maybe_unused]] Isa isa) {
  NIBBLE_CHECK(0 <= row_begin && row_begin <= row_end && row_end <= matrix.rows);
  for (int64_t row = row_begin; row < row_end; ++row, out += matrix.cols) {
#if defined(__x86_64__)
    if (isa >= Isa::kAvx512 &&
        dequantize_fp8_row_avx512(
            matrix.codes + row * matrix.cols,
            matrix.scales_inv + row / kFp8BlockSize * num_fp8_blocks(matrix.cols), matrix.cols,
            out)) {
      continue;
    }
#endif
    NIBBLE_TRY(dequantize_rows(matrix, row, row + 1, out, [](float value, float* place) {
      *place = round_to_bf16(value);
      return std::bit_cast<int32_t>(*place) & 0x7fffffff;
    }));
  }
  return {};
}

float fp8_block_rounded_amax(const Fp8BlockMatrix& matrix, int64_t row_begin, int64_t row_end,
                             [[maybe_unused]] Isa isa) {
  float amax = 0;
  for (int64_t row = row_begin; row < row_end; ++row) {
    const uint8_t* const codes = matrix.codes + row * matrix.cols;
    for (int64_t begin = 0; begin < matrix.cols; begin += kFp8BlockSize) {
      const int64_t count = std::min<int64_t>(kFp8BlockSize, matrix.cols - begin);
      uint8_t largest = 0;
#if defined(__x86_64__)
      if (isa >= Isa::kAvx512) {
        largest = largest_magnitude_code_avx512(codes + begin, count);
      } else
#endif
      {
        for (int64_t c = begin; c < begin + count; ++c) {
          largest = std::max(largest, static_cast<uint8_t>(codes[c] & 0x7f));
        }
      }
      const float scale = matrix.scales_inv[row / kFp8BlockSize * num_fp8_blocks(matrix.cols) +
                                            begin / kFp8BlockSize];
      const float value = round_to_bf16(kE4m3Values[largest] * scale);
      if (!std::isfinite(value)) return value;
      amax = std::max(amax, value);
    }
  }
  return amax;
}

Result<Fp8BlockTensor> quantize_fp8_block(std::span<const float> values, int64_t rows,
                                          int64_t cols) {
  NIBBLE_CHECK(static_cast<int64_t>(values.size()) == rows * cols);
  Fp8BlockTensor tensor;
  tensor.rows = rows;
  tensor.cols = cols;
  tensor.codes.resize(values.size());
  const int64_t col_blocks = num_fp8_blocks(cols);
  tensor.scales_inv.assign(static_cast<size_t>(num_fp8_blocks(rows) * col_blocks), 0.0f);
  const auto scale_of = [&](int64_t row, int64_t col) -> float& {
    return tensor
        .scales_inv[static_cast<size_t>(row / kFp8BlockSize * col_blocks + col / kFp8BlockSize)];
  };
  for (int64_t i = 0; i < rows * cols; ++i) {
    const float value = values[static_cast<size_t>(i)];
    if (!std::isfinite(value)) {
      return invalid_argument(
          fmt::format("value [{}, {}] is {}, expected finite numbers", i / cols, i % cols, value));
    }
    float& amax = scale_of(i / cols, i % cols);
    amax = std::max(amax, std::fabs(value));
  }
  for (float& scale : tensor.scales_inv) {
    if (scale == 0) {
      scale = 1;
      continue;
    }
    const float amax = scale;
    scale = amax / kE4m3Max;
    if (scale == 0) {
      return invalid_argument(fmt::format("block amax {} is too small for a binary32 scale", amax));
    }
  }
  for (int64_t i = 0; i < rows * cols; ++i) {
    const auto place = static_cast<size_t>(i);
    tensor.codes[place] = float_to_e4m3(values[place] / scale_of(i / cols, i % cols));
  }
  return tensor;
}

}  // namespace nibble
