// What a conversion has done so far, so that the next run need not do it again.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <string_view>

#include "nibble/base/result.h"

namespace nibble {

// A text file of lines: first "nibble-journal 1 FINGERPRINT", then "job 17 HASH" when a job's
// output is written, "shard 2 SHA256" when a shard is complete, "layer 3 HASH" when a layer is
// calibrated. A line counts when it ends in a newline: a process that is killed leaves at most one
// torn line. The outputs need not have reached the disk when their line did; hence the hashes.
//
// Held locked, so that two processes don't work on one folder. Thread-safe.
class ConversionJournal {
 public:
  using Entries = std::map<size_t, std::string>;  // number -> hash

  // Opens or begins the journal. Errors: kInvalidArgument for one with another fingerprint (the
  // source or the options changed), kUnavailable when another process holds it.
  static Result<ConversionJournal> open(const std::filesystem::path& path,
                                        std::string_view fingerprint);

  // Whether `path` is a journal with this fingerprint.
  static bool matches(const std::filesystem::path& path, std::string_view fingerprint);

  ConversionJournal(ConversionJournal&& other) noexcept;
  ConversionJournal& operator=(ConversionJournal&& other) = delete;
  ConversionJournal(const ConversionJournal&) = delete;
  ConversionJournal& operator=(const ConversionJournal&) = delete;
  ~ConversionJournal();

  // What earlier runs wrote.
  const Entries& jobs() const { return jobs_; }
  const Entries& shards() const { return shards_; }
  const Entries& layers() const { return layers_; }

  // kind: "job", "shard" or "layer".
  Status add(std::string_view kind, size_t number, std::string_view hash);

 private:
  ConversionJournal() = default;
  Status read(std::string_view text, std::string_view fingerprint);

  std::filesystem::path path_;
  int fd_ = -1;
  Entries jobs_;
  Entries shards_;
  Entries layers_;
};

}  // namespace nibble
