#include "nibble/quantize/written_layer.h"

#include <fmt/format.h>

#include <system_error>

#include "nibble/base/error.h"

namespace nibble {

Result<std::unique_ptr<WrittenLayer>> WrittenLayer::open(
    const CheckpointSource& source, int layer, std::span<const std::filesystem::path> shards) {
  std::unique_ptr<WrittenLayer> written(
      new WrittenLayer(source, fmt::format("model.layers.{}.", layer)));
  for (std::filesystem::path path : shards) {
    std::error_code ignored;
    if (!std::filesystem::exists(path, ignored)) path += ".part";
    written->shards_.push_back(NIBBLE_TRY(SafetensorsSource::open(path)));
  }
  return written;
}

const CheckpointSource* WrittenLayer::holder(std::string_view name) const {
  if (!name.starts_with(prefix_)) return &source_;
  for (const auto& shard : shards_) {
    if (shard->find(name) != nullptr) return shard.get();
  }
  return nullptr;
}

const TensorInfo* WrittenLayer::find(std::string_view name) const {
  const CheckpointSource* const from = holder(name);
  return from == nullptr ? nullptr : from->find(name);
}

Result<TensorView> WrittenLayer::read(std::string_view name) const {
  const CheckpointSource* const from = holder(name);
  if (from == nullptr) return not_found(fmt::format("{} was not written", name));
  return from->read(name);
}

void WrittenLayer::release(std::string_view name) const {
  const CheckpointSource* const from = holder(name);
  if (from != nullptr) from->release(name);
}

}  // namespace nibble
