// The samples of a run on disk: one JSON object a line, appended as each ends, never changed.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "nibble/base/result.h"
#include "nibble/eval/target.h"

namespace nibble {

struct SampleRecord {
  std::string task;
  std::string id;
  int sample = 0;
  int64_t seed = 0;
  std::string cluster;
  std::string permutation;
  std::string prompt_sha256;
  Completion completion;
};

std::string sample_json(const SampleRecord& record);
Result<SampleRecord> parse_sample(std::string_view line, std::string_view where);

// An open samples.jsonl. Move-only.
class SampleLog {
 public:
  // Opens FOLDER/samples.jsonl, makes both when they are missing, and takes the folder's lock. An
  // unfinished last line is cut off; `known` gets what is there, without records of errors.
  // Errors: kUnavailable when another process holds the lock; kCorrupt for a malformed line.
  static Result<SampleLog> open(const std::filesystem::path& folder,
                                std::vector<SampleRecord>* known);

  SampleLog(SampleLog&& other) noexcept;
  SampleLog& operator=(SampleLog&& other) noexcept;
  ~SampleLog();

  // One write() for the whole line: a killed process leaves whole records and at most one torn one.
  Status append(const SampleRecord& record);

  // To the disk itself: survives a power cut.
  Status sync();

 private:
  SampleLog() = default;
  int file_ = -1;
  int lock_ = -1;
};

// The records of a run, the last one of each (task, id, sample). Errors: kNotFound, kCorrupt.
Result<std::vector<SampleRecord>> read_samples(const std::filesystem::path& folder);

}  // namespace nibble
