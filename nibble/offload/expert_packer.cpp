#include "nibble/offload/expert_packer.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <map>
#include <new>
#include <string>
#include <vector>

#include "nibble/base/error.h"
#include "nibble/base/interrupt.h"
#include "nibble/base/output_file.h"
#include "nibble/base/progress.h"
#include "nibble/base/text.h"
#include "nibble/base/thread_pool.h"
#include "nibble/offload/expert_format.h"
#include "nibble/offload/packed_expert.h"
#include "nibble/offload/slot_memory.h"

namespace nibble {
namespace {

// The file while it is written.
class PartFile {
 public:
  explicit PartFile(std::filesystem::path path) : path_(std::move(path)) {
    part_ = path_;
    part_ += ".part";
  }
  PartFile(const PartFile&) = delete;
  PartFile& operator=(const PartFile&) = delete;
  ~PartFile() {
    if (fd_ >= 0) ::close(fd_);
  }

  Status open() {
    fd_ = ::open(part_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (fd_ < 0) return system_error("cannot write " + part_.string(), errno);
    return {};
  }
  // Whether the file has all of the bytes.
  bool read(uint64_t offset, std::span<std::byte> bytes) const {
    size_t done = 0;
    while (done < bytes.size()) {
      const ssize_t n =
          ::pread(fd_, bytes.data() + done, bytes.size() - done, static_cast<off_t>(offset + done));
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) return false;
      done += static_cast<size_t>(n);
    }
    return true;
  }
  Status write(uint64_t offset, std::span<const std::byte> bytes) const {
    size_t done = 0;
    while (done < bytes.size()) {
      const ssize_t n = ::pwrite(fd_, bytes.data() + done, bytes.size() - done,
                                 static_cast<off_t>(offset + done));
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) return system_error("cannot write " + part_.string(), errno);
      done += static_cast<size_t>(n);
    }
    // A model is larger than memory: what is written goes to the disk as it comes.
    (void)::sync_file_range(fd_, static_cast<off_t>(offset), static_cast<off_t>(bytes.size()),
                            SYNC_FILE_RANGE_WRITE);
    return {};
  }
  // kUnavailable when the disk can't take what the file lacks of `bytes`.
  Status check_room(uint64_t bytes) const {
    struct stat status = {};
    if (::fstat(fd_, &status) != 0) return system_error("cannot read " + part_.string(), errno);
    const uint64_t taken = static_cast<uint64_t>(status.st_blocks) * 512;
    std::error_code error;
    const auto space =
        std::filesystem::space(part_.parent_path().empty() ? "." : part_.parent_path(), error);
    if (error || taken >= bytes || space.available >= bytes - taken) return {};
    return unavailable(fmt::format("{} needs {} more, and {} are free there", part_.string(),
                                   format_bytes(bytes - taken), format_bytes(space.available)));
  }
  Status resize(uint64_t bytes) const {
    if (::ftruncate(fd_, static_cast<off_t>(bytes)) == 0) return {};
    return system_error("cannot write " + part_.string(), errno);
  }
  Status finish() const {
    if (::fsync(fd_) != 0) return system_error("cannot write " + part_.string(), errno);
    if (::rename(part_.c_str(), path_.c_str()) != 0) {
      return system_error("cannot rename " + part_.string(), errno);
    }
    return sync_directory(path_.parent_path().empty() ? "." : path_.parent_path());
  }

 private:
  std::filesystem::path path_, part_;
  int fd_ = -1;
};

struct PackJob {
  ExpertFileHeader header;
  std::vector<ExpertIndexEntry> index;
  std::map<int, ExpertInputScales> scales;

  // Header and index as the file begins with them.
  std::vector<std::byte> front() const {
    std::vector<std::byte> bytes(header.first_record);
    std::memcpy(bytes.data(), &header, sizeof(header));
    std::memcpy(bytes.data() + kExpertAlignment, index.data(),
                index.size() * sizeof(ExpertIndexEntry));
    return bytes;
  }
};

Result<PackJob> plan_job(const CheckpointSource& source, const ModelConfig& config,
                         const Kernels& kernels, uint64_t fingerprint) {
  PackJob job;
  ExpertFileHeader& header = job.header;
  for (const int layer : moe_layers(config, true)) {
    job.scales[layer] = NIBBLE_TRY(expert_input_scales(source, config, layer));
    for (int e = 0; e < config.n_routed_experts; ++e) {
      const uint64_t bytes =
          NIBBLE_TRY(expert_record_bytes(source, config, kernels, layer, e, &header.formats));
      job.index.push_back({layer, e, 0, bytes});
      header.max_record_bytes = std::max(header.max_record_bytes, bytes);
    }
  }
  if (job.index.empty()) return unsupported("the model has no routed experts");
  header.num_experts = static_cast<uint32_t>(config.n_routed_experts);
  header.num_records = job.index.size();
  header.first_record =
      kExpertAlignment + align_expert_bytes(job.index.size() * sizeof(ExpertIndexEntry));
  uint64_t offset = header.first_record;
  for (ExpertIndexEntry& entry : job.index) {
    entry.offset = offset;
    offset += entry.bytes;
  }
  header.file_bytes = offset;
  header.hidden_size = config.hidden_size;
  header.moe_intermediate_size = config.moe_intermediate_size;
  header.source_fingerprint = fingerprint;
  const std::string_view layout = kernels.packed_layout();
  std::copy_n(layout.begin(), std::min(layout.size(), header.layout.size() - 1),
              header.layout.begin());
  header.index_checksum = expert_checksum(std::as_bytes(std::span(job.index)));
  seal(&header);
  return job;
}

// Reads or makes the records on all threads.
class RecordWriter {
 public:
  RecordWriter(const CheckpointSource& source, const ModelConfig& config, Kernels& kernels,
               const PackJob& job, const PartFile& file, bool resume)
      : source_(source),
        config_(config),
        kernels_(kernels),
        job_(job),
        file_(file),
        resume_(resume) {}

  Status run(int threads, Progress& progress) {
    ThreadPool pool(std::max(1, threads));
    for (int i = 0; i < pool.num_threads(); ++i) {
      buffers_.push_back(NIBBLE_TRY(SlotMemory::allocate(job_.header.max_record_bytes)));
    }
    std::vector<Status> results(job_.index.size());
    std::atomic<bool> failed{false};
    pool.parallel_for(
        static_cast<int64_t>(job_.index.size()), 1, [&](int64_t begin, int64_t end, int thread_id) {
          for (auto i = static_cast<size_t>(begin); i < static_cast<size_t>(end); ++i) {
            if (failed.load(std::memory_order_relaxed)) return;
            results[i] = interrupted() ? check_interrupt() : make(job_.index[i], thread_id);
            if (!results[i]) failed.store(true, std::memory_order_relaxed);
            progress.add(job_.index[i].bytes);
          }
        });
    for (Status& result : results) NIBBLE_TRY(std::move(result));
    return {};
  }
  int64_t num_reused() const { return num_reused_.load(); }

 private:
  Status make(const ExpertIndexEntry& entry, int thread_id) {
    const auto record = buffers_[static_cast<size_t>(thread_id)].bytes().first(entry.bytes);
    const ExpertShape shape{config_.hidden_size, config_.moe_intermediate_size};
    if (resume_ && file_.read(entry.offset, record) &&
        read_expert_record(record, entry.layer, entry.expert, shape,
                           ActivationFormat::kUnquantized)) {
      num_reused_.fetch_add(1);
      return {};
    }
    try {
      NIBBLE_TRY(pack_expert(source_, config_, kernels_, entry.layer, entry.expert,
                             job_.scales.at(entry.layer), record));
    } catch (const std::bad_alloc&) {  // a pool's task must not throw
      return out_of_memory(
          fmt::format("no memory left to pack {}", expert_record_name(entry.layer, entry.expert)));
    }
    return file_.write(entry.offset, record);
  }

  const CheckpointSource& source_;
  const ModelConfig& config_;
  Kernels& kernels_;
  const PackJob& job_;
  const PartFile& file_;
  bool resume_;
  std::vector<SlotMemory> buffers_;  // one for each thread
  std::atomic<int64_t> num_reused_{0};
};

}  // namespace

Result<PackExpertsReport> pack_experts(const CheckpointSource& source, const ModelConfig& config,
                                       Kernels& kernels, const std::filesystem::path& path,
                                       const PackExpertsOptions& options) {
  const auto start = std::chrono::steady_clock::now();
  const PackJob job = NIBBLE_TRY(plan_job(source, config, kernels, options.source_fingerprint));
  PartFile file(path);
  NIBBLE_TRY(file.open());
  const std::vector<std::byte> front = job.front();
  std::vector<std::byte> found(front.size());
  const bool resume = file.read(0, found) && found == front;
  if (!resume) NIBBLE_TRY(file.resize(0));
  NIBBLE_TRY(file.check_room(job.header.file_bytes));
  NIBBLE_TRY(file.resize(job.header.file_bytes));
  NIBBLE_TRY(file.write(0, front));

  Progress progress("packing experts", job.header.file_bytes - job.header.first_record,
                    Progress::Unit::kBytes, options.show_progress);
  RecordWriter writer(source, config, kernels, job, file, resume);
  NIBBLE_TRY(writer.run(options.threads, progress));
  progress.finish();
  NIBBLE_TRY(file.finish());
  PackExpertsReport report;
  report.num_records = static_cast<int64_t>(job.index.size());
  report.num_reused = writer.num_reused();
  report.file_bytes = job.header.file_bytes;
  report.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return report;
}

}  // namespace nibble
