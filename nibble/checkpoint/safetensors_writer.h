// Writes one safetensors file whose tensors are known beforehand.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/base/output_file.h"
#include "nibble/base/result.h"
#include "nibble/checkpoint/source.h"

namespace nibble {

// Tensors lie in the file by descending element size, otherwise in the given order, and the data
// starts at a multiple of eight (the header is padded with spaces): so each is aligned to its
// elements, as the reference implementation has it. Their bytes are written in any order, from any
// thread. Nothing appears under the final name before commit().
class SafetensorsWriter {
 public:
  // Errors: kInvalidArgument for duplicate names, names that are not UTF-8 and a header above the
  // format's 100 MB; those of OutputFile.
  static Result<SafetensorsWriter> create(const std::filesystem::path& path,
                                          std::vector<TensorInfo> tensors);

  // The whole of one tensor. Errors: kNotFound for a name that was not declared, kInvalidArgument
  // for a wrong size or a second write, those of OutputFile::write_at.
  Status write(std::string_view name, std::span<const std::byte> bytes);

  // Errors: kInvalidArgument naming a tensor that was declared and never written.
  Status commit();

  // Bytes of all tensors, without the header.
  uint64_t data_bytes() const { return data_bytes_; }

 private:
  explicit SafetensorsWriter(OutputFile file) : file_(std::move(file)) {}

  struct Entry {
    std::string name;
    uint64_t offset;  // from the start of the file
    uint64_t size;
    bool written;
  };
  OutputFile file_;
  std::vector<Entry> entries_;  // sorted by name
  uint64_t data_bytes_ = 0;
};

}  // namespace nibble
