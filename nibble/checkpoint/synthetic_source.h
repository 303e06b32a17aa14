// A checkpoint that exists nowhere: seeded random weights of any config and layout, made when they
// are read. For tests with odd shapes and for benchmarks without a download.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "nibble/base/result.h"
#include "nibble/checkpoint/config.h"
#include "nibble/checkpoint/model_tensors.h"
#include "nibble/checkpoint/source.h"

namespace nibble {

// Each tensor's bytes depend on the seed and its own name, dtype and shape alone. Linear weights
// have a standard deviation of about 1 / sqrt(cols), so that activations neither vanish nor
// explode; norms lie around 1; every code and scale is a valid one; gate_proj and up_proj share
// weight_scale_2 and input_scale. The MTP layer's embed_tokens and shared_head.head are copies of
// the model's.
class SyntheticSource final : public CheckpointSource {
 public:
  // Errors: those of stored_tensors.
  static Result<std::unique_ptr<SyntheticSource>> create(const ModelConfig& config,
                                                         CheckpointLayout layout, uint64_t seed);

  // tensors(): `shard` is empty. read(): the data stays until release() of that name.
  std::span<const TensorInfo> tensors() const override { return tensors_; }
  const TensorInfo* find(std::string_view name) const override;
  Result<TensorView> read(std::string_view name) const override;
  void release(std::string_view name) const override;

 private:
  SyntheticSource() = default;

  uint64_t seed_ = 0;
  std::vector<TensorInfo> tensors_;  // sorted by name
  mutable std::mutex mutex_;
  mutable std::map<std::string, std::vector<uint64_t>, std::less<>> data_;  // aligned to 8 bytes
};

}  // namespace nibble
