// One layer of a checkpoint that is being written, for a forward pass over it.
#pragma once

#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/base/result.h"
#include "nibble/checkpoint/safetensors_source.h"
#include "nibble/checkpoint/source.h"

namespace nibble {

// The layer's tensors as they were written; everything outside of the layer comes from the source.
class WrittenLayer final : public CheckpointSource {
 public:
  // shards: files that together hold the layer. One that is not there is looked for under
  // NAME.part, which has its header and full size from the beginning. Errors: those of
  // SafetensorsSource::open.
  static Result<std::unique_ptr<WrittenLayer>> open(const CheckpointSource& source, int layer,
                                                    std::span<const std::filesystem::path> shards);

  // Those of the source; use find().
  std::span<const TensorInfo> tensors() const override { return source_.tensors(); }
  const TensorInfo* find(std::string_view name) const override;
  Result<TensorView> read(std::string_view name) const override;
  void release(std::string_view name) const override;

 private:
  WrittenLayer(const CheckpointSource& source, std::string prefix)
      : source_(source), prefix_(std::move(prefix)) {}
  // Null for a tensor that the layer does not have.
  const CheckpointSource* holder(std::string_view name) const;

  const CheckpointSource& source_;
  std::string prefix_;  // "model.layers.3."
  std::vector<std::unique_ptr<SafetensorsSource>> shards_;
};

}  // namespace nibble
