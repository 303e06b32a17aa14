// An output shard that survives being killed: written in place under NAME.part, opened again by the
// next run, renamed to NAME when every job of it is done.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/base/result.h"
#include "nibble/checkpoint/safetensors_layout.h"

namespace nibble {

// Move-only. Tensors may be written and read from several threads.
class ShardFile {
 public:
  // Opens NAME.part or makes it, at its full (sparse) size. Errors: those of safetensors_layout and
  // of the file system.
  static Result<ShardFile> open(std::filesystem::path path, std::vector<TensorInfo> tensors);

  ShardFile(ShardFile&& other) noexcept;
  ShardFile& operator=(ShardFile&& other) = delete;
  ShardFile(const ShardFile&) = delete;
  ShardFile& operator=(const ShardFile&) = delete;
  ~ShardFile();

  // Bytes of a tensor from `offset` on. Errors: kUnavailable naming the file when the disk is full.
  // Aborts for a name or a range that the layout does not have.
  Status write(std::string_view tensor, uint64_t offset, std::span<const std::byte> bytes);
  Status read(std::string_view tensor, uint64_t offset, std::span<std::byte> bytes) const;

  // Starts writing to disk what has been written so far, without waiting.
  void start_writeback() const;

  // Syncs, renames to the final name, syncs the folder.
  Status finish();

 private:
  ShardFile() = default;
  uint64_t place(std::string_view tensor, uint64_t offset, uint64_t size) const;

  std::filesystem::path path_;
  std::filesystem::path part_;
  SafetensorsLayout layout_;
  int fd_ = -1;
};

// SHA-256 of a file, in lower-case hexadecimal. Errors: those of open and read; kCancelled.
Result<std::string> file_sha256(const std::filesystem::path& path);

}  // namespace nibble
