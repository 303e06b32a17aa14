#include "nibble/quantize/quantize.h"

#include <fmt/format.h>
#include <sys/stat.h>
#include <xxhash.h>

#include <algorithm>
#include <chrono>
#include <memory>

#include "nibble/base/cpu_features.h"
#include "nibble/base/error.h"
#include "nibble/base/interrupt.h"
#include "nibble/base/mapped_file.h"
#include "nibble/base/output_file.h"
#include "nibble/base/text.h"
#include "nibble/checkpoint/config.h"
#include "nibble/checkpoint/quant_config.h"
#include "nibble/checkpoint/safetensors_source.h"
#include "nibble/quantize/calibrator.h"
#include "nibble/quantize/config_files.h"
#include "nibble/quantize/conversion_journal.h"
#include "nibble/quantize/conversion_plan.h"
#include "nibble/quantize/conversion_run.h"
#include "nibble/quantize/convert_job.h"
#include "nibble/quantize/expected_time.h"
#include "nibble/quantize/model_card.h"
#include "nibble/quantize/output_directory.h"
#include "nibble/quantize/shard_file.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

constexpr const char* kJournalName = "journal";

struct SmallFile {
  std::string name;
  std::string text;
};

Result<std::vector<SmallFile>> small_files(const fs::path& in, const ModelConfig& config,
                                           const ConversionPlan& plan,
                                           const QuantizeOptions& options) {
  std::vector<SmallFile> files;
  for (const std::string& name : NIBBLE_TRY(companion_files(in))) {
    std::string text = NIBBLE_TRY(read_text_file(in / name));
    files.push_back({name, std::move(text)});
  }
  const auto excluded = excluded_modules(config, options.recipe);
  const fs::path config_path = in / "config.json";
  const std::string config_text = NIBBLE_TRY(read_text_file(config_path));
  std::string new_config = NIBBLE_TRY(quantized_config_json(
      config_text, config_path.string(), excluded, NIBBLE_VERSION, options.fp8_kv_cache));
  files.push_back({"config.json", std::move(new_config)});
  files.push_back({"hf_quant_config.json",
                   hf_quant_config_json(excluded, NIBBLE_VERSION, options.fp8_kv_cache)});
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

// What OutputFile leaves of a file when the process is killed: "README.md.tmp-17-0".
void remove_torn_files(const fs::path& directory) {
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(directory, ignored)) {
    if (entry.path().extension().string().starts_with(".tmp-")) fs::remove(entry.path(), ignored);
  }
}

// What an earlier run has written, as far as it takes room on the disk.
uint64_t stored_bytes(const fs::path& directory) {
  uint64_t bytes = 0;
  std::error_code error;
  for (fs::recursive_directory_iterator it(directory, error), end; !error && it != end;
       it.increment(error)) {
    struct stat info = {};
    if (::stat(it->path().c_str(), &info) == 0)
      bytes += static_cast<uint64_t>(info.st_blocks) * 512;
  }
  return bytes;
}

// After the rename: the journal, and with `overwrite` the folder that was replaced, which has none.
void remove_leftovers(const fs::path& out, bool overwrite) {
  std::error_code ignored;
  const fs::path partial = out.string() + ".partial";
  if (overwrite && !fs::exists(partial / kJournalName, ignored)) fs::remove_all(partial, ignored);
  fs::remove(out / kJournalName, ignored);
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

namespace {

// What decides the output's bytes, and the source's state: a run goes on only with the same.
Result<std::string> fingerprint(const fs::path& in, const SafetensorsSource& source,
                                const ConversionPlan& plan, const QuantizeOptions& options,
                                const std::vector<SmallFile>& files) {
  std::string text = fmt::format("{}\n{}\n{}\n{}\n", NIBBLE_VERSION, options.recipe.name(),
                                 options.algorithm.name(), options.shard_bytes);
  for (const std::string& name : source.shard_names()) {
    std::error_code error;
    const auto size = fs::file_size(in / name, error);
    const auto time = error ? fs::file_time_type() : fs::last_write_time(in / name, error);
    if (error) {
      return unavailable(fmt::format("cannot look at {}: {}", name, error.message()));
    }
    text += fmt::format("{} {} {}\n", name, size, time.time_since_epoch().count());
  }
  for (const ConversionJob& job : plan.jobs) {
    for (const TensorInfo& output : job.outputs) text += fmt::format("{}\n", output.name);
  }
  for (const SmallFile& file : files) text += fmt::format("{}\n{}\n", file.name, file.text);
  for (const auto& sample : options.samples) text += fmt::format("{}\n", fmt::join(sample, ","));
  if (!options.samples.empty()) {
    text += fmt::format("{} {}\n", options.backend, options.feed_quantized);
  }
  return fmt::format("{:016x}", XXH3_64bits(text.data(), text.size()));
}

// What the threads may hold of matrices, after what the program, the plan and, with samples, one
// layer take.
struct MemoryPlan {
  int threads = 1;
  int64_t chunk_bytes = 0;
  int64_t calibration_tokens = 0;  // of one batch
};

Result<MemoryPlan> plan_memory(const ConversionPlan& plan, const ModelConfig& config,
                               const QuantizeOptions& options) {
  constexpr uint64_t kProgram = uint64_t{48} << 20;
  constexpr int64_t kSmallestChunk = 256 << 10;
  constexpr int64_t kLargestChunk = 2 << 20;  // larger ones leave the processor's caches
  MemoryPlan memory;
  memory.threads = options.threads > 0 ? options.threads : available_processors();
  const uint64_t budget =
      options.max_memory > 0 ? options.max_memory : memory_info().available_bytes;
  uint64_t fixed = kProgram + 1500 * plan.jobs.size();
  if (options.algorithm.needs_activations()) {
    uint64_t largest = 0;
    for (const ConversionJob& job : plan.jobs) {
      if (job.kind != JobKind::kQuantize) continue;
      for (const LinearSpec& linear : job.linears) {
        largest = std::max(largest, data_driven_bytes(linear, options.algorithm));
      }
    }
    fixed += largest;
  }
  if (!options.samples.empty()) {
    const uint64_t layer = calibration_layer_bytes(config, plan.source_is_fp8);
    const uint64_t row = calibration_row_bytes(config);
    size_t longest = 0;
    for (const auto& sample : options.samples) longest = std::max(longest, sample.size());
    // Matrices are worked on when the layer is gone.
    const uint64_t with_layer = kProgram + 1500 * plan.jobs.size() + layer + longest * row;
    if (budget < with_layer) {
      return invalid_argument(fmt::format(
          "calibration needs {} (one layer of the model is {}), but --max-memory allows {}",
          format_bytes(with_layer), format_bytes(layer), format_bytes(budget)));
    }
    const uint64_t tokens = (budget - with_layer) / 2 / row + longest;
    memory.calibration_tokens = static_cast<int64_t>(std::min<uint64_t>(tokens, 4096));
    memory.calibration_tokens = std::max(memory.calibration_tokens, static_cast<int64_t>(longest));
  }
  const uint64_t least = fixed + 2 * kSmallestChunk;
  if (budget < least) {
    return invalid_argument(fmt::format("this conversion needs {}, but --max-memory allows {}",
                                        format_bytes(least), format_bytes(budget)));
  }
  const auto room = static_cast<int64_t>(std::min<uint64_t>(budget - fixed, uint64_t{1} << 40));
  memory.threads =
      static_cast<int>(std::clamp<int64_t>(room / (2 * kSmallestChunk), 1, memory.threads));
  memory.chunk_bytes = std::clamp(room / (2 * memory.threads), kSmallestChunk, kLargestChunk);
  return memory;
}

bool can_be_tried_again(ErrorCode code) {
  return code == ErrorCode::kCancelled || code == ErrorCode::kUnavailable ||
         code == ErrorCode::kOutOfMemory;
}

Status write_small_files(const fs::path& directory, const std::vector<SmallFile>& files,
                         const ConversionPlan& plan, const ConversionRunResult& result) {
  std::string sums;
  for (size_t i = 0; i < plan.shard_names.size(); ++i) {
    sums += fmt::format("{}  {}\n", result.shard_sha256[i], plan.shard_names[i]);
  }
  for (const SmallFile& file : files) {
    NIBBLE_TRY(write_text_file(directory / file.name, file.text));
    sums += fmt::format("{}  {}\n", NIBBLE_TRY(file_sha256(directory / file.name)), file.name);
  }
  return write_text_file(directory / "SHA256SUMS", sums);
}

}  // namespace

Result<QuantizeReport> quantize_checkpoint(const fs::path& in_path, const fs::path& out_path,
                                           const QuantizeOptions& options) {
  if (options.threads < 0) {
    return invalid_argument(
        fmt::format("threads is {}, expected 0 (all) or more", options.threads));
  }
  if (options.shard_bytes == 0)
    return invalid_argument("the shard size is 0, expected 1 byte or more");
  if (options.algorithm.needs_activations() && options.samples.empty()) {
    return invalid_argument(fmt::format("algorithm {} needs calibration data (--calibrate FILE)",
                                        options.algorithm.name()));
  }
  const fs::path in = NIBBLE_TRY(resolved_path(in_path));
  const fs::path out = NIBBLE_TRY(resolved_path(out_path));
  NIBBLE_TRY(check_places(in, out));
  // A journal in OUT: a run ended between the last rename and the journal's removal. If it was this
  // one, that is all that is left to do.
  std::error_code no_journal;
  const bool may_be_complete =
      options.resume && !options.dry_run && fs::is_regular_file(out / kJournalName, no_journal);
  if (!may_be_complete) NIBBLE_TRY(OutputDirectory::check(out, options.overwrite));

  const auto start = std::chrono::steady_clock::now();
  const auto source = NIBBLE_TRY(SafetensorsSource::open(in));
  const auto config = NIBBLE_TRY(load_config(in));
  const auto plan = NIBBLE_TRY(
      plan_conversion(*source, config, options.recipe, options.shard_bytes, options.kv_scales));
  const auto quant_config = NIBBLE_TRY(load_quant_config(in, false));
  const auto memory = NIBBLE_TRY(plan_memory(plan, config, options));
  NIBBLE_TRY(check_samples(options.samples, config));
  auto files = NIBBLE_TRY(small_files(in, config, plan, options));

  QuantizeReport report;
  report.recipe = options.recipe;
  report.algorithm = options.algorithm;
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
  for (const auto& sample : options.samples) {
    report.num_calibration_tokens += static_cast<int64_t>(sample.size());
  }
  report.needed_disk_bytes =
      disk_bytes(plan, files) + calibration_disk_bytes(config, report.num_calibration_tokens,
                                                       options.algorithm.needs_activations());
  report.free_disk_bytes = NIBBLE_TRY(free_disk_bytes(out.parent_path()));
  report.threads = memory.threads;
  report.warnings = source->warnings();
  report.warnings.insert(report.warnings.end(), quant_config.warnings.begin(),
                         quant_config.warnings.end());
  if (options.dry_run) {
    report.expected_seconds = expected_seconds(plan, config, options, memory.threads);
    return report;
  }
  files.push_back({"README.md", model_card(in.filename().string(), plan, options, NIBBLE_VERSION)});

  const std::string state = NIBBLE_TRY(fingerprint(in, *source, plan, options, files));
  if (may_be_complete && ConversionJournal::matches(out / kJournalName, state)) {
    remove_leftovers(out, options.overwrite);
    report.resumed = true;
    report.reused_bytes = plan.source_bytes;
    report.seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    return report;
  }

  auto directory = NIBBLE_TRY(OutputDirectory::create(out, options.overwrite, options.resume));
  report.resumed = directory.resumed();
  const uint64_t present = report.resumed ? stored_bytes(directory.partial_path()) : 0;
  if (report.free_disk_bytes + present < report.needed_disk_bytes) {
    return unavailable(fmt::format("{} needs {}, but only {} are free there", out.string(),
                                   format_bytes(report.needed_disk_bytes - present),
                                   format_bytes(report.free_disk_bytes)));
  }
  const auto convert = [&]() -> Status {
    const fs::path& partial = directory.partial_path();
    ConversionJournal journal = NIBBLE_TRY(ConversionJournal::open(partial / kJournalName, state));
    directory.keep(false);
    remove_torn_files(partial);
    std::unique_ptr<Calibrator> calibrator;
    if (!options.samples.empty()) {
      calibrator = NIBBLE_TRY(Calibrator::create(
          *source, config,
          {options.samples, partial / "calibration", options.backend, report.threads,
           memory.calibration_tokens, options.show_progress, options.feed_quantized}));
    }
    const auto result =
        NIBBLE_TRY(run_conversion(*source, plan, partial, journal,
                                  {options.algorithm, report.threads, memory.chunk_bytes,
                                   options.show_progress, calibrator.get()}));
    report.reused_bytes = result.reused_bytes;
    NIBBLE_TRY(check_interrupt());
    NIBBLE_TRY(write_small_files(partial, files, plan, result));
    calibrator.reset();
    std::error_code ignored;
    fs::remove_all(partial / "calibration", ignored);
    NIBBLE_TRY(directory.commit());
    // Only now: without it everything would be done again if the process ended before the rename.
    fs::remove(out / kJournalName, ignored);
    return {};
  };
  auto status = convert();
  if (!status) {
    Error error = std::move(status).error();
    if (can_be_tried_again(error.code)) {
      directory.keep(true);
      error.message += fmt::format("; what is done so far is in {}, and the same command goes on",
                                   directory.partial_path().string());
    }
    return tl::unexpected(std::move(error));
  }
  report.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return report;
}

}  // namespace nibble
