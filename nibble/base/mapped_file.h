// A file mapped read-only into memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>

#include "nibble/base/result.h"

namespace nibble {

// Move-only; unmaps when it goes. The bytes stay valid as long as the object, wherever it moves.
class MappedFile {
 public:
  // Errors: kNotFound, kUnavailable (permission), kInvalidArgument (not a regular file). An empty
  // file gives an empty span.
  static Result<MappedFile> open(const std::filesystem::path& path);

  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  ~MappedFile();

  std::span<const std::byte> bytes() const { return {data_, size_}; }

  // Tells the kernel that these bytes won't be needed soon, so that a pass over a file larger than
  // memory does not push everything else out. Never changes contents.
  void release(size_t offset, size_t length) const;

  // Asks the kernel to read these bytes in the background.
  void prefetch(size_t offset, size_t length) const;

 private:
  MappedFile() = default;
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
};

// The whole of a small file as text. Errors as MappedFile::open, and kCorrupt when the file holds
// more than `max_bytes`.
Result<std::string> read_text_file(const std::filesystem::path& path,
                                   uint64_t max_bytes = uint64_t{256} << 20);

}  // namespace nibble
