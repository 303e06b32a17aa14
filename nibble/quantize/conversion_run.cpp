#include "nibble/quantize/conversion_run.h"

#include <fmt/format.h>

#include <atomic>
#include <deque>
#include <mutex>
#include <new>
#include <optional>

#include "nibble/base/error.h"
#include "nibble/base/interrupt.h"
#include "nibble/base/progress.h"
#include "nibble/base/text.h"
#include "nibble/base/thread_pool.h"
#include "nibble/quantize/convert_job.h"
#include "nibble/quantize/shard_file.h"

namespace nibble {
namespace {

// The first error of several threads; the others are asked to stop.
class FirstError {
 public:
  void set(Error error) {
    const std::lock_guard lock(mutex_);
    if (!error_) error_ = std::move(error);
    stop_.store(true, std::memory_order_relaxed);
  }
  bool stopped() const { return stop_.load(std::memory_order_relaxed); }
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

class ConversionRun {
 public:
  ConversionRun(const CheckpointSource& source, const ConversionPlan& plan,
                const std::filesystem::path& directory, ConversionJournal& journal,
                const ConversionRunOptions& options)
      : source_(source),
        plan_(plan),
        journal_(journal),
        options_(options),
        pool_(options.threads),
        done_(plan.jobs.size()) {
    for (const std::string& name : plan.shard_names) {
      shards_.emplace_back();
      shards_.back().index = shards_.size() - 1;
      shards_.back().path = directory / name;
    }
    for (size_t i = 0; i < plan.jobs.size(); ++i) shards_[plan.jobs[i].shard].jobs.push_back(i);
  }

  Result<ConversionRunResult> run() {
    NIBBLE_TRY(take_up());
    Progress progress("quantizing", plan_.source_bytes - result_.reused_bytes,
                      Progress::Unit::kBytes, options_.show_progress);
    progress_ = &progress;
    NIBBLE_TRY(finish_full_shards());
    for (size_t begin = 0; begin < plan_.jobs.size();) {
      size_t end = begin;
      while (end < plan_.jobs.size() && plan_.jobs[end].layer == plan_.jobs[begin].layer) ++end;
      NIBBLE_TRY(run_layer(begin, end));
      begin = end;
    }
    progress.finish();
    for (const Shard& shard : shards_) result_.shard_sha256.push_back(shard.sha256);
    return std::move(result_);
  }

 private:
  struct Shard {
    size_t index = 0;
    std::filesystem::path path;
    std::vector<size_t> jobs;
    size_t jobs_left = 0;
    std::string sha256;  // once it is complete
    std::mutex mutex;
    std::optional<ShardFile> file;
  };

  // What an earlier run has left: complete shards whose SHA-256 is right, and jobs in others.
  Status take_up() {
    FirstError first_error;
    std::atomic<uint64_t> reused{0};
    const auto look = [&](int64_t begin, int64_t end, int) {
      for (auto i = static_cast<size_t>(begin); i < static_cast<size_t>(end); ++i) {
        auto found = take_up_shard(i);
        if (!found) return first_error.set(std::move(found).error());
        reused += *found;
      }
    };
    pool_.parallel_for(static_cast<int64_t>(shards_.size()), 1, look);
    result_.reused_bytes = reused;
    return first_error.status();
  }

  // Source bytes that need not be converted again.
  Result<uint64_t> take_up_shard(size_t index) {
    Shard& shard = shards_[index];
    shard.jobs_left = shard.jobs.size();
    uint64_t reused = 0;
    std::error_code ignored;
    const auto sum = journal_.shards().find(index);
    if (sum != journal_.shards().end() && std::filesystem::exists(shard.path, ignored)) {
      const std::string found = NIBBLE_TRY(file_sha256(shard.path));
      if (found == sum->second) {
        shard.sha256 = found;
        shard.jobs_left = 0;
        for (const size_t job : shard.jobs) {
          done_[job] = 1;
          reused += plan_.jobs[job].source_bytes;
        }
        return reused;
      }
    }
    // A shard that was renamed and then found wanting, or whose line was lost, is checked by jobs.
    std::filesystem::path part = shard.path;
    part += ".part";
    if (!std::filesystem::exists(part, ignored)) {
      std::filesystem::rename(shard.path, part, ignored);
    }
    for (const size_t job : shard.jobs) {
      const auto entry = journal_.jobs().find(job);
      if (entry == journal_.jobs().end()) continue;
      NIBBLE_TRY(check_interrupt());
      ShardFile* const file = NIBBLE_TRY(open_shard(shard));
      const std::string found = NIBBLE_TRY(JobOutput::stored_hash(*file, plan_.jobs[job]));
      if (found != entry->second) continue;
      done_[job] = 1;
      --shard.jobs_left;
      reused += plan_.jobs[job].source_bytes;
    }
    return reused;
  }

  // Shards that lack nothing but their end.
  Status finish_full_shards() {
    for (Shard& shard : shards_) {
      if (shard.jobs_left > 0 || !shard.sha256.empty()) continue;
      NIBBLE_TRY(open_shard(shard));
      NIBBLE_TRY(finish_shard(shard));
    }
    return {};
  }

  Result<ShardFile*> open_shard(Shard& shard) {
    const std::lock_guard lock(shard.mutex);
    if (!shard.file) {
      std::vector<TensorInfo> tensors;
      for (const size_t job : shard.jobs) {
        const auto& outputs = plan_.jobs[job].outputs;
        tensors.insert(tensors.end(), outputs.begin(), outputs.end());
      }
      shard.file.emplace(NIBBLE_TRY(ShardFile::open(shard.path, std::move(tensors))));
    }
    return &*shard.file;
  }

  Status finish_shard(Shard& shard) {
    NIBBLE_TRY(shard.file->finish());
    shard.file.reset();
    shard.sha256 = NIBBLE_TRY(file_sha256(shard.path));
    return journal_.add("shard", shard.index, shard.sha256);
  }

  Status run_layer(size_t begin, size_t end) {
    const int layer = plan_.jobs[begin].layer;
    std::vector<size_t> with_data;
    std::vector<size_t> others;
    for (size_t i = begin; i < end; ++i) {
      if (done_[i] != 0) continue;
      const bool alone =
          options_.algorithm.needs_activations() && plan_.jobs[i].kind == JobKind::kQuantize;
      (alone ? with_data : others).push_back(i);
    }
    const bool calibrated = options_.calibration != nullptr && layer >= 0;
    if (calibrated) NIBBLE_TRY(options_.calibration->prepare(layer, !with_data.empty()));

    FirstError first_error;
    const auto work = [&](int64_t first, int64_t last, int) {
      for (auto i = static_cast<size_t>(first); i < static_cast<size_t>(last); ++i) {
        if (first_error.stopped()) return;
        prefetch(others, i + static_cast<size_t>(options_.threads));
        auto status = run_job(others[i], first_error.stop(), nullptr);
        if (!status) return first_error.set(std::move(status).error());
      }
    };
    pool_.parallel_for(static_cast<int64_t>(others.size()), 1, work);
    NIBBLE_TRY(first_error.status());
    // These use the threads inside a matrix.
    for (const size_t job : with_data) NIBBLE_TRY(run_job(job, first_error.stop(), &pool_));
    if (!calibrated) return {};
    std::vector<std::filesystem::path> shards;
    for (size_t i = begin; i < end; ++i) {
      const auto& path = shards_[plan_.jobs[i].shard].path;
      if (shards.empty() || shards.back() != path) shards.push_back(path);
    }
    return options_.calibration->done(layer, shards);
  }

  void prefetch(const std::vector<size_t>& jobs, size_t index) const {
    if (index >= jobs.size()) return;
    const ConversionJob& job = plan_.jobs[jobs[index]];
    if (job.kind == JobKind::kCopy) source_.prefetch(job.tensor);
    for (const LinearSpec& linear : job.linears) source_.prefetch(linear.module + ".weight");
  }

  Status run_job(size_t index, const std::atomic<bool>& stop, ThreadPool* pool) {
    const ConversionJob& job = plan_.jobs[index];
    try {
      Shard& shard = shards_[job.shard];
      ShardFile* const file = NIBBLE_TRY(open_shard(shard));
      JobOutput output(*file, job);
      const Activations* const activations =
          options_.calibration == nullptr ? nullptr : &options_.calibration->activations();
      NIBBLE_TRY(
          convert_job({source_, options_.algorithm, activations, options_.chunk_bytes, stop, pool},
                      job, &output));
      NIBBLE_TRY(journal_.add("job", index, output.hash()));
      progress_->add(job.source_bytes);
      file->start_writeback();
      {
        const std::lock_guard lock(shard.mutex);
        if (--shard.jobs_left > 0) return {};
      }
      return finish_shard(shard);
    } catch (const std::bad_alloc&) {  // a pool's task must not throw
      return out_of_memory(
          fmt::format("no memory for {} of output", format_bytes(job.output_bytes)));
    }
  }

  const CheckpointSource& source_;
  const ConversionPlan& plan_;
  ConversionJournal& journal_;
  const ConversionRunOptions& options_;
  ThreadPool pool_;
  std::vector<char> done_;  // a char each: written by several threads
  std::deque<Shard> shards_;
  Progress* progress_ = nullptr;
  ConversionRunResult result_;
};

}  // namespace

Result<ConversionRunResult> run_conversion(const CheckpointSource& source,
                                           const ConversionPlan& plan,
                                           const std::filesystem::path& directory,
                                           ConversionJournal& journal,
                                           const ConversionRunOptions& options) {
  return ConversionRun(source, plan, directory, journal, options).run();
}

}  // namespace nibble
