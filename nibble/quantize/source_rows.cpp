#include "nibble/quantize/source_rows.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <span>

#include "nibble/base/check.h"
#include "nibble/base/error.h"
#include "nibble/numeric/bf16.h"
#include "nibble/numeric/fp8_block.h"
#include "nibble/numeric/nvfp4.h"

namespace nibble {
namespace {

Fp8BlockMatrix fp8_matrix(const LinearTensors& linear) {
  return {linear.weight.data<uint8_t>(), linear.scales.data<float>(), linear.rows, linear.cols};
}

}  // namespace

Result<SourceRows> SourceRows::open(const CheckpointSource& source, const std::string& module,
                                    int64_t rows, int64_t cols) {
  return SourceRows(source, module, NIBBLE_TRY(map_linear(source, module, rows, cols)));
}

Status SourceRows::read_unchecked(int64_t begin, int64_t end, float* out) const {
  const int64_t cols = linear_.cols;
  const int64_t count = (end - begin) * cols;
  switch (linear_.format) {
    case WeightFormat::kF32: {
      const float* const values = linear_.weight.data<float>() + begin * cols;
      std::transform(values, values + count, out, round_to_bf16);
      return {};
    }
    case WeightFormat::kBf16: {
      const uint16_t* const values = linear_.weight.data<uint16_t>() + begin * cols;
      std::transform(values, values + count, out, bf16_to_float);
      return {};
    }
    case WeightFormat::kFp8Block:
      return with_context(dequantize_fp8_block_rounded(fp8_matrix(linear_), begin, end, out),
                          module_ + ".weight");
    case WeightFormat::kNvfp4:
      return with_context(
          dequantize_nvfp4_rows(linear_.weight.data<uint8_t>() + begin * cols / 2,
                                linear_.scales.data<uint8_t>() + begin * cols / kNvfp4BlockSize,
                                linear_.global_scale, end - begin, cols, out),
          module_);
  }
  NIBBLE_CHECK(false);
}

Status SourceRows::read(int64_t begin, int64_t end, float* out) const {
  NIBBLE_CHECK(0 <= begin && begin <= end && end <= linear_.rows);
  NIBBLE_TRY(read_unchecked(begin, end, out));
  if (linear_.format == WeightFormat::kFp8Block || linear_.format == WeightFormat::kNvfp4) {
    return {};  // checked by their decoders
  }
  for (int64_t r = begin; r < end; ++r) {
    const auto cols = static_cast<size_t>(linear_.cols);
    const std::span<const float> row(out + (r - begin) * linear_.cols, cols);
    const auto amax = nvfp4_amax(row);
    if (!amax) {
      return tl::unexpected(
          Error(amax.error()).with_context(fmt::format("{}.weight: row {}", module_, r)));
    }
  }
  return {};
}

Result<float> SourceRows::amax(int64_t begin, int64_t end, std::vector<float>* scratch) const {
  if (linear_.format == WeightFormat::kFp8Block) {
    const float amax = fp8_block_rounded_amax(fp8_matrix(linear_), begin, end);
    if (std::isfinite(amax)) return amax;
  }
  scratch->resize(static_cast<size_t>((end - begin) * linear_.cols));
  NIBBLE_TRY(read(begin, end, scratch->data()));  // says where
  return nvfp4_amax(*scratch);
}

void SourceRows::release(int64_t begin, int64_t end) const {
  const auto row_bytes =
      static_cast<uint64_t>(linear_.weight.bytes.size()) / static_cast<uint64_t>(linear_.rows);
  source_->release_part(module_ + ".weight", static_cast<uint64_t>(begin) * row_bytes,
                        static_cast<uint64_t>(end - begin) * row_bytes);
}

}  // namespace nibble
