// Temporary folders and small safetensors files for tests.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/base/check.h"
#include "nibble/checkpoint/safetensors_source.h"
#include "nibble/checkpoint/safetensors_writer.h"
#include "nibble/checkpoint/synthetic_source.h"

namespace nibble::testing {

// A fresh folder, removed at the end.
class TempFolder {
 public:
  TempFolder() {
    std::string pattern = (std::filesystem::temp_directory_path() / "nibble-test-XXXXXX").string();
    NIBBLE_CHECK(::mkdtemp(pattern.data()) != nullptr);
    path_ = pattern;
  }
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;
  ~TempFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  const std::filesystem::path& path() const { return path_; }
  std::filesystem::path operator/(std::string_view name) const { return path_ / name; }

 private:
  std::filesystem::path path_;
};

inline void write_file(const std::filesystem::path& path, std::string_view bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

inline std::string read_file(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

// The length, the header and `data_bytes` zeros: a safetensors file by hand.
inline std::string safetensors_file(std::string_view header, size_t data_bytes) {
  std::string file(8, '\0');
  for (size_t i = 0; i < 8; ++i) file[i] = static_cast<char>(header.size() >> (8 * i) & 0xff);
  file += header;
  file.append(data_bytes, '\0');
  return file;
}

inline Result<SafetensorsHeader> parse_file(std::string_view file) {
  return parse_safetensors_header(std::as_bytes(std::span(file.data(), file.size())), "x");
}

// A file with these tensors, every byte equal to `fill`.
inline void write_tensors(const std::filesystem::path& path, const std::vector<TensorInfo>& tensors,
                          unsigned char fill = 0) {
  auto writer = SafetensorsWriter::create(path, tensors);
  ASSERT_TRUE(writer) << writer.error().message;
  for (const TensorInfo& info : tensors) {
    const std::vector<std::byte> bytes(
        static_cast<size_t>(info.shape.num_elements() * dtype_size(info.dtype)), std::byte{fill});
    const Status status = writer->write(info.name, bytes);
    ASSERT_TRUE(status) << status.error().message;
  }
  const Status status = writer->commit();
  ASSERT_TRUE(status) << status.error().message;
}

// A checkpoint folder of a config: config.json and one file of synthetic weights.
inline void write_checkpoint(const std::filesystem::path& folder, std::string_view config_text,
                             CheckpointLayout layout) {
  const auto config = parse_config(config_text, "config.json");
  ASSERT_TRUE(config) << config.error().message;
  const auto source = SyntheticSource::create(*config, layout, 1);
  ASSERT_TRUE(source) << source.error().message;
  const auto tensors = (*source)->tensors();
  auto writer =
      SafetensorsWriter::create(folder / "model.safetensors", {tensors.begin(), tensors.end()});
  ASSERT_TRUE(writer) << writer.error().message;
  for (const TensorInfo& info : tensors) {
    const Status status = writer->write(info.name, (*source)->read(info.name)->bytes);
    ASSERT_TRUE(status) << status.error().message;
  }
  ASSERT_TRUE(writer->commit());
  write_file(folder / "config.json", config_text);
}

// Overwrites bytes of one tensor in a file, found by its header.
inline void patch_tensor(const std::filesystem::path& path, std::string_view name, size_t at,
                         std::string_view bytes) {
  std::string file = read_file(path);
  const auto header = parse_file(file);
  ASSERT_TRUE(header) << header.error().message;
  for (const auto& entry : header->entries) {
    if (entry.info.name != name) continue;
    ASSERT_LE(at + bytes.size(), entry.size);
    file.replace(entry.offset + at, bytes.size(), bytes);
    write_file(path, file);
    return;
  }
  FAIL() << "no tensor " << name;
}

}  // namespace nibble::testing
