// A checkpoint of full size that takes no time to make: names and shapes of a config, large tensors
// filled with a few million random values over and over.
#pragma once

#include <cstddef>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "nibble/base/result.h"
#include "nibble/checkpoint/source.h"
#include "nibble/checkpoint/synthetic_source.h"

namespace nibble {

// Tensors of at least 4 Mi elements (block scales: 512 Ki) that agree in dtype, columns and kind
// (codes or scales) are views of one block, so that 386 GB of DeepSeek-R1 need 2 GB; all others are
// SyntheticSource's own. What a model of such weights says is noise, and its experts are alike; how
// long it takes and what memory it needs is that of the real one.
class RepeatingSource final : public CheckpointSource {
 public:
  // Errors: those of stored_tensors.
  static Result<std::unique_ptr<RepeatingSource>> create(const ModelConfig& config,
                                                         CheckpointLayout layout, uint64_t seed);

  std::span<const TensorInfo> tensors() const override { return source_->tensors(); }
  const TensorInfo* find(std::string_view name) const override { return source_->find(name); }
  // Views of blocks stay as long as the source.
  Result<TensorView> read(std::string_view name) const override;
  void release(std::string_view name) const override;

 private:
  explicit RepeatingSource(std::unique_ptr<SyntheticSource> source) : source_(std::move(source)) {}

  std::unique_ptr<SyntheticSource> source_;
  mutable std::mutex mutex_;
  mutable std::map<std::string, std::vector<std::byte>> blocks_;
};

}  // namespace nibble
