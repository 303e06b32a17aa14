#include "nibble/quantize/hessian.h"

#include <algorithm>
#include <cmath>

#include "nibble/base/check.h"
#include "nibble/numeric/nvfp4.h"

namespace nibble {
namespace {

constexpr int64_t kBlock = kNvfp4BlockSize;
constexpr int64_t kRowsAtOnce = 256;  // a multiple of 16
constexpr double kDamping = 0.01;     // of the mean diagonal, as GPTQ has it

double mean_diagonal(const float* matrix, int64_t size, int64_t stride) {
  double sum = 0;
  for (int64_t i = 0; i < size; ++i) sum += matrix[i * stride + i];
  return sum / static_cast<double>(size);
}

// Calls visit(x [kRowsAtOnce, cols], rows rounded up to 16) for all inputs, the last rows zero.
template <typename Visit>
Status for_each_chunk(const Activations& activations, std::string_view module, int64_t cols,
                      Visit visit) {
  std::vector<float> x(static_cast<size_t>(kRowsAtOnce * cols));
  const int64_t rows = activations.num_rows(module);
  for (int64_t first = 0; first < rows; first += kRowsAtOnce) {
    const int64_t count = std::min(kRowsAtOnce, rows - first);
    NIBBLE_TRY(activations.read_rows(module, first, count, x.data()));
    const int64_t padded = (count + 15) / 16 * 16;
    std::fill(x.begin() + count * cols, x.begin() + padded * cols, 0.0f);
    visit(x.data(), padded);
  }
  return {};
}

// y[k] += sum_t x[t, i] * x[t, first + k], k < n.
void add_products(const float* x, int64_t rows, int64_t cols, int64_t i, int64_t first, int64_t n,
                  float* y) {
  float coefficients[16];
  for (int64_t t = 0; t < rows; t += 16) {
    for (int64_t c = 0; c < 16; ++c) coefficients[c] = x[(t + c) * cols + i];
    add_rank16(coefficients, x + t * cols + first, cols, n, y);
  }
}

}  // namespace

Result<std::vector<float>> block_hessians(const Activations& activations, std::string_view module,
                                          int64_t cols, ThreadPool& pool) {
  std::vector<float> blocks(static_cast<size_t>(cols * kBlock));
  NIBBLE_TRY(for_each_chunk(activations, module, cols, [&](const float* x, int64_t rows) {
    pool.parallel_for(cols / kBlock, 4, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin * kBlock; i < end * kBlock; ++i) {
        add_products(x, rows, cols, i, i / kBlock * kBlock, kBlock, blocks.data() + i * kBlock);
      }
    });
  }));
  for (int64_t b = 0; b < cols / kBlock; ++b) {
    float* const block = blocks.data() + b * kBlock * kBlock;
    const double mean = mean_diagonal(block, kBlock, kBlock);
    const auto damping = static_cast<float>(mean > 0 ? kDamping * mean : 1.0);
    for (int64_t i = 0; i < kBlock; ++i) block[i * kBlock + i] += damping;
  }
  return blocks;
}

Result<std::vector<float>> full_hessian(const Activations& activations, std::string_view module,
                                        int64_t cols, ThreadPool& pool) {
  std::vector<float> hessian(static_cast<size_t>(cols * cols));
  NIBBLE_TRY(for_each_chunk(activations, module, cols, [&](const float* x, int64_t rows) {
    pool.parallel_for(cols, 8, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) {
        add_products(x, rows, cols, i, 0, i + 1, hessian.data() + i * cols);
      }
    });
  }));
  return hessian;
}

// The last column first: R of H = R R' row by row of its transpose, which takes the place of the
// lower triangle, sixteen columns between two updates of the rest.
void factor_hessian(std::vector<float>* hessian, int64_t cols, ThreadPool& pool) {
  NIBBLE_CHECK(cols % kBlock == 0);
  float* const h = hessian->data();
  const double mean = mean_diagonal(h, cols, cols);
  const auto damping = static_cast<float>(mean > 0 ? kDamping * mean : 1.0);
  for (int64_t i = 0; i < cols; ++i) h[i * cols + i] += damping;

  for (int64_t first = cols - kBlock; first >= 0; first -= kBlock) {
    for (int64_t j = first + kBlock - 1; j >= first; --j) {
      float* const row = h + j * cols;
      // Rounding may leave a pivot of a nearly singular H at nothing; the damping bounds it.
      const float root = std::sqrt(std::max(row[j], damping * 0.01f));
      row[j] = root;
      for (int64_t i = 0; i < j; ++i) row[i] /= root;
      for (int64_t i = first; i < j; ++i) {
        for (int64_t k = 0; k <= i; ++k) h[i * cols + k] -= row[i] * row[k];
      }
    }
    pool.parallel_for(first, 8, [&](int64_t begin, int64_t end, int) {
      float coefficients[kBlock];
      for (int64_t i = begin; i < end; ++i) {
        for (int64_t c = 0; c < kBlock; ++c) coefficients[c] = -h[(first + c) * cols + i];
        add_rank16(coefficients, h + first * cols, cols, i + 1, h + i * cols);
      }
    });
  }
  pool.parallel_for(cols, 64, [&](int64_t begin, int64_t end, int) {
    for (int64_t k = begin; k < end; ++k) {
      const float root = h[k * cols + k];
      for (int64_t j = 0; j < k; ++j) h[j * cols + k] = h[k * cols + j] / root;
    }
  });
}

}  // namespace nibble
