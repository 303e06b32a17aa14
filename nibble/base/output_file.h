// A file that appears whole or not at all.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>

#include "nibble/base/result.h"

namespace nibble {

// Written under a temporary name in the same folder; commit() syncs it and renames it to its final
// name. If it goes without a commit, the temporary file is removed.
class OutputFile {
 public:
  // Errors: the folder is missing or not writable.
  static Result<OutputFile> create(std::filesystem::path path);

  OutputFile(OutputFile&& other) noexcept;
  OutputFile& operator=(OutputFile&& other) noexcept;
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;
  ~OutputFile();

  // Appends. Errors: kUnavailable with the file's name when the disk is full or fails.
  Status write(std::span<const std::byte> bytes);
  Status write(std::string_view text);

  // Writes at a position within or past what was written. Safe to call from several threads at
  // once for ranges that do not overlap; does not move the place that write() appends at.
  Status write_at(uint64_t offset, std::span<const std::byte> bytes);

  // Syncs the data, renames, syncs the folder. The file can't be written afterwards.
  Status commit();

  const std::filesystem::path& path() const { return path_; }

 private:
  OutputFile() = default;
  void discard() noexcept;

  std::filesystem::path path_;
  std::string temporary_path_;
  int fd_ = -1;
  uint64_t position_ = 0;
};

// Syncs a folder's entries, so that renames inside it survive a power cut.
Status sync_directory(const std::filesystem::path& path);

// Writes a small file in one go, as OutputFile does.
Status write_text_file(const std::filesystem::path& path, std::string_view text);

}  // namespace nibble
