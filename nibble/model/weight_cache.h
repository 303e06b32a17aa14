// Packed weights in a file, so that a second start maps them instead of packing again.
//
//   header, 4096 bytes: magic, version, key, where the index is, checksum
//   the packed bytes of every weight, each from a multiple of 4096 on, as Kernels::pack made them
//   index: an entry for each weight (place, checksum, the fields of its LinearWeights), then the
//   names
//
// A file is written while the weights are loaded, under a temporary name, and renamed when it is
// whole. It belongs to one checkpoint, backend layout and set of options, its key; numbers are this
// machine's.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/base/mapped_file.h"
#include "nibble/base/output_file.h"
#include "nibble/base/result.h"
#include "nibble/kernels/linear_weight.h"

namespace nibble {

// What is to be known of a weight beside its bytes: the LinearWeights whose data and scales point
// into them, two for MLA's kv_b_proj, none for a vector.
struct CachedWeight {
  std::span<const std::byte> bytes;
  std::array<LinearWeight, 2> linears;
  int num_linears = 0;
};

// The file in `directory` for weights of this key: a part of the key's checksum is in its name.
std::filesystem::path weight_cache_path(const std::filesystem::path& directory,
                                        std::string_view key);

// The files that a checkpoint's directory consists of, with sizes and times of change: what tells
// it from another one without reading it. Errors: kNotFound, kUnavailable of the file system.
Result<std::string> checkpoint_identity(const std::filesystem::path& directory);

class WeightCacheReader {
 public:
  // Errors: kNotFound; kCorrupt for a file that is no cache, is of another version or key, is cut
  // short, or has a damaged header or index. The bytes of weights are not looked at.
  static Result<WeightCacheReader> open(const std::filesystem::path& path, std::string_view key);

  // The weight of that name, its pointers into the mapped file, valid as long as the file. Reads
  // all of its bytes. Safe to call from several threads. Errors: kCorrupt when it is not there or
  // its bytes don't have their checksum.
  Result<CachedWeight> read(std::string_view name) const;

  // The mapping, which outlives the reader so.
  MappedFile take_file() && { return std::move(file_); }

 private:
  struct Place {
    uint64_t checksum;
    CachedWeight weight;
  };
  explicit WeightCacheReader(MappedFile file) : file_(std::move(file)) {}

  MappedFile file_;
  std::filesystem::path path_;
  std::map<std::string, Place, std::less<>> entries_;
};

class WeightCacheWriter {
 public:
  // Errors: those of OutputFile.
  static Result<WeightCacheWriter> create(const std::filesystem::path& path, std::string_view key);
  WeightCacheWriter(WeightCacheWriter&& other) noexcept;

  // Writes one weight; its linears point into its bytes. Safe to call from several threads. After
  // the first failure, which commit() returns, it does nothing.
  void add(std::string_view name, const CachedWeight& weight);

  // Writes index and header and gives the file its name. Errors: kUnavailable when the disk is full
  // or fails.
  Status commit();

 private:
  WeightCacheWriter(OutputFile file, std::string_view key) : file_(std::move(file)), key_(key) {}

  OutputFile file_;
  std::string key_;
  std::atomic<uint64_t> next_offset_{4096};  // behind the header
  std::mutex mutex_;                         // guards what follows
  Status status_;
  std::vector<std::byte> index_;
  std::string names_;
  uint64_t num_entries_ = 0;
};

}  // namespace nibble
