// What this machine does with a packed model, measured; and the choice that follows, kept in a
// small text file beside the model.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/base/result.h"
#include "nibble/checkpoint/config.h"
#include "nibble/kernels/kernels.h"
#include "nibble/offload/expert_preset.h"
#include "nibble/offload/record_reader.h"

namespace nibble {

// The file's name within a packed checkpoint folder.
inline constexpr std::string_view kTuningFileName = "offload.txt";

// What is not said here is the default's business.
struct OffloadTuning {
  std::optional<IoBackend> io;
  std::optional<int> io_depth;
  std::optional<uint64_t> expert_memory;
  std::optional<ExpertPreset> preset;
};

// Lines "io NAME", "io_depth N", "expert_memory BYTES", "preset NAME"; # begins a comment. Errors:
// kCorrupt naming the line.
Result<OffloadTuning> parse_tuning(std::string_view text);
std::string tuning_text(const OffloadTuning& tuning);

// The folder's; empty when it has none. Errors: kCorrupt naming file and line.
Result<OffloadTuning> load_tuning(const std::filesystem::path& directory);

// Bytes a second of reads of whole records at random places, four at a time, for about `seconds`.
// Errors: those of ExpertFile::open and RecordReader; a failed read.
Result<double> measure_reads(const std::filesystem::path& file, const ReaderOptions& options,
                             double seconds);

// Bytes a second at which one token runs through experts that are in memory: as many different ones
// as 256 MB hold, so that caches don't answer. Errors: as above, and those of read_expert_record.
Result<double> measure_experts(const std::filesystem::path& file, const ModelConfig& config,
                               Kernels& kernels, double seconds);

struct TuneReport {
  struct Reads {
    ReaderOptions options;
    std::string description;
    double rate = 0;  // bytes/s
  };
  std::vector<Reads> reads;
  double expert_rate = 0;  // bytes/s; 0 where the file is laid out for another backend
  uint64_t free_bytes = 0;
  uint64_t rest_bytes = 0;    // of the model without routed experts
  uint64_t expert_bytes = 0;  // of all routed experts
  uint64_t token_bytes = 0;   // of the experts that one token wants
  OffloadTuning choice;

  // Tokens a second at most, from reads and experts alone, when `share` of the uses are hits.
  double bound(double share) const;
};

// Measures the packed model in `directory` for about ten seconds and chooses. The smallest depth
// within 3 % of the fastest is taken; experts get the preset's share of the memory that the rest
// leaves. A file laid out for a GPU has its reads measured alone.
Result<TuneReport> tune_offload(const std::filesystem::path& directory, const ModelConfig& config,
                                Kernels& kernels, uint64_t rest_bytes,
                                ExpertPreset preset = ExpertPreset::kBalanced);

}  // namespace nibble
