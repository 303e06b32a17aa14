// A packed expert file, opened: which record lies where.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/base/result.h"
#include "nibble/offload/expert_format.h"

namespace nibble {

// The file's name within a packed checkpoint folder.
inline constexpr std::string_view kExpertFileName = "experts.nibble";

// Header and index, checked; no record has been looked at.
class ExpertFile {
 public:
  // Errors: kNotFound; kCorrupt naming the file for a wrong magic, checksum or index, and for a
  // file shorter than its header says; kUnsupported for another version.
  static Result<ExpertFile> open(const std::filesystem::path& path);

  // The same for the file's first bytes, header and index, of a file of file_bytes.
  static Result<ExpertFile> parse(std::span<const std::byte> front, uint64_t file_bytes);

  // The bytes that parse() needs, from the first 4096. Errors: as open().
  static Result<ExpertFileHeader> parse_header(std::span<const std::byte> front,
                                               uint64_t file_bytes);

  const std::filesystem::path& path() const { return path_; }
  const ExpertFileHeader& header() const { return header_; }
  std::string_view layout() const { return header_.layout.data(); }
  std::span<const ExpertIndexEntry> index() const { return index_; }

  // The entry of an expert, or null.
  const ExpertIndexEntry* find(int layer, int expert) const;

 private:
  ExpertFile() = default;

  std::filesystem::path path_;
  ExpertFileHeader header_;
  std::vector<ExpertIndexEntry> index_;
};

}  // namespace nibble
