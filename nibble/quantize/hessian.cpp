#include "nibble/quantize/hessian.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <utility>

#include "nibble/base/check.h"
#include "nibble/numeric/add_products.h"
#include "nibble/numeric/nvfp4.h"

namespace nibble {
namespace {

constexpr int64_t kBlock = kNvfp4BlockSize;
constexpr int64_t kRowsAtOnce = 256;   // a multiple of 16
constexpr int64_t kTriangleRows = 64;  // of a lower triangle, that a thread works on at once
constexpr int64_t kPanel = 128;        // a multiple of 16
constexpr double kDamping = 0.01;      // of the mean diagonal, as GPTQ has it

double mean_diagonal(const float* matrix, int64_t size, int64_t stride) {
  double sum = 0;
  for (int64_t i = 0; i < size; ++i) sum += matrix[i * stride + i];
  return sum / static_cast<double>(size);
}

// Calls visit(x [kRowsAtOnce, cols], rows rounded up to 16) for all inputs, the last rows zero.
template <typename Visit>
Status for_each_chunk(const Activations& activations, std::string_view module, int64_t cols,
                      ThreadPool& pool, Visit visit) {
  std::vector<float> x(static_cast<size_t>(kRowsAtOnce * cols));
  const int64_t rows = activations.num_rows(module);
  for (int64_t first = 0; first < rows; first += kRowsAtOnce) {
    const int64_t count = std::min(kRowsAtOnce, rows - first);
    std::vector<Status> results(static_cast<size_t>(count));
    pool.parallel_for(count, 32, [&](int64_t begin, int64_t end, int) {
      results[static_cast<size_t>(begin)] =
          activations.read_rows(module, first + begin, end - begin, x.data() + begin * cols);
    });
    for (Status& result : results) NIBBLE_TRY(std::move(result));
    const int64_t padded = (count + 15) / 16 * 16;
    std::fill(x.begin() + count * cols, x.begin() + padded * cols, 0.0f);
    visit(x.data(), padded);
  }
  return {};
}

}  // namespace

Result<std::vector<float>> block_hessians(const Activations& activations, std::string_view module,
                                          int64_t cols, ThreadPool& pool) {
  std::vector<float> blocks(static_cast<size_t>(cols * kBlock));
  NIBBLE_TRY(for_each_chunk(activations, module, cols, pool, [&](const float* x, int64_t rows) {
    pool.parallel_for(cols / kBlock, 4, [&](int64_t begin, int64_t end, int) {
      for (int64_t b = begin; b < end; ++b) {
        const float* const columns = x + b * kBlock;
        add_products({columns, cols, columns, cols, rows, kBlock, kBlock,
                      blocks.data() + b * kBlock * kBlock, kBlock});
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
  NIBBLE_TRY(for_each_chunk(activations, module, cols, pool, [&](const float* x, int64_t rows) {
    pool.parallel_for(cols, kTriangleRows, [&](int64_t begin, int64_t end, int) {
      add_products(
          {x + begin, cols, x, cols, rows, end - begin, end, hessian.data() + begin * cols, cols});
    });
  }));
  return hessian;
}

// The last column first: R of H = R R' row by row of its transpose, which takes the place of the
// lower triangle. A panel of kPanel rows is finished by itself before the rest is updated.
void factor_hessian(std::vector<float>* hessian, int64_t cols, ThreadPool& pool) {
  NIBBLE_CHECK(cols % kBlock == 0);
  float* const h = hessian->data();
  const double mean = mean_diagonal(h, cols, cols);
  const auto damping = static_cast<float>(mean > 0 ? kDamping * mean : 1.0);
  for (int64_t i = 0; i < cols; ++i) h[i * cols + i] += damping;

  std::vector<float> negative(static_cast<size_t>(std::min(kPanel, cols) * cols));
  // Rows [first, last) of R' are done: rows [begin, first) of the rest without their share.
  const auto update = [&](int64_t begin, int64_t first, int64_t last) {
    for (int64_t j = first; j < last; ++j) {
      const float* const row = h + j * cols;
      std::transform(row, row + first, negative.data() + (j - first) * cols, std::negate<>());
    }
    pool.parallel_for(first - begin, kTriangleRows, [&](int64_t from, int64_t to, int) {
      from += begin;
      to += begin;
      add_products({negative.data() + from, cols, h + first * cols, cols, last - first, to - from,
                    to, h + from * cols, cols});
    });
  };
  for (int64_t last = cols; last > 0; last = std::max<int64_t>(last - kPanel, 0)) {
    const int64_t panel = std::max<int64_t>(last - kPanel, 0);
    for (int64_t end = last; end > panel; end -= kBlock) {
      for (int64_t j = end - 1; j >= end - kBlock; --j) {
        float* const row = h + j * cols;
        // Rounding may leave a pivot of a nearly singular H at nothing; the damping bounds it.
        const float root = std::sqrt(std::max(row[j], damping * 0.01f));
        row[j] = root;
        for (int64_t i = 0; i < j; ++i) row[i] /= root;
        for (int64_t i = end - kBlock; i < j; ++i) {
          for (int64_t k = 0; k <= i; ++k) h[i * cols + k] -= row[i] * row[k];
        }
      }
      update(panel, end - kBlock, end);
    }
    update(0, panel, last);
  }
  pool.parallel_for(cols, 64, [&](int64_t begin, int64_t end, int) {
    for (int64_t j = 0; j < end - 1; ++j) {
      for (int64_t k = std::max(begin, j + 1); k < end; ++k) {
        h[j * cols + k] = h[k * cols + j] / h[k * cols + k];
      }
    }
  });
}

}  // namespace nibble
