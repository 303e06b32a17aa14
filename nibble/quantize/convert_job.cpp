#include "nibble/quantize/convert_job.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <span>
#include <vector>

#include "nibble/base/check.h"
#include "nibble/base/error.h"
#include "nibble/base/interrupt.h"
#include "nibble/checkpoint/finite_values.h"
#include "nibble/checkpoint/linear_tensors.h"
#include "nibble/numeric/bf16.h"
#include "nibble/numeric/fp8_block.h"
#include "nibble/numeric/nvfp4.h"

namespace nibble {
namespace {

constexpr int64_t kRowsBetweenChecks = 64;

Status check_stop(int64_t row, const std::atomic<bool>& stop) {
  if (row % kRowsBetweenChecks != 0) return {};
  if (stop.load(std::memory_order_relaxed)) return cancelled("stopped");
  return check_interrupt();
}

Fp8BlockMatrix fp8_matrix(const LinearTensors& linear) {
  return {linear.weight.data<uint8_t>(), linear.scales.data<float>(), linear.rows, linear.cols};
}

// One row after the other of a matrix of any source format, rounded to BF16, as floats.
class Bf16Rows {
 public:
  explicit Bf16Rows(const LinearTensors& linear)
      : linear_(linear),
        half_(static_cast<size_t>(linear.cols)),
        row_(static_cast<size_t>(linear.cols)) {}

  // Valid until the next call.
  Result<std::span<const float>> read(int64_t row) {
    const auto cols = static_cast<size_t>(linear_.cols);
    const size_t begin = static_cast<size_t>(row) * cols;
    switch (linear_.format) {
      case WeightFormat::kF32: {
        const float* const values = linear_.weight.data<float>() + begin;
        std::transform(values, values + cols, row_.begin(), round_to_bf16);
        return row_;
      }
      case WeightFormat::kBf16: {
        const uint16_t* const values = linear_.weight.data<uint16_t>() + begin;
        std::transform(values, values + cols, row_.begin(), bf16_to_float);
        return row_;
      }
      case WeightFormat::kFp8Block:
        NIBBLE_TRY(dequantize_fp8_block_to_bf16(fp8_matrix(linear_), row, row + 1, half_.data()));
        std::transform(half_.begin(), half_.end(), row_.begin(), bf16_to_float);
        return row_;
      case WeightFormat::kNvfp4:
        break;
    }
    NIBBLE_CHECK(false);  // the plan refuses NVFP4 sources
  }

 private:
  const LinearTensors& linear_;
  std::vector<uint16_t> half_;
  std::vector<float> row_;
};

Result<float> linear_amax(const LinearTensors& linear, const std::atomic<bool>& stop) {
  Bf16Rows rows(linear);
  float amax = 0;
  for (int64_t r = 0; r < linear.rows; ++r) {
    NIBBLE_TRY(check_stop(r, stop));
    const auto row = NIBBLE_TRY(rows.read(r));
    amax = std::max(amax, NIBBLE_TRY(with_context(nvfp4_amax(row), fmt::format("row {}", r))));
  }
  return amax;
}

Status write_scalar(const std::string& name, float value, SafetensorsWriter* writer) {
  return writer->write(name, std::as_bytes(std::span<const float>(&value, 1)));
}

Status write_nvfp4(const LinearSpec& spec, const LinearTensors& linear, float global_scale,
                   const std::atomic<bool>& stop, SafetensorsWriter* writer) {
  std::vector<uint8_t> packed(static_cast<size_t>(linear.rows * linear.cols / 2));
  std::vector<uint8_t> scales(static_cast<size_t>(linear.rows * linear.cols / kNvfp4BlockSize));
  Bf16Rows rows(linear);
  for (int64_t r = 0; r < linear.rows; ++r) {
    NIBBLE_TRY(check_stop(r, stop));
    const auto row = NIBBLE_TRY(rows.read(r));
    NIBBLE_TRY(
        with_context(quantize_nvfp4_rows(row.data(), 1, linear.cols, global_scale, Nvfp4Mode::kMax,
                                         packed.data() + r * linear.cols / 2,
                                         scales.data() + r * linear.cols / kNvfp4BlockSize),
                     fmt::format("{}.weight row {}", spec.module, r)));
  }
  NIBBLE_TRY(writer->write(spec.module + ".weight", std::as_bytes(std::span(packed))));
  NIBBLE_TRY(writer->write(spec.module + ".weight_scale", std::as_bytes(std::span(scales))));
  NIBBLE_TRY(write_scalar(spec.module + ".weight_scale_2", global_scale, writer));
  return write_scalar(spec.module + ".input_scale", 1.0f, writer);
}

Status quantize_group(const CheckpointSource& source, const LinearGroup& group,
                      const std::atomic<bool>& stop, SafetensorsWriter* writer) {
  std::vector<LinearTensors> linears;
  float amax = 0;
  for (const LinearSpec& spec : group) {
    linears.push_back(NIBBLE_TRY(read_linear(source, spec.module, spec.rows, spec.cols)));
    amax = std::max(
        amax, NIBBLE_TRY(with_context(linear_amax(linears.back(), stop), spec.module + ".weight")));
  }
  const float global_scale =
      NIBBLE_TRY(with_context(nvfp4_global_scale(amax), group.front().module + ".weight"));
  for (size_t i = 0; i < group.size(); ++i) {
    NIBBLE_TRY(write_nvfp4(group[i], linears[i], global_scale, stop, writer));
    release_linear(source, group[i].module);
  }
  return {};
}

Status convert_to_bf16(const CheckpointSource& source, const LinearSpec& spec,
                       const std::atomic<bool>& stop, SafetensorsWriter* writer) {
  const auto linear = NIBBLE_TRY(read_linear(source, spec.module, spec.rows, spec.cols));
  NIBBLE_CHECK(linear.format == WeightFormat::kFp8Block);
  std::vector<uint16_t> values(static_cast<size_t>(spec.rows * spec.cols));
  for (int64_t r = 0; r < spec.rows; ++r) {
    NIBBLE_TRY(check_stop(r, stop));
    NIBBLE_TRY(with_context(
        dequantize_fp8_block_to_bf16(fp8_matrix(linear), r, r + 1, values.data() + r * spec.cols),
        spec.module));
  }
  NIBBLE_TRY(writer->write(spec.module + ".weight", std::as_bytes(std::span(values))));
  release_linear(source, spec.module);
  return {};
}

Status copy_tensor(const CheckpointSource& source, const std::string& name,
                   SafetensorsWriter* writer) {
  const auto view = NIBBLE_TRY(source.read(name));
  // Norms and biases; loading would refuse them.
  if (view.shape.rank() == 1) NIBBLE_TRY(check_finite(*source.find(name), view));
  NIBBLE_TRY(writer->write(name, view.bytes));
  source.release(name);
  return {};
}

}  // namespace

Status convert_job(const CheckpointSource& source, const ConversionJob& job,
                   const std::atomic<bool>& stop, SafetensorsWriter* writer) {
  NIBBLE_TRY(check_stop(0, stop));
  switch (job.kind) {
    case JobKind::kCopy:
      return copy_tensor(source, job.tensor, writer);
    case JobKind::kToBf16:
      return convert_to_bf16(source, job.linears.front(), stop, writer);
    case JobKind::kQuantize:
      return quantize_group(source, job.linears, stop, writer);
  }
  NIBBLE_CHECK(false);
}

}  // namespace nibble
