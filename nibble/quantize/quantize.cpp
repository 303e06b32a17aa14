#include "nibble/quantize/quantize.h"

#include <fmt/format.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <mutex>
#include <new>
#include <optional>

#include "nibble/base/cpu_features.h"
#include "nibble/base/error.h"
#include "nibble/base/interrupt.h"
#include "nibble/base/mapped_file.h"
#include "nibble/base/output_file.h"
#include "nibble/base/progress.h"
#include "nibble/base/text.h"
#include "nibble/base/thread_pool.h"
#include "nibble/checkpoint/config.h"
#include "nibble/checkpoint/quant_config.h"
#include "nibble/checkpoint/safetensors_source.h"
#include "nibble/checkpoint/safetensors_writer.h"
#include "nibble/quantize/config_files.h"
#include "nibble/quantize/conversion_plan.h"
#include "nibble/quantize/convert_job.h"
#include "nibble/quantize/output_directory.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

// The output shards. A file is opened by the first job that writes into it and committed by the
// last, so that few are open at a time and one syncs while others are filled.
class ShardWriters {
 public:
  ShardWriters(const ConversionPlan& plan, const fs::path& directory)
      : shards_(plan.shard_names.size()) {
    for (size_t i = 0; i < shards_.size(); ++i) shards_[i].path = directory / plan.shard_names[i];
    for (const ConversionJob& job : plan.jobs) {
      Shard& shard = shards_[job.shard];
      ++shard.jobs_left;
      shard.tensors.insert(shard.tensors.end(), job.outputs.begin(), job.outputs.end());
    }
  }

  Result<SafetensorsWriter*> open(size_t index) {
    Shard& shard = shards_[index];
    const std::lock_guard lock(shard.mutex);
    if (!shard.writer) {
      shard.writer.emplace(NIBBLE_TRY(SafetensorsWriter::create(shard.path, shard.tensors)));
    }
    return &*shard.writer;
  }

  Status job_done(size_t index) {
    Shard& shard = shards_[index];
    {
      const std::lock_guard lock(shard.mutex);
      if (--shard.jobs_left > 0) return {};
    }
    NIBBLE_TRY(shard.writer->commit());
    shard.writer.reset();
    return {};
  }

 private:
  struct Shard {
    fs::path path;
    std::vector<TensorInfo> tensors;
    size_t jobs_left = 0;
    std::mutex mutex;
    std::optional<SafetensorsWriter> writer;
  };
  std::vector<Shard> shards_;
};

// The first error of several threads; the others are asked to stop.
class FirstError {
 public:
  void set(Error error) {
    const std::lock_guard lock(mutex_);
    if (!error_) error_ = std::move(error);
    stop_.store(true, std::memory_order_relaxed);
  }
  const std::atomic<bool>& stop() const { return stop_; }
  Status status() const {
    if (error_) return tl::unexpected(*error_);
    return {};
  }

 private:
  std::mutex mutex_;
  std::optional<Error> error_;
  std::atomic<bool> stop_{false};
};

Status run_job(const CheckpointSource& source, const ConversionJob& job,
               const std::atomic<bool>& stop, ShardWriters* shards) {
  try {
    SafetensorsWriter* const writer = NIBBLE_TRY(shards->open(job.shard));
    NIBBLE_TRY(convert_job(source, job, stop, writer));
    return shards->job_done(job.shard);
  } catch (const std::bad_alloc&) {  // a pool's task must not throw
    return out_of_memory(fmt::format("no memory for {} of output", format_bytes(job.output_bytes)));
  }
}

Status write_tensors(const CheckpointSource& source, const ConversionPlan& plan,
                     const fs::path& directory, int threads, bool show_progress) {
  ShardWriters shards(plan, directory);
  FirstError first_error;
  Progress progress("quantizing", plan.source_bytes, Progress::Unit::kBytes, show_progress);
  ThreadPool pool(threads);
  pool.parallel_for(static_cast<int64_t>(plan.jobs.size()), 1,
                    [&](int64_t begin, int64_t end, int /*thread_id*/) {
                      for (int64_t i = begin; i < end; ++i) {
                        if (first_error.stop().load(std::memory_order_relaxed)) return;
                        const ConversionJob& job = plan.jobs[static_cast<size_t>(i)];
                        auto status = run_job(source, job, first_error.stop(), &shards);
                        if (!status) {
                          first_error.set(std::move(status).error());
                          return;
                        }
                        progress.add(job.source_bytes);
                      }
                    });
  NIBBLE_TRY(first_error.status());
  progress.finish();
  return {};
}

struct SmallFile {
  std::string name;
  std::string text;
};

Result<std::vector<SmallFile>> small_files(const fs::path& in, const ModelConfig& config,
                                           const ConversionPlan& plan, QuantizeScheme scheme) {
  std::vector<SmallFile> files;
  for (const std::string& name : NIBBLE_TRY(companion_files(in))) {
    std::string text = NIBBLE_TRY(read_text_file(in / name));
    files.push_back({name, std::move(text)});
  }
  const auto excluded = excluded_modules(config, scheme);
  const fs::path config_path = in / "config.json";
  const std::string config_text = NIBBLE_TRY(read_text_file(config_path));
  std::string new_config = NIBBLE_TRY(
      quantized_config_json(config_text, config_path.string(), excluded, NIBBLE_VERSION));
  files.push_back({"config.json", std::move(new_config)});
  files.push_back({"hf_quant_config.json", hf_quant_config_json(excluded, NIBBLE_VERSION)});
  files.push_back({"model.safetensors.index.json", index_json(plan)});
  return files;
}

// Header entries are '"name":{"dtype":"F8_E4M3","shape":[n,n],"data_offsets":[n,n]},': 120 bytes
// and the name are more than enough. File systems round up to blocks.
uint64_t disk_bytes(const ConversionPlan& plan, const std::vector<SmallFile>& files) {
  constexpr uint64_t kEntry = 120;
  constexpr uint64_t kBlock = 4096;
  uint64_t bytes = plan.output_bytes;
  for (const ConversionJob& job : plan.jobs) {
    for (const TensorInfo& output : job.outputs) bytes += output.name.size() + kEntry;
  }
  for (const SmallFile& file : files) bytes += file.text.size();
  return bytes + kBlock * (plan.shard_names.size() + files.size() + 1);
}

Status check_places(const fs::path& in, const fs::path& out) {
  std::error_code error;
  if (!fs::is_directory(in, error)) {
    return not_found(fmt::format("{} is not a checkpoint folder", in.string()));
  }
  if (is_within(out, in) || is_within(in, out)) {
    return invalid_argument(fmt::format("output {} and source {} may not lie inside each other",
                                        out.string(), in.string()));
  }
  return {};
}

}  // namespace

double QuantizeReport::ratio() const {
  return output_bytes == 0 ? 0
                           : static_cast<double>(source_bytes) / static_cast<double>(output_bytes);
}

double QuantizeReport::quantized_ratio() const {
  return quantized_output_bytes == 0 ? 0
                                     : static_cast<double>(quantized_source_bytes) /
                                           static_cast<double>(quantized_output_bytes);
}

double QuantizeReport::gb_per_second() const {
  return seconds > 0 ? static_cast<double>(source_bytes) / 1e9 / seconds : 0;
}

Result<QuantizeReport> quantize_checkpoint(const fs::path& in_path, const fs::path& out_path,
                                           const QuantizeOptions& options) {
  if (options.threads < 0) {
    return invalid_argument(
        fmt::format("threads is {}, expected 0 (all) or more", options.threads));
  }
  if (options.shard_bytes == 0)
    return invalid_argument("the shard size is 0, expected 1 byte or more");
  const fs::path in = NIBBLE_TRY(resolved_path(in_path));
  const fs::path out = NIBBLE_TRY(resolved_path(out_path));
  NIBBLE_TRY(check_places(in, out));
  NIBBLE_TRY(OutputDirectory::check(out, options.overwrite));

  const auto start = std::chrono::steady_clock::now();
  const auto source = NIBBLE_TRY(SafetensorsSource::open(in));
  const auto config = NIBBLE_TRY(load_config(in));
  const auto plan =
      NIBBLE_TRY(plan_conversion(*source, config, options.scheme, options.shard_bytes));
  const auto quant_config = NIBBLE_TRY(load_quant_config(in, false));
  const auto files = NIBBLE_TRY(small_files(in, config, plan, options.scheme));

  QuantizeReport report;
  report.scheme = options.scheme;
  report.dry_run = options.dry_run;
  report.source_format = plan.source_is_fp8 ? "FP8" : "BF16";
  report.num_source_tensors = plan.num_source_tensors;
  report.num_output_tensors = plan.num_output_tensors;
  report.num_quantized_linears = plan.num_quantized_linears;
  report.num_shards = static_cast<int64_t>(plan.shard_names.size());
  report.source_bytes = plan.source_bytes;
  report.output_bytes = plan.output_bytes;
  report.quantized_source_bytes = plan.quantized_source_bytes;
  report.quantized_output_bytes = plan.quantized_output_bytes;
  report.needed_disk_bytes = disk_bytes(plan, files);
  report.free_disk_bytes = NIBBLE_TRY(free_disk_bytes(out.parent_path()));
  report.threads = options.threads > 0 ? options.threads : available_processors();
  report.warnings = source->warnings();
  report.warnings.insert(report.warnings.end(), quant_config.warnings.begin(),
                         quant_config.warnings.end());
  if (options.dry_run) return report;

  if (report.free_disk_bytes < report.needed_disk_bytes) {
    return unavailable(fmt::format("{} needs {}, but only {} are free there", out.string(),
                                   format_bytes(report.needed_disk_bytes),
                                   format_bytes(report.free_disk_bytes)));
  }
  auto directory = NIBBLE_TRY(OutputDirectory::create(out, options.overwrite));
  NIBBLE_TRY(write_tensors(*source, plan, directory.partial_path(), report.threads,
                           options.show_progress));
  for (const SmallFile& file : files) {
    NIBBLE_TRY(write_text_file(directory.partial_path() / file.name, file.text));
  }
  NIBBLE_TRY(check_interrupt());
  NIBBLE_TRY(directory.commit());
  report.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return report;
}

}  // namespace nibble
