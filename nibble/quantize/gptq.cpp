#include "nibble/quantize/gptq.h"

#include <algorithm>
#include <mutex>
#include <vector>

#include "nibble/numeric/fp4.h"
#include "nibble/numeric/fp8.h"

namespace nibble {
namespace {

constexpr int64_t kBlock = kNvfp4BlockSize;
constexpr int64_t kRowsAtOnce = 32;

// Rows [begin, end), at most kRowsAtOnce.
Status quantize_some_rows(const GptqMatrix& m, int64_t begin, int64_t end, float global_scale,
                          Nvfp4Mode mode, uint8_t* packed, uint8_t* scales) {
  const int64_t rows = end - begin;
  std::vector<float> corrections(static_cast<size_t>(rows * m.cols));  // what a column is owed
  std::vector<float> block(static_cast<size_t>(rows * kBlock));
  std::vector<uint8_t> ignored(static_cast<size_t>(rows * kBlock / 2));
  for (int64_t first = 0; first < m.cols; first += kBlock) {
    for (int64_t r = 0; r < rows; ++r) {
      const float* const w = m.values + (begin + r) * m.cols + first;
      const float* const owed = corrections.data() + r * m.cols + first;
      for (int64_t i = 0; i < kBlock; ++i)
        block[static_cast<size_t>(r * kBlock + i)] = w[i] + owed[i];
    }
    uint8_t* const block_scales = scales + begin * (m.cols / kBlock) + first / kBlock;
    const Nvfp4BlockColumn column{block.data(), rows,         kBlock,         ignored.data(),
                                  kBlock / 2,   block_scales, m.cols / kBlock};
    const float* const hessian = m.blocks == nullptr ? nullptr : m.blocks + first * kBlock;
    NIBBLE_TRY(quantize_nvfp4_block_column(column, global_scale, mode, hessian));

    for (int64_t r = 0; r < rows; ++r) {
      const float* const w = m.values + (begin + r) * m.cols + first;
      float* const owed = corrections.data() + r * m.cols + first;
      const float divisor = kE4m3Values[block_scales[r * (m.cols / kBlock)]] * global_scale;
      uint8_t* const out = packed + (begin + r) * (m.cols / 2) + first / 2;
      float errors[kBlock];
      for (int64_t j = 0; j < kBlock; ++j) {
        const uint8_t code = float_to_e2m1((w[j] + owed[j]) / divisor);
        errors[j] = w[j] - kE2m1Values[code] * divisor;
        out[j / 2] = static_cast<uint8_t>(j % 2 == 0 ? code : out[j / 2] | code << 4);
        const float* const factors = m.factors + (first + j) * m.cols + first;
        for (int64_t k = j + 1; k < kBlock; ++k) owed[k] += errors[j] * factors[k];
      }
      const int64_t rest = first + kBlock;
      add_rank16(errors, m.factors + first * m.cols + rest, m.cols, m.cols - rest, owed + kBlock);
    }
  }
  return {};
}

}  // namespace

Status quantize_gptq(const GptqMatrix& matrix, float global_scale, Nvfp4Mode mode, uint8_t* packed,
                     uint8_t* scales, ThreadPool& pool) {
  std::mutex mutex;
  Status first_error;
  pool.parallel_for(matrix.rows, kRowsAtOnce, [&](int64_t begin, int64_t end, int) {
    auto status = quantize_some_rows(matrix, begin, end, global_scale, mode, packed, scales);
    if (status) return;
    const std::lock_guard lock(mutex);
    if (first_error) first_error = std::move(status);
  });
  return first_error;
}

}  // namespace nibble
