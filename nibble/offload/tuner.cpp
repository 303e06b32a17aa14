#include "nibble/offload/tuner.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <condition_variable>
#include <iterator>
#include <mutex>
#include <random>

#include "nibble/base/error.h"
#include "nibble/base/mapped_file.h"
#include "nibble/offload/expert_file.h"
#include "nibble/offload/packed_expert.h"
#include "nibble/offload/slot_memory.h"

namespace nibble {
namespace {

using Clock = std::chrono::steady_clock;

constexpr size_t kRecordsUnderWay = 4;
constexpr uint64_t kExpertTestBytes = uint64_t{256} << 20;

double seconds_from(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

std::string_view io_name(IoBackend io) {
  switch (io) {
    case IoBackend::kAuto:
      return "auto";
    case IoBackend::kUring:
      return "uring";
    case IoBackend::kPread:
      return "pread";
    case IoBackend::kBuffered:
      return "buffered";
  }
  return "auto";
}

template <typename T>
bool parse_whole(std::string_view text, T* out) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), *out);
  return error == std::errc() && end == text.data() + text.size();
}

// Reads records into four buffers until the time is over.
class ReadTest {
 public:
  ReadTest(const ExpertFile& file, RecordReader& reader, double seconds)
      : file_(file), reader_(reader), seconds_(seconds) {}

  Result<double> run() {
    for (size_t i = 0; i < kRecordsUnderWay; ++i) {
      buffers_.push_back(NIBBLE_TRY(SlotMemory::allocate(file_.header().max_record_bytes)));
    }
    begin_ = Clock::now();
    std::unique_lock lock(mutex_);
    for (const SlotMemory& buffer : buffers_) start(buffer);
    changed_.wait(lock, [&] { return under_way_ == 0; });
    NIBBLE_TRY(std::move(status_));
    return static_cast<double>(bytes_) / seconds_from(begin_);
  }

 private:
  // With the lock held.
  void start(const SlotMemory& buffer) {
    const auto index = file_.index();
    const ExpertIndexEntry& entry = index[rng_() % index.size()];
    ++under_way_;
    reader_.start(entry.offset, buffer.bytes().first(entry.bytes), true,
                  [this, &buffer, bytes = entry.bytes](Status status) {
                    const std::lock_guard lock(mutex_);
                    --under_way_;
                    bytes_ += bytes;
                    if (!status) status_ = std::move(status);
                    if (status_ && seconds_from(begin_) < seconds_) start(buffer);
                    changed_.notify_all();
                  });
  }

  const ExpertFile& file_;
  RecordReader& reader_;
  double seconds_;
  std::vector<SlotMemory> buffers_;
  Clock::time_point begin_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::mt19937 rng_{17};
  size_t under_way_ = 0;
  uint64_t bytes_ = 0;
  Status status_;
};

}  // namespace

Result<OffloadTuning> parse_tuning(std::string_view text) {
  OffloadTuning tuning;
  for (size_t number = 1; !text.empty(); ++number) {
    const size_t end = std::min(text.find('\n'), text.size());
    const std::string_view line = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    if (line.empty() || line.starts_with('#')) continue;
    const size_t space = std::min(line.find(' '), line.size());
    const std::string_view name = line.substr(0, space);
    const std::string_view value = line.substr(std::min(space + 1, line.size()));
    const auto wrong = [&] {
      return corrupt(fmt::format(
          "line {} is '{}', expected 'io NAME', 'io_depth 1..256', 'expert_memory BYTES' or "
          "'preset NAME'",
          number, line));
    };
    if (name == "io") {
      const auto io = parse_io_backend(value);
      if (!io) return wrong();
      tuning.io = *io;
    } else if (name == "io_depth") {
      int depth = 0;
      if (!parse_whole(value, &depth) || depth < 1 || depth > 256) return wrong();
      tuning.io_depth = depth;
    } else if (name == "expert_memory") {
      uint64_t bytes = 0;
      if (!parse_whole(value, &bytes) || bytes == 0) return wrong();
      tuning.expert_memory = bytes;
    } else if (name == "preset") {
      const auto preset = parse_expert_preset(value);
      if (!preset) return wrong();
      tuning.preset = *preset;
    } else {
      return wrong();
    }
  }
  return tuning;
}

std::string tuning_text(const OffloadTuning& tuning) {
  std::string text;
  auto out = std::back_inserter(text);
  if (tuning.io) fmt::format_to(out, "io {}\n", io_name(*tuning.io));
  if (tuning.io_depth) fmt::format_to(out, "io_depth {}\n", *tuning.io_depth);
  if (tuning.expert_memory) fmt::format_to(out, "expert_memory {}\n", *tuning.expert_memory);
  if (tuning.preset) fmt::format_to(out, "preset {}\n", expert_preset_name(*tuning.preset));
  return text;
}

Result<OffloadTuning> load_tuning(const std::filesystem::path& directory) {
  const std::filesystem::path path = directory / kTuningFileName;
  std::error_code error;
  if (!std::filesystem::exists(path, error)) return OffloadTuning();
  const std::string text = NIBBLE_TRY(read_text_file(path));
  return with_context(parse_tuning(text), path.string());
}

Result<double> measure_reads(const std::filesystem::path& path, const ReaderOptions& options,
                             double seconds) {
  const ExpertFile file = NIBBLE_TRY(ExpertFile::open(path));
  const auto reader = NIBBLE_TRY(RecordReader::open(path, options));
  return ReadTest(file, *reader, seconds).run();
}

Result<double> measure_experts(const std::filesystem::path& path, const ModelConfig& config,
                               Kernels& kernels, double seconds) {
  const ExpertFile file = NIBBLE_TRY(ExpertFile::open(path));
  const auto reader = NIBBLE_TRY(RecordReader::open(path, {}));
  const size_t count =
      std::clamp<size_t>(kExpertTestBytes / file.header().max_record_bytes, 1, file.index().size());
  std::vector<SlotMemory> buffers;
  std::vector<MlpWeight> experts;
  uint64_t bytes = 0;
  for (const ExpertIndexEntry& entry : file.index().first(count)) {
    buffers.push_back(NIBBLE_TRY(SlotMemory::allocate(entry.bytes)));
    std::mutex mutex;
    std::condition_variable came;
    std::optional<Status> read;
    reader->start(entry.offset, buffers.back().bytes(), true, [&](Status status) {
      const std::lock_guard lock(mutex);
      read = std::move(status);
      came.notify_all();
    });
    {
      std::unique_lock lock(mutex);
      came.wait(lock, [&] { return read.has_value(); });
    }
    NIBBLE_TRY(*std::move(read));
    experts.push_back(NIBBLE_TRY(read_expert_record(
        buffers.back().bytes(), entry.layer, entry.expert,
        {config.hidden_size, config.moe_intermediate_size}, ActivationFormat::kUnquantized)));
    bytes += entry.bytes;
  }
  std::vector<float> in(static_cast<size_t>(config.hidden_size), 0.5f);
  std::vector<float> out(in.size());
  const MatrixView x{in.data(), DType::kF32, 1, config.hidden_size, config.hidden_size};
  const MatrixView y{out.data(), DType::kF32, 1, config.hidden_size, config.hidden_size};
  const auto begin = Clock::now();
  uint64_t done = 0;
  do {
    for (const MlpWeight& expert : experts) kernels.mlp(x, expert, y);
    NIBBLE_TRY(kernels.device().synchronize());
    done += bytes;
  } while (seconds_from(begin) < seconds);
  return static_cast<double>(done) / seconds_from(begin);
}

double TuneReport::bound(double share) const {
  double rate = 0;
  for (const Reads& measured : reads) {
    if (measured.options.backend == choice.io && measured.options.depth == choice.io_depth) {
      rate = measured.rate;
    }
  }
  const auto bytes = static_cast<double>(token_bytes);
  return 1 / std::max(expert_rate > 0 ? bytes / expert_rate : 0, (1 - share) * bytes / rate);
}

Result<TuneReport> tune_offload(const std::filesystem::path& directory, const ModelConfig& config,
                                Kernels& kernels, uint64_t rest_bytes, ExpertPreset preset) {
  const std::filesystem::path path = directory / kExpertFileName;
  const ExpertFile file = NIBBLE_TRY(ExpertFile::open(path));
  TuneReport report;
  report.rest_bytes = rest_bytes;
  for (const ExpertIndexEntry& entry : file.index()) report.expert_bytes += entry.bytes;
  report.token_bytes = moe_layers(config, false).size() *
                       static_cast<uint64_t>(config.num_experts_per_tok) *
                       file.header().max_record_bytes;
  if (file.layout() == kernels.packed_layout()) {
    report.expert_rate = NIBBLE_TRY(measure_experts(path, config, kernels, 1.0));
  }
  double fastest = 0;
  for (const IoBackend io : {IoBackend::kUring, IoBackend::kPread}) {
    for (const int depth : {4, 8, 16, 32}) {
      ReaderOptions options;
      options.backend = io;
      options.depth = depth;
      const auto reader = RecordReader::open(path, options);
      // Where io_uring is forbidden, there is one way less to choose from.
      if (!reader && reader.error().code == ErrorCode::kUnsupported) continue;
      if (!reader) return tl::unexpected(reader.error());
      const double rate = NIBBLE_TRY(measure_reads(path, options, 1.0));
      report.reads.push_back({options, (*reader)->description(), rate});
      fastest = std::max(fastest, rate);
    }
  }
  const auto chosen = std::find_if(report.reads.begin(), report.reads.end(),
                                   [&](const auto& r) { return r.rate >= 0.97 * fastest; });
  report.choice.io = chosen->options.backend;
  report.choice.io_depth = chosen->options.depth;
  report.free_bytes = NIBBLE_TRY(kernels.device().memory()).free_bytes;
  const double room =
      preset_values(preset).share_of_free *
      (static_cast<double>(report.free_bytes) - 1.2 * static_cast<double>(report.rest_bytes));
  if (preset != ExpertPreset::kBalanced) report.choice.preset = preset;
  const auto least = static_cast<double>(file.header().max_record_bytes);
  report.choice.expert_memory =
      static_cast<uint64_t>(std::clamp(room, least, static_cast<double>(report.expert_bytes)));
  return report;
}

}  // namespace nibble
