// A checkpoint directory (or a single file) of safetensors shards, mapped into memory.
#pragma once

#include <filesystem>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/base/mapped_file.h"
#include "nibble/base/result.h"
#include "nibble/checkpoint/source.h"

namespace nibble {

class SafetensorsSource final : public CheckpointSource {
 public:
  // A directory with model.safetensors, with shards named by model.safetensors.index.json, or with
  // any *.safetensors files (index optional); or one .safetensors file. Every shard's header is
  // read and checked; the index need not list companions such as weight_scale, but a shard or a
  // tensor that it names must exist.
  // Errors: kNotFound (no safetensors files, a missing shard, by name), kCorrupt (truncated shard,
  // overlapping or out-of-range offsets, sizes that disagree with shapes, duplicate names within or
  // across shards, unknown dtype, header over 100 MB, malformed JSON), each naming the file and the
  // tensor.
  static Result<std::unique_ptr<SafetensorsSource>> open(const std::filesystem::path& path);

  // As open, but goes on after trouble: each error is appended to `problems`, and the source holds
  // what could be read (nothing at worst). For `nibble inspect`.
  static std::unique_ptr<SafetensorsSource> open_damaged(const std::filesystem::path& path,
                                                         std::vector<Error>& problems);

  std::span<const TensorInfo> tensors() const override { return tensors_; }
  const TensorInfo* find(std::string_view name) const override;
  Result<TensorView> read(std::string_view name) const override;
  void release(std::string_view name) const override;
  void release_part(std::string_view name, uint64_t offset, uint64_t length) const override;
  void prefetch(std::string_view name) const override;

  // Things a person should know that are not errors, such as files that the index does not name.
  const std::vector<std::string>& warnings() const { return warnings_; }

  // File names of the shards that were read, sorted.
  const std::vector<std::string>& shard_names() const { return shard_names_; }

 private:
  SafetensorsSource() = default;
  void open_all(const std::filesystem::path& path, class ProblemList& problems);
  void add_shard(const std::filesystem::path& file, ProblemList& problems);
  void sort_tensors(ProblemList& problems);

  struct Place {
    size_t shard;
    uint64_t offset;  // from the start of the file
    uint64_t size;
  };
  std::vector<MappedFile> shards_;
  std::vector<std::string> shard_names_;  // parallel to shards_
  std::vector<TensorInfo> tensors_;       // sorted by name
  std::vector<Place> places_;             // parallel to tensors_
  std::vector<std::string> warnings_;

  // Tensors whose place in the file is no multiple of their element size (the format allows it),
  // copied when they are read so that a TensorView is always aligned.
  mutable std::mutex copies_mutex_;
  mutable std::map<size_t, std::unique_ptr<std::byte[]>> copies_;  // by index into tensors_
};

// What the header of one safetensors file says. Exposed for fuzzing.
struct SafetensorsHeader {
  struct Entry {
    TensorInfo info;
    uint64_t offset;  // from the start of the file
    uint64_t size;
  };
  std::vector<Entry> entries;
  std::string metadata_format;  // "__metadata__"."format", usually "pt"
};

// Parses and checks the start of a file of `bytes.size()` bytes. `name` is for messages.
Result<SafetensorsHeader> parse_safetensors_header(std::span<const std::byte> bytes,
                                                   std::string_view name);

}  // namespace nibble
