// The samples of a run on disk: one JSON object a line, appended as each ends, never changed.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <tuple>
#include <vector>

#include "nibble/base/mapped_file.h"
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
  std::string prompt;  // only when prompts are logged
  Completion completion;
};

std::string sample_json(const SampleRecord& record);
Result<SampleRecord> parse_sample(std::string_view line, std::string_view where);

// Where the last record of each (task, id, sample) stands in a samples.jsonl; the records stay on
// disk, so that memory does not grow with the length of answers. Move-only. One thread at a time.
class SampleIndex {
 public:
  using Key = std::tuple<std::string, std::string, int>;

  // Reads FOLDER/samples.jsonl, up to its last whole line; a missing file holds nothing.
  // Errors: kCorrupt for a malformed line.
  static Result<SampleIndex> open(const std::filesystem::path& folder);

  // Nothing for a sample that is not there.
  Result<std::optional<SampleRecord>> read(const Key& key) const;

  // Whether the sample is there and is no error.
  bool is_answered(const Key& key) const;

  size_t size() const { return places_.size(); }
  size_t whole_bytes() const { return whole_bytes_; }

 private:
  struct Place {
    size_t begin = 0;
    size_t length = 0;
    bool has_error = false;
  };
  std::optional<MappedFile> file_;
  std::string path_;
  std::map<Key, Place> places_;
  size_t whole_bytes_ = 0;
  mutable size_t unreleased_ = 0;  // bytes that read() may have brought into memory
};

// An open samples.jsonl. Move-only.
class SampleLog {
 public:
  // Makes FOLDER when it is missing and takes its lock. Errors: kUnavailable when another process
  // holds the lock.
  static Result<SampleLog> lock(const std::filesystem::path& folder);

  // Opens samples.jsonl for appending; what stands behind `whole_bytes` is an unfinished line and
  // is cut off.
  Status open(const std::filesystem::path& folder, size_t whole_bytes);

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

}  // namespace nibble
