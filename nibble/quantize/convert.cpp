#include "nibble/quantize/convert.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <set>

#include "nibble/base/check.h"
#include "nibble/base/cpu_features.h"
#include "nibble/base/error.h"
#include "nibble/base/interrupt.h"
#include "nibble/base/mapped_file.h"
#include "nibble/base/output_file.h"
#include "nibble/base/progress.h"
#include "nibble/base/text.h"
#include "nibble/base/thread_pool.h"
#include "nibble/checkpoint/model_tensors.h"
#include "nibble/checkpoint/safetensors_source.h"
#include "nibble/checkpoint/safetensors_writer.h"
#include "nibble/numeric/bf16.h"
#include "nibble/numeric/fp8_block.h"
#include "nibble/numeric/nvfp4.h"
#include "nibble/quantize/config_files.h"
#include "nibble/quantize/conversion_plan.h"
#include "nibble/quantize/convert_config.h"
#include "nibble/quantize/output_directory.h"
#include "nibble/quantize/source_rows.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kFormatNames[] = {"bf16", "fp8", "compressed-tensors", "modelopt"};

std::string with_suffix(const std::string& module, std::string_view suffix) {
  return module + "." + std::string(suffix);
}

uint64_t bytes_of(const TensorInfo& info) {
  return static_cast<uint64_t>(info.shape.num_elements() * dtype_size(info.dtype));
}

// What becomes of the source's tensors: jobs in the source's order.
class Converter {
 public:
  Converter(const CheckpointSource& source, ConvertFormat format)
      : source_(source), format_(format) {}

  Status plan(const ModelConfig& config, uint64_t shard_bytes) {
    for (const ModelTensor& tensor : model_tensors(config)) {
      if (tensor.is_linear) linears_.insert(std::string(tensor.module()));
    }
    for (const TensorInfo& info : source_.tensors()) NIBBLE_TRY(add(info));
    if (num_converted_ == 0) {
      return invalid_argument(
          fmt::format("nothing to convert to {}: no linear layer is in another "
                      "format{}",
                      kFormatNames[static_cast<size_t>(format_)],
                      format_ >= ConvertFormat::kCompressedTensors ? " of NVFP4" : ""));
    }
    uint64_t filled = 0;
    size_t shard = 0;
    for (ConversionJob& job : plan_.jobs) {
      for (const TensorInfo& output : job.outputs) job.output_bytes += bytes_of(output);
      if (filled > 0 && filled + job.output_bytes > shard_bytes) {
        ++shard;
        filled = 0;
      }
      filled += job.output_bytes;
      plan_.output_bytes += job.output_bytes;
      plan_.num_output_tensors += static_cast<int64_t>(job.outputs.size());
      job.shard = shard;
    }
    for (size_t i = 1; i <= shard + 1; ++i) {
      plan_.shard_names.push_back(fmt::format("model-{:05}-of-{:05}.safetensors", i, shard + 1));
    }
    for (ConversionJob& job : plan_.jobs) {
      for (TensorInfo& output : job.outputs) output.shard = plan_.shard_names[job.shard];
    }
    return {};
  }

  const ConversionPlan& plan() const { return plan_; }
  int64_t num_converted() const { return num_converted_; }
  int64_t num_inexact() const { return num_inexact_; }

  Status run(const ConversionJob& job, SafetensorsWriter* writer) {
    NIBBLE_TRY(check_interrupt());
    if (job.linears.empty()) {
      const auto view = NIBBLE_TRY(source_.read(job.tensor));
      NIBBLE_TRY(writer->write(job.tensor, view.bytes));
      source_.release(job.tensor);
      return {};
    }
    const LinearSpec& linear = job.linears.front();
    switch (format_) {
      case ConvertFormat::kBf16:
        return write_bf16(linear, writer);
      case ConvertFormat::kFp8:
        return write_fp8(linear, writer);
      case ConvertFormat::kCompressedTensors:
        return write_layout(linear.module, "weight", "weight_packed", "weight_scale_2",
                            "weight_global_scale", "input_scale", "input_global_scale", writer);
      case ConvertFormat::kModelOpt:
        return write_layout(linear.module, "weight_packed", "weight", "weight_global_scale",
                            "weight_scale_2", "input_global_scale", "input_scale", writer);
    }
    NIBBLE_CHECK(false);
  }

 private:
  Status add(const TensorInfo& info) {
    const std::string_view name = info.name;
    for (const char* scale : {".weight_scale_inv", ".weight_scale", ".weight_scale_2",
                              ".input_scale", ".weight_global_scale", ".input_global_scale"}) {
      if (name.ends_with(scale)) return {};  // goes with its weight
    }
    const bool is_layout = format_ >= ConvertFormat::kCompressedTensors;
    if (!is_layout && (name.ends_with(".k_scale") || name.ends_with(".v_scale"))) return {};
    const std::string module(name.substr(0, name.rfind('.')));
    ConversionJob job;
    job.source_bytes = bytes_of(info);
    if (is_layout ? is_other_layout(info) : linears_.contains(module)) {
      NIBBLE_TRY(add_linear(info, module, &job));
    }
    if (job.linears.empty()) {
      job.tensor = info.name;
      job.outputs.push_back({info.name, info.dtype, info.shape, {}});
    } else {
      ++num_converted_;
    }
    plan_.source_bytes += job.source_bytes;
    plan_.jobs.push_back(std::move(job));
    return {};
  }

  bool is_other_layout(const TensorInfo& info) const {
    if (info.dtype != DType::kU8) return false;
    return info.name.ends_with(format_ == ConvertFormat::kModelOpt ? ".weight_packed" : ".weight");
  }

  Status add_linear(const TensorInfo& info, const std::string& module, ConversionJob* job) {
    const auto out = [&](std::string_view suffix, DType dtype, Shape shape) {
      job->outputs.push_back({with_suffix(module, suffix), dtype, std::move(shape), {}});
    };
    if (info.shape.rank() != 2) {
      return corrupt(
          fmt::format("{} has shape {}, expected a matrix", info.name, info.shape.to_string()));
    }
    const int64_t rows = info.shape[0];
    const int64_t cols = info.dtype == DType::kU8 ? 2 * info.shape[1] : info.shape[1];
    if (format_ >= ConvertFormat::kCompressedTensors) {
      const bool to_modelopt = format_ == ConvertFormat::kModelOpt;
      const Shape scalar = to_modelopt ? Shape() : Shape({1});
      out(to_modelopt ? "weight" : "weight_packed", DType::kU8, info.shape);
      out("weight_scale", DType::kF8E4m3, {rows, cols / kNvfp4BlockSize});
      out(to_modelopt ? "weight_scale_2" : "weight_global_scale", DType::kF32, scalar);
      const char* const input = to_modelopt ? "input_global_scale" : "input_scale";
      if (source_.find(with_suffix(module, input)) != nullptr) {
        out(to_modelopt ? "input_scale" : "input_global_scale", DType::kF32, scalar);
      }
    } else {
      const WeightFormat format = NIBBLE_TRY(find_weight_format(source_, module));
      if (format_ == ConvertFormat::kBf16) {
        if (format == WeightFormat::kBf16) return {};
        out("weight", DType::kBf16, {rows, cols});
      } else {
        out("weight", DType::kF8E4m3, {rows, cols});
        out("weight_scale_inv", DType::kF32, {num_fp8_blocks(rows), num_fp8_blocks(cols)});
      }
    }
    job->linears.push_back({module, rows, cols});
    return {};
  }

  Status write_bf16(const LinearSpec& linear, SafetensorsWriter* writer) const {
    const auto rows =
        NIBBLE_TRY(SourceRows::open(source_, linear.module, linear.rows, linear.cols));
    std::vector<float> row(static_cast<size_t>(linear.cols));
    std::vector<uint16_t> out(static_cast<size_t>(linear.rows * linear.cols));
    for (int64_t r = 0; r < linear.rows; ++r) {
      NIBBLE_TRY(rows.read(r, r + 1, row.data()));
      std::transform(row.begin(), row.end(), out.begin() + r * linear.cols, float_to_bf16);
    }
    release_linear(source_, linear.module);
    return writer->write(with_suffix(linear.module, "weight"), std::as_bytes(std::span(out)));
  }

  Status write_fp8(const LinearSpec& linear, SafetensorsWriter* writer) const {
    const std::string weight = with_suffix(linear.module, "weight");
    const std::string scale = with_suffix(linear.module, "weight_scale_inv");
    if (NIBBLE_TRY(find_weight_format(source_, linear.module)) == WeightFormat::kFp8Block) {
      const auto view = NIBBLE_TRY(source_.read(weight));
      const auto scales = NIBBLE_TRY(source_.read(scale));
      NIBBLE_TRY(writer->write(weight, view.bytes));
      return writer->write(scale, scales.bytes);
    }
    const auto rows =
        NIBBLE_TRY(SourceRows::open(source_, linear.module, linear.rows, linear.cols));
    std::vector<float> values(static_cast<size_t>(linear.rows * linear.cols));
    NIBBLE_TRY(rows.read(0, linear.rows, values.data()));
    std::transform(values.begin(), values.end(), values.begin(), round_to_bf16);
    const auto tensor = NIBBLE_TRY(
        with_context(quantize_fp8_block(values, linear.rows, linear.cols), linear.module));
    release_linear(source_, linear.module);
    NIBBLE_TRY(writer->write(weight, std::as_bytes(std::span(tensor.codes))));
    return writer->write(scale, std::as_bytes(std::span(tensor.scales_inv)));
  }

  // The same bytes under other names, scalars as reciprocals.
  Status write_layout(const std::string& module, std::string_view codes_in,
                      std::string_view codes_out, std::string_view global_in,
                      std::string_view global_out, std::string_view input_in,
                      std::string_view input_out, SafetensorsWriter* writer) {
    const auto codes = NIBBLE_TRY(source_.read(with_suffix(module, codes_in)));
    NIBBLE_TRY(writer->write(with_suffix(module, codes_out), codes.bytes));
    const auto scales = NIBBLE_TRY(source_.read(with_suffix(module, "weight_scale")));
    NIBBLE_TRY(writer->write(with_suffix(module, "weight_scale"), scales.bytes));
    NIBBLE_TRY(
        write_reciprocal(with_suffix(module, global_in), with_suffix(module, global_out), writer));
    if (source_.find(with_suffix(module, input_in)) == nullptr) return {};
    return write_reciprocal(with_suffix(module, input_in), with_suffix(module, input_out), writer);
  }

  Status write_reciprocal(const std::string& from, const std::string& to,
                          SafetensorsWriter* writer) {
    const auto view = NIBBLE_TRY(source_.read(from));
    if (view.shape.num_elements() != 1 ||
        (view.dtype != DType::kF32 && view.dtype != DType::kBf16)) {
      return corrupt(fmt::format("{} is {} {}, expected one F32", from, dtype_name(view.dtype),
                                 view.shape.to_string()));
    }
    const float value =
        view.dtype == DType::kBf16 ? bf16_to_float(*view.data<uint16_t>()) : *view.data<float>();
    float reciprocal = 1.0f / value;
    if (!(value > 0) || !std::isfinite(value) || !std::isfinite(reciprocal) || reciprocal == 0) {
      return corrupt(fmt::format("{} is {}, which has no reciprocal", from, value));
    }
    // A neighbour may be the one whose reciprocal is the value.
    for (const float candidate :
         {std::nextafter(reciprocal, 0.0f), std::nextafter(reciprocal, INFINITY)}) {
      if (1.0f / reciprocal != value && 1.0f / candidate == value) reciprocal = candidate;
    }
    if (1.0f / reciprocal != value) ++num_inexact_;
    return writer->write(to, std::as_bytes(std::span(&reciprocal, 1)));
  }

  const CheckpointSource& source_;
  const ConvertFormat format_;
  std::set<std::string, std::less<>> linears_;
  ConversionPlan plan_;
  int64_t num_converted_ = 0;
  std::atomic<int64_t> num_inexact_{0};
};

Status write_shards(Converter& converter, const fs::path& directory, const ConvertOptions& options,
                    int threads) {
  const ConversionPlan& plan = converter.plan();
  Progress progress("converting", plan.source_bytes, Progress::Unit::kBytes, options.show_progress);
  ThreadPool pool(threads);
  for (size_t shard = 0; shard < plan.shard_names.size(); ++shard) {
    std::vector<const ConversionJob*> jobs;
    std::vector<TensorInfo> tensors;
    for (const ConversionJob& job : plan.jobs) {
      if (job.shard != shard) continue;
      jobs.push_back(&job);
      tensors.insert(tensors.end(), job.outputs.begin(), job.outputs.end());
    }
    auto writer = NIBBLE_TRY(
        SafetensorsWriter::create(directory / plan.shard_names[shard], std::move(tensors)));
    std::vector<Status> results(jobs.size());
    std::atomic<bool> failed{false};
    pool.parallel_for(static_cast<int64_t>(jobs.size()), 1, [&](int64_t begin, int64_t end, int) {
      for (auto i = static_cast<size_t>(begin); i < static_cast<size_t>(end) && !failed; ++i) {
        results[i] = converter.run(*jobs[i], &writer);
        if (!results[i]) failed = true;
        progress.add(jobs[i]->source_bytes);
      }
    });
    for (Status& result : results) NIBBLE_TRY(std::move(result));
    NIBBLE_TRY(writer.commit());
  }
  progress.finish();
  return {};
}

}  // namespace

Result<ConvertFormat> parse_convert_format(std::string_view name) {
  for (size_t i = 0; i < std::size(kFormatNames); ++i) {
    if (name == kFormatNames[i]) return static_cast<ConvertFormat>(i);
  }
  const std::vector<std::string> known(std::begin(kFormatNames), std::end(kFormatNames));
  return invalid_argument(fmt::format("format '{}' is not supported, expected {}{}", name,
                                      fmt::join(known, ", "), did_you_mean(name, known)));
}

Result<ConvertReport> convert_checkpoint(const fs::path& in_path, const fs::path& out_path,
                                         const ConvertOptions& options) {
  const auto start = std::chrono::steady_clock::now();
  const fs::path in = NIBBLE_TRY(resolved_path(in_path));
  const fs::path out = NIBBLE_TRY(resolved_path(out_path));
  if (is_within(out, in) || is_within(in, out)) {
    return invalid_argument(fmt::format("output {} and source {} may not lie inside each other",
                                        out.string(), in.string()));
  }
  NIBBLE_TRY(OutputDirectory::check(out, options.overwrite));
  const auto source = NIBBLE_TRY(SafetensorsSource::open(in));
  const auto config = NIBBLE_TRY(load_config(in));
  Converter converter(*source, options.format);
  NIBBLE_TRY(converter.plan(config, std::max<uint64_t>(options.shard_bytes, 1)));
  const std::string config_text = NIBBLE_TRY(read_text_file(in / "config.json"));
  const auto configs = NIBBLE_TRY(converted_configs(in, config_text, options.format));

  auto directory = NIBBLE_TRY(OutputDirectory::create(out, options.overwrite));
  const int threads = options.threads > 0 ? options.threads : available_processors();
  NIBBLE_TRY(write_shards(converter, directory.partial_path(), options, threads));
  for (const std::string& name : NIBBLE_TRY(companion_files(in))) {
    const std::string text = NIBBLE_TRY(read_text_file(in / name));
    NIBBLE_TRY(write_text_file(directory.partial_path() / name, text));
  }
  for (const auto& [name, text] : configs) {
    NIBBLE_TRY(write_text_file(directory.partial_path() / name, text));
  }
  NIBBLE_TRY(write_text_file(directory.partial_path() / "model.safetensors.index.json",
                             index_json(converter.plan())));
  NIBBLE_TRY(check_interrupt());
  NIBBLE_TRY(directory.commit());
  ConvertReport report;
  report.num_converted_linears = converter.num_converted();
  report.num_inexact_scales = converter.num_inexact();
  report.num_output_tensors = converter.plan().num_output_tensors;
  report.output_bytes = converter.plan().output_bytes;
  report.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return report;
}

}  // namespace nibble
