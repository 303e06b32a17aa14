#include "nibble/quantize/convert_job.h"

#include <fmt/format.h>
#include <xxhash.h>

#include <algorithm>

#include "nibble/base/check.h"
#include "nibble/base/error.h"
#include "nibble/base/interrupt.h"
#include "nibble/checkpoint/finite_values.h"
#include "nibble/checkpoint/linear_tensors.h"
#include "nibble/numeric/bf16.h"
#include "nibble/numeric/nvfp4.h"
#include "nibble/quantize/gptq.h"
#include "nibble/quantize/hessian.h"
#include "nibble/quantize/source_rows.h"

namespace nibble {
namespace {

Status check_stop(const ConversionContext& context) {
  if (context.stop.load(std::memory_order_relaxed)) return cancelled("stopped");
  return check_interrupt();
}

int64_t rows_at_once(const ConversionContext& context, const LinearSpec& linear) {
  return std::clamp<int64_t>(context.chunk_bytes / (6 * linear.cols), 1, linear.rows);
}

Result<float> matrix_amax(const ConversionContext& context, const LinearSpec& spec,
                          const SourceRows& matrix) {
  const int64_t step = rows_at_once(context, spec);
  std::vector<float> scratch;
  float amax = 0;
  for (int64_t r = 0; r < spec.rows; r += step) {
    NIBBLE_TRY(check_stop(context));
    const int64_t end = std::min(r + step, spec.rows);
    amax = std::max(amax, NIBBLE_TRY(matrix.amax(r, end, &scratch)));
    matrix.release(r, end);
  }
  return amax;
}

Status append_scalar(const std::string& name, float value, JobOutput* output) {
  return output->append(name, std::as_bytes(std::span<const float>(&value, 1)));
}

// Some rows at a time, so that a matrix may be larger than memory.
Status encode_streaming(const ConversionContext& context, const LinearSpec& spec,
                        const SourceRows& matrix, float global_scale, JobOutput* output) {
  const int64_t step = rows_at_once(context, spec);
  std::vector<float> values(static_cast<size_t>(step * spec.cols));
  std::vector<uint8_t> packed(values.size() / 2);
  std::vector<uint8_t> scales(values.size() / kNvfp4BlockSize);
  for (int64_t r = 0; r < spec.rows; r += step) {
    NIBBLE_TRY(check_stop(context));
    const int64_t end = std::min(r + step, spec.rows);
    const auto count = static_cast<size_t>((end - r) * spec.cols);
    NIBBLE_TRY(matrix.read(r, end, values.data()));
    NIBBLE_TRY(
        with_context(quantize_nvfp4_rows(values.data(), end - r, spec.cols, global_scale,
                                         context.algorithm.mode, packed.data(), scales.data()),
                     fmt::format("{}.weight rows from {}", spec.module, r)));
    matrix.release(r, end);
    NIBBLE_TRY(
        output->append(spec.module + ".weight", std::as_bytes(std::span(packed).first(count / 2))));
    NIBBLE_TRY(output->append(spec.module + ".weight_scale",
                              std::as_bytes(std::span(scales).first(count / kNvfp4BlockSize))));
  }
  return {};
}

Status encode_block_columns(const ConversionContext& context, const LinearSpec& spec,
                            const std::vector<float>& values, const std::vector<float>& blocks,
                            float global_scale, std::vector<uint8_t>* packed,
                            std::vector<uint8_t>* scales) {
  const int64_t num_columns = spec.cols / kNvfp4BlockSize;
  std::vector<Status> results(static_cast<size_t>(num_columns));
  context.pool->parallel_for(num_columns, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t c = begin; c < end; ++c) {
      const Nvfp4BlockColumn column{values.data() + c * kNvfp4BlockSize,
                                    spec.rows,
                                    spec.cols,
                                    packed->data() + c * kNvfp4BlockSize / 2,
                                    spec.cols / 2,
                                    scales->data() + c,
                                    num_columns};
      results[static_cast<size_t>(c)] =
          quantize_nvfp4_block_column(column, global_scale, context.algorithm.mode,
                                      blocks.data() + c * kNvfp4BlockSize * kNvfp4BlockSize);
    }
  });
  for (Status& result : results) NIBBLE_TRY(std::move(result));
  return {};
}

// What the linears of a group, which read the same input, have in common.
struct InputStatistics {
  std::vector<float> blocks;   // for kLocalHessian
  std::vector<float> factors;  // for GPTQ
};

Result<InputStatistics> input_statistics(const ConversionContext& context, const LinearSpec& spec) {
  InputStatistics input;
  if (context.algorithm.mode == Nvfp4Mode::kLocalHessian) {
    input.blocks =
        NIBBLE_TRY(block_hessians(*context.activations, spec.module, spec.cols, *context.pool));
  }
  NIBBLE_TRY(check_stop(context));
  if (context.algorithm.gptq) {
    input.factors =
        NIBBLE_TRY(full_hessian(*context.activations, spec.module, spec.cols, *context.pool));
    NIBBLE_TRY(check_stop(context));
    factor_hessian(&input.factors, spec.cols, *context.pool);
    NIBBLE_TRY(check_stop(context));
  }
  return input;
}

Status encode_with_data(const ConversionContext& context, const LinearSpec& spec,
                        const SourceRows& matrix, const InputStatistics& input, float global_scale,
                        JobOutput* output) {
  std::vector<float> values(static_cast<size_t>(spec.rows * spec.cols));
  std::vector<uint8_t> packed(values.size() / 2);
  std::vector<uint8_t> scales(values.size() / kNvfp4BlockSize);
  NIBBLE_TRY(matrix.read(0, spec.rows, values.data()));
  matrix.release(0, spec.rows);
  if (context.algorithm.gptq) {
    NIBBLE_TRY(
        with_context(quantize_gptq({values.data(), spec.rows, spec.cols, input.factors.data(),
                                    input.blocks.empty() ? nullptr : input.blocks.data()},
                                   global_scale, context.algorithm.mode, packed.data(),
                                   scales.data(), *context.pool),
                     spec.module + ".weight"));
  } else {
    NIBBLE_TRY(with_context(
        encode_block_columns(context, spec, values, input.blocks, global_scale, &packed, &scales),
        spec.module + ".weight"));
  }
  NIBBLE_TRY(output->append(spec.module + ".weight", std::as_bytes(std::span(packed))));
  return output->append(spec.module + ".weight_scale", std::as_bytes(std::span(scales)));
}

// Where activations are known to stay small block scales would underflow; never to 0.
Result<float> input_scale_of(const ConversionContext& context, const LinearGroup& group) {
  if (context.activations == nullptr) return 1.0f;
  float amax = 0;
  for (const LinearSpec& spec : group) {
    const auto found = context.activations->input_amax(spec.module);
    if (!found) {
      return invalid_argument(fmt::format(
          "{} has no calibration statistics: no token of the data reached it or any other expert "
          "of its layer",
          spec.module));
    }
    amax = std::max(amax, *found);
  }
  return with_context(nvfp4_global_scale(amax), group.front().module + ".input_scale");
}

Status quantize_group(const ConversionContext& context, const LinearGroup& group,
                      JobOutput* output) {
  std::vector<SourceRows> matrices;
  float amax = 0;
  for (const LinearSpec& spec : group) {
    matrices.push_back(
        NIBBLE_TRY(SourceRows::open(context.source, spec.module, spec.rows, spec.cols)));
    amax = std::max(amax, NIBBLE_TRY(matrix_amax(context, spec, matrices.back())));
  }
  const float global_scale = NIBBLE_TRY(with_context(
      nvfp4_global_scale(amax, context.algorithm.mode), group.front().module + ".weight"));
  const float input_scale = NIBBLE_TRY(input_scale_of(context, group));
  const bool with_data = context.algorithm.needs_activations();
  InputStatistics input;
  if (with_data) input = NIBBLE_TRY(input_statistics(context, group.front()));
  for (size_t i = 0; i < group.size(); ++i) {
    NIBBLE_TRY(with_data
                   ? encode_with_data(context, group[i], matrices[i], input, global_scale, output)
                   : encode_streaming(context, group[i], matrices[i], global_scale, output));
    NIBBLE_TRY(append_scalar(group[i].module + ".weight_scale_2", global_scale, output));
    NIBBLE_TRY(append_scalar(group[i].module + ".input_scale", input_scale, output));
    release_linear(context.source, group[i].module);
  }
  return {};
}

Status convert_to_bf16(const ConversionContext& context, const LinearSpec& spec,
                       JobOutput* output) {
  const auto matrix =
      NIBBLE_TRY(SourceRows::open(context.source, spec.module, spec.rows, spec.cols));
  const int64_t step = rows_at_once(context, spec);
  std::vector<float> values(static_cast<size_t>(step * spec.cols));
  std::vector<uint16_t> halves(values.size());
  for (int64_t r = 0; r < spec.rows; r += step) {
    NIBBLE_TRY(check_stop(context));
    const int64_t end = std::min(r + step, spec.rows);
    const auto count = static_cast<size_t>((end - r) * spec.cols);
    NIBBLE_TRY(matrix.read(r, end, values.data()));
    matrix.release(r, end);
    std::transform(values.begin(), values.begin() + static_cast<int64_t>(count), halves.begin(),
                   float_to_bf16);
    NIBBLE_TRY(
        output->append(spec.module + ".weight", std::as_bytes(std::span(halves).first(count))));
  }
  release_linear(context.source, spec.module);
  return {};
}

Status copy_tensor(const ConversionContext& context, const std::string& name, JobOutput* output) {
  const auto view = NIBBLE_TRY(context.source.read(name));
  const TensorInfo& info = *context.source.find(name);
  // Whole elements at a time, whatever the memory allows.
  const size_t step = std::max<size_t>(4, static_cast<size_t>(context.chunk_bytes) / 4 * 4);
  for (size_t at = 0; at < view.bytes.size(); at += step) {
    NIBBLE_TRY(check_stop(context));
    const auto part = view.bytes.subspan(at, std::min(step, view.bytes.size() - at));
    NIBBLE_TRY(check_finite_part(info, part, at));
    NIBBLE_TRY(output->append(name, part));
    context.source.release_part(name, at, part.size());
  }
  context.source.release(name);
  return {};
}

std::string combined(const std::vector<uint64_t>& hashes) {
  return fmt::format("{:016x}", XXH3_64bits(hashes.data(), hashes.size() * sizeof(uint64_t)));
}

}  // namespace

struct JobOutput::Tensor {
  std::string_view name;
  uint64_t written;
  XXH3_state_t* state;
};

JobOutput::JobOutput(ShardFile& shard, const ConversionJob& job) : shard_(shard) {
  for (const TensorInfo& info : job.outputs) {
    XXH3_state_t* const state = XXH3_createState();
    NIBBLE_CHECK(state != nullptr && XXH3_64bits_reset(state) == XXH_OK);
    tensors_.push_back({info.name, 0, state});
  }
}

JobOutput::~JobOutput() {
  for (const Tensor& tensor : tensors_) XXH3_freeState(tensor.state);
}

Status JobOutput::append(std::string_view name, std::span<const std::byte> bytes) {
  const auto tensor = std::find_if(tensors_.begin(), tensors_.end(),
                                   [&](const Tensor& t) { return t.name == name; });
  NIBBLE_CHECK(tensor != tensors_.end());
  NIBBLE_TRY(shard_.write(name, tensor->written, bytes));
  tensor->written += bytes.size();
  NIBBLE_CHECK(XXH3_64bits_update(tensor->state, bytes.data(), bytes.size()) == XXH_OK);
  return {};
}

std::string JobOutput::hash() const {
  std::vector<uint64_t> hashes;
  for (const Tensor& tensor : tensors_) hashes.push_back(XXH3_64bits_digest(tensor.state));
  return combined(hashes);
}

Result<std::string> JobOutput::stored_hash(const ShardFile& shard, const ConversionJob& job) {
  std::vector<std::byte> buffer(1 << 20);
  std::vector<uint64_t> hashes;
  for (const TensorInfo& info : job.outputs) {
    const auto size = static_cast<uint64_t>(info.shape.num_elements() * dtype_size(info.dtype));
    const std::unique_ptr<XXH3_state_t, XXH_errorcode (*)(XXH3_state_t*)> state(XXH3_createState(),
                                                                                XXH3_freeState);
    NIBBLE_CHECK(state != nullptr && XXH3_64bits_reset(state.get()) == XXH_OK);
    for (uint64_t at = 0; at < size; at += buffer.size()) {
      const auto part = std::span(buffer).first(std::min<uint64_t>(buffer.size(), size - at));
      NIBBLE_TRY(shard.read(info.name, at, part));
      NIBBLE_CHECK(XXH3_64bits_update(state.get(), part.data(), part.size()) == XXH_OK);
    }
    hashes.push_back(XXH3_64bits_digest(state.get()));
  }
  return combined(hashes);
}

Status convert_job(const ConversionContext& context, const ConversionJob& job, JobOutput* output) {
  NIBBLE_TRY(check_stop(context));
  switch (job.kind) {
    case JobKind::kCopy:
      return copy_tensor(context, job.tensor, output);
    case JobKind::kToBf16:
      return convert_to_bf16(context, job.linears.front(), output);
    case JobKind::kQuantize:
      return quantize_group(context, job.linears, output);
    case JobKind::kUnitScale:
      return append_scalar(job.outputs.front().name, 1.0f, output);
  }
  NIBBLE_CHECK(false);
}

uint64_t data_driven_bytes(const LinearSpec& linear, const WeightAlgorithm& algorithm) {
  const auto rows = static_cast<uint64_t>(linear.rows);
  const auto cols = static_cast<uint64_t>(linear.cols);
  uint64_t bytes = rows * cols * 5 + cols * 256 * 4;  // values, codes and scales, some inputs
  if (algorithm.gptq) bytes += cols * cols * 4 + cols * 128 * 4;  // H, and a panel of it
  return bytes + cols * kNvfp4BlockSize * 4;
}

}  // namespace nibble
