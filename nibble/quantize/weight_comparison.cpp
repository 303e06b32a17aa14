#include "nibble/quantize/weight_comparison.h"

#include <algorithm>
#include <cmath>

#include "nibble/base/interrupt.h"
#include "nibble/base/thread_pool.h"
#include "nibble/checkpoint/model_tensors.h"
#include "nibble/numeric/nvfp4.h"
#include "nibble/quantize/source_rows.h"

namespace nibble {
namespace {

constexpr int64_t kRowsAtOnce = 16;

void count_blocks(const LinearTensors& linear, LinearComparison* comparison) {
  const auto* const packed = linear.weight.data<uint8_t>();
  const auto* const scales = linear.scales.data<uint8_t>();
  comparison->num_blocks = linear.rows * linear.cols / kNvfp4BlockSize;
  for (int64_t b = 0; b < comparison->num_blocks; ++b) {
    comparison->saturated_blocks += scales[b] == 0x7e ? 1 : 0;
    const uint8_t* const codes = packed + b * kNvfp4BlockSize / 2;
    const bool zero = std::all_of(codes, codes + kNvfp4BlockSize / 2,
                                  [](uint8_t byte) { return (byte & 0x77) == 0; });
    comparison->zero_blocks += zero ? 1 : 0;
  }
}

Result<LinearComparison> compare(const CheckpointSource& a, const CheckpointSource& b,
                                 const ModelTensor& tensor) {
  const std::string module(tensor.module());
  const int64_t rows = tensor.shape[0];
  const int64_t cols = tensor.shape[1];
  const auto original = NIBBLE_TRY(SourceRows::open(a, module, rows, cols));
  const auto quantized = NIBBLE_TRY(SourceRows::open(b, module, rows, cols));
  LinearComparison comparison;
  comparison.module = module;
  comparison.format = weight_format_name(quantized.linear().format);
  std::vector<float> x(static_cast<size_t>(kRowsAtOnce * cols));
  std::vector<float> y(x.size());
  for (int64_t r = 0; r < rows; r += kRowsAtOnce) {
    const int64_t end = std::min(r + kRowsAtOnce, rows);
    NIBBLE_TRY(original.read(r, end, x.data()));
    NIBBLE_TRY(quantized.read(r, end, y.data()));
    for (size_t i = 0; i < static_cast<size_t>((end - r) * cols); ++i) {
      const double difference = double{x[i]} - double{y[i]};
      comparison.signal += double{x[i]} * double{x[i]};
      comparison.error += difference * difference;
      comparison.largest_error = std::max(comparison.largest_error, std::fabs(difference));
    }
  }
  if (quantized.linear().format == WeightFormat::kNvfp4) {
    count_blocks(quantized.linear(), &comparison);
  }
  release_linear(a, module);
  release_linear(b, module);
  return comparison;
}

}  // namespace

double LinearComparison::sqnr_db() const {
  if (std::isnan(error)) return -INFINITY;
  return error > 0 ? 10 * std::log10(signal / error) : INFINITY;
}

Result<std::vector<LinearComparison>> compare_weights(const CheckpointSource& a,
                                                      const CheckpointSource& b,
                                                      const ModelConfig& config, int threads) {
  std::vector<ModelTensor> tensors;
  for (ModelTensor& tensor : model_tensors(config)) {
    if (!tensor.is_linear || a.find(tensor.name) == nullptr || b.find(tensor.name) == nullptr) {
      continue;
    }
    tensors.push_back(std::move(tensor));
  }
  std::vector<Result<LinearComparison>> results(tensors.size());
  ThreadPool pool(std::max(threads, 1));
  pool.parallel_for(static_cast<int64_t>(tensors.size()), 1, [&](int64_t begin, int64_t end, int) {
    for (auto i = static_cast<size_t>(begin); i < static_cast<size_t>(end); ++i) {
      if (!interrupted()) results[i] = compare(a, b, tensors[i]);
    }
  });
  NIBBLE_TRY(check_interrupt());
  std::vector<LinearComparison> comparisons;
  comparisons.reserve(results.size());
  for (size_t i = 0; i < results.size(); ++i) {
    LinearComparison comparison = NIBBLE_TRY(std::move(results[i]));
    const auto before = NIBBLE_TRY(find_weight_format(a, tensors[i].module()));
    const auto after = NIBBLE_TRY(find_weight_format(b, tensors[i].module()));
    if (before != after || comparison.error != 0) comparisons.push_back(std::move(comparison));
  }
  return comparisons;
}

}  // namespace nibble
