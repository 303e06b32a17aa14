#include "nibble/offload/resident_store.h"

namespace nibble {

void ResidentStore::announce(int layer, std::span<const ExpertUse> uses, int64_t num_tokens) {
  if (trace_ != nullptr) trace_->add(layer, uses, num_tokens);
  const std::lock_guard lock(mutex_);
  ++stats_.num_steps;
  stats_.num_hits += static_cast<int64_t>(uses.size());
}

Result<ExpertLease> ResidentStore::acquire(int layer, std::span<const int32_t> wanted) {
  return ExpertLease(this, layer, layers_.at(layer), {wanted.begin(), wanted.end()});
}

ExpertStoreStats ResidentStore::stats() const {
  const std::lock_guard lock(mutex_);
  ExpertStoreStats stats = stats_;
  for (const auto& [layer, experts] : layers_) {
    stats.num_experts += static_cast<int64_t>(experts.size());
  }
  stats.num_slots = stats.num_resident = stats.num_experts;
  return stats;
}

}  // namespace nibble
