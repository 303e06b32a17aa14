#include "nibble/quantize/gptq.h"

#include <algorithm>
#include <mutex>
#include <vector>

#include "nibble/numeric/add_products.h"
#include "nibble/numeric/fp4.h"
#include "nibble/numeric/fp8.h"

namespace nibble {
namespace {

constexpr int64_t kBlock = kNvfp4BlockSize;
constexpr int64_t kRowsAtOnce = 64;
constexpr int64_t kGroup = 128;  // columns whose errors reach the columns behind them together

// Rows [begin, end), at most kRowsAtOnce.
class RowsQuantizer {
 public:
  RowsQuantizer(const GptqMatrix& matrix, int64_t begin, int64_t end, float global_scale,
                Nvfp4Mode mode, uint8_t* packed, uint8_t* scales)
      : m_(matrix),
        begin_(begin),
        rows_(end - begin),
        global_scale_(global_scale),
        mode_(mode),
        packed_(packed),
        scales_(scales),
        owed_(static_cast<size_t>(rows_ * matrix.cols)),
        errors_(static_cast<size_t>(kGroup * rows_)),
        block_(static_cast<size_t>(rows_ * kBlock)),
        ignored_(static_cast<size_t>(rows_ * kBlock / 2)) {}

  Status run() {
    for (int64_t group = 0; group < m_.cols; group += kGroup) {
      const int64_t end = std::min(group + kGroup, m_.cols);
      for (int64_t first = group; first < end; first += kBlock) {
        NIBBLE_TRY(quantize_block(first, errors_.data() + (first - group) * rows_));
        pass_on(errors_.data() + (first - group) * rows_, first, first + kBlock, end);
      }
      pass_on(errors_.data(), group, end, m_.cols);
    }
    return {};
  }

 private:
  // Columns [first, first + 16): their scales, codes and errors [16, rows].
  Status quantize_block(int64_t first, float* errors) {
    const int64_t blocks = m_.cols / kBlock;
    for (int64_t r = 0; r < rows_; ++r) {
      const float* const w = m_.values + (begin_ + r) * m_.cols + first;
      const float* const owed = owed_.data() + r * m_.cols + first;
      for (int64_t i = 0; i < kBlock; ++i) {
        block_[static_cast<size_t>(r * kBlock + i)] = w[i] + owed[i];
      }
    }
    uint8_t* const block_scales = scales_ + begin_ * blocks + first / kBlock;
    const Nvfp4BlockColumn column{block_.data(), rows_,        kBlock, ignored_.data(),
                                  kBlock / 2,    block_scales, blocks};
    const float* const hessian = m_.blocks == nullptr ? nullptr : m_.blocks + first * kBlock;
    NIBBLE_TRY(quantize_nvfp4_block_column(column, global_scale_, mode_, hessian));

    for (int64_t r = 0; r < rows_; ++r) {
      const float* const w = m_.values + (begin_ + r) * m_.cols + first;
      float* const owed = owed_.data() + r * m_.cols + first;
      const float divisor = kE4m3Values[block_scales[r * blocks]] * global_scale_;
      uint8_t* const out = packed_ + (begin_ + r) * (m_.cols / 2) + first / 2;
      for (int64_t j = 0; j < kBlock; ++j) {
        const uint8_t code = float_to_e2m1((w[j] + owed[j]) / divisor);
        const float error = w[j] - kE2m1Values[code] * divisor;
        errors[j * rows_ + r] = error;
        out[j / 2] = static_cast<uint8_t>(j % 2 == 0 ? code : out[j / 2] | code << 4);
        const float* const factors = m_.factors + (first + j) * m_.cols + first;
        for (int64_t k = j + 1; k < kBlock; ++k) owed[k] += error * factors[k];
      }
    }
    return {};
  }

  // What columns [begin, end) are owed for the errors of the columns from `first` to `begin` - 1.
  void pass_on(const float* errors, int64_t first, int64_t begin, int64_t end) {
    add_products({errors, rows_, m_.factors + first * m_.cols + begin, m_.cols, begin - first,
                  rows_, end - begin, owed_.data() + begin, m_.cols});
  }

  const GptqMatrix& m_;
  int64_t begin_;
  int64_t rows_;
  float global_scale_;
  Nvfp4Mode mode_;
  uint8_t* packed_;
  uint8_t* scales_;
  std::vector<float> owed_;  // [rows, cols]: sum_{j<k} (w_j - w'_j) U_jk
  std::vector<float> errors_;
  std::vector<float> block_;
  std::vector<uint8_t> ignored_;
};

}  // namespace

Status quantize_gptq(const GptqMatrix& matrix, float global_scale, Nvfp4Mode mode, uint8_t* packed,
                     uint8_t* scales, ThreadPool& pool) {
  std::mutex mutex;
  Status first_error;
  pool.parallel_for(matrix.rows, kRowsAtOnce, [&](int64_t begin, int64_t end, int) {
    auto status = RowsQuantizer(matrix, begin, end, global_scale, mode, packed, scales).run();
    if (status) return;
    const std::lock_guard lock(mutex);
    if (first_error) first_error = std::move(status);
  });
  return first_error;
}

}  // namespace nibble
