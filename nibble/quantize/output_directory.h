// A folder that appears whole or not at all, and whose making can be interrupted.
#pragma once

#include <cstdint>
#include <filesystem>

#include "nibble/base/result.h"

namespace nibble {

// Files are written into NAME.partial beside it; commit() syncs that folder and renames it to NAME.
// If it goes without a commit, the partial folder stays for the next run if keep() was called, and
// is removed with all that is in it otherwise.
class OutputDirectory {
 public:
  // Errors: kInvalidArgument when `path` exists and `overwrite` is false, or is not a checkpoint
  // folder (only those are replaced); kNotFound when the folder it is to lie in is missing; those
  // of mkdir. A partial folder of an earlier run is taken up with `resume`, otherwise removed.
  static Result<OutputDirectory> create(const std::filesystem::path& path, bool overwrite,
                                        bool resume = false);

  // The same checks without touching the disk.
  static Status check(const std::filesystem::path& path, bool overwrite);

  OutputDirectory(OutputDirectory&& other) noexcept;
  OutputDirectory& operator=(OutputDirectory&&) = delete;
  OutputDirectory(const OutputDirectory&) = delete;
  OutputDirectory& operator=(const OutputDirectory&) = delete;
  ~OutputDirectory();

  // Where to write until commit().
  const std::filesystem::path& partial_path() const { return partial_; }

  // Whether there was a partial folder to go on with.
  bool resumed() const { return resumed_; }

  // From now on the partial folder outlives this object; or no longer.
  void keep(bool keep) { keep_ = keep; }

  // Moves the folder to its place. A folder that is replaced is exchanged for it in one step where
  // the file system can do that, and removed afterwards.
  Status commit();

 private:
  OutputDirectory() = default;

  std::filesystem::path path_;
  std::filesystem::path partial_;  // empty once committed or moved from
  bool overwrite_ = false;
  bool resumed_ = false;
  bool keep_ = false;
};

// `path` without symbolic links, "." and ".." as far as it exists, and without a trailing slash.
Result<std::filesystem::path> resolved_path(const std::filesystem::path& path);

// Whether `inner` is `outer` or lies inside it; both as from resolved_path().
bool is_within(const std::filesystem::path& inner, const std::filesystem::path& outer);

// Bytes that this process may still write to the file system that holds the folder `path`.
Result<uint64_t> free_disk_bytes(const std::filesystem::path& path);

}  // namespace nibble
