// CheckpointSource: the tensors of a checkpoint by name, read one at a time.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/base/result.h"
#include "nibble/tensor/tensor_view.h"

namespace nibble {

struct TensorInfo {
  std::string name;
  DType dtype = DType::kF32;
  Shape shape;
  std::string shard;  // file name within the checkpoint, for messages; empty for synthetic sources
};

// Implementations: SafetensorsSource (a directory or file), SyntheticSource (seeded, for tests).
// Safe to read from several threads at once.
class CheckpointSource {
 public:
  virtual ~CheckpointSource() = default;

  // Every tensor, sorted by name.
  virtual std::span<const TensorInfo> tensors() const = 0;

  // The entry of that name, or null.
  virtual const TensorInfo* find(std::string_view name) const = 0;

  // The tensor's bytes: a view that stays valid as long as the source, or until `release` of the
  // same name for sources that make their data on demand. Errors: kNotFound naming the tensor.
  virtual Result<TensorView> read(std::string_view name) const = 0;

  // The caller is done with this tensor for now; its pages may be dropped.
  virtual void release(std::string_view name) const = 0;

  // The same for a part of it, in bytes from its beginning; and a hint that a tensor will be read
  // soon. Both may do nothing.
  virtual void release_part(std::string_view /*name*/, uint64_t /*offset*/,
                            uint64_t /*length*/) const {}
  virtual void prefetch(std::string_view /*name*/) const {}
};

}  // namespace nibble
