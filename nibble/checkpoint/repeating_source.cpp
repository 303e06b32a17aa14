#include "nibble/checkpoint/repeating_source.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "nibble/base/error.h"

namespace nibble {
namespace {

// Elements; there are as many tensors of block scales as of codes.
constexpr int64_t kLarge = int64_t{4} << 20;
constexpr int64_t kLargeScales = int64_t{512} << 10;

bool is_large(const TensorInfo& info) {
  const bool is_scale = info.dtype == DType::kF8E4m3 && info.name.ends_with("_scale");
  return info.shape.rank() == 2 && info.shape.num_elements() >= (is_scale ? kLargeScales : kLarge);
}

// Tensors that may share a block.
std::string block_key(const TensorInfo& info) {
  return fmt::format("{} {} {}", dtype_name(info.dtype), info.shape[1],
                     info.name.ends_with("_scale") ? "scales" : "values");
}

size_t size_of(const TensorInfo& info) {
  return static_cast<size_t>(info.shape.num_elements() * dtype_size(info.dtype));
}

}  // namespace

Result<std::unique_ptr<RepeatingSource>> RepeatingSource::create(const ModelConfig& config,
                                                                 CheckpointLayout layout,
                                                                 uint64_t seed) {
  auto source = NIBBLE_TRY(SyntheticSource::create(config, layout, seed));
  return std::unique_ptr<RepeatingSource>(new RepeatingSource(std::move(source)));
}

Result<TensorView> RepeatingSource::read(std::string_view name) const {
  const TensorInfo* const info = find(name);
  if (info == nullptr || !is_large(*info)) return source_->read(name);
  const std::string key = block_key(*info);
  const std::lock_guard lock(mutex_);
  std::vector<std::byte>& block = blocks_[key];
  if (block.empty()) {
    // The smallest of them, over and over, to the size of the largest.
    const TensorInfo* smallest = info;
    size_t largest = 0;
    for (const TensorInfo& other : tensors()) {
      if (!is_large(other) || block_key(other) != key) continue;
      if (size_of(other) < size_of(*smallest)) smallest = &other;
      largest = std::max(largest, size_of(other));
    }
    const TensorView values = NIBBLE_TRY(source_->read(smallest->name));
    block.resize(largest);
    for (size_t at = 0; at < largest; at += values.bytes.size()) {
      std::memcpy(block.data() + at, values.bytes.data(),
                  std::min(values.bytes.size(), largest - at));
    }
    source_->release(smallest->name);
  }
  return TensorView{info->dtype, info->shape, std::span(block).first(size_of(*info))};
}

void RepeatingSource::release(std::string_view name) const {
  const TensorInfo* const info = find(name);
  if (info != nullptr && !is_large(*info)) source_->release(name);
}

}  // namespace nibble
