// Experts that are all in memory already: the store of a model that fits, for what only a store can
// do, such as recording what the router chose.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <span>

#include "nibble/model/expert_store.h"
#include "nibble/offload/routing_trace.h"

namespace nibble {

class ResidentStore final : public ExpertStore {
 public:
  // The tables, by layer, must outlive the store. `trace` may be null.
  ResidentStore(std::map<int, std::span<const MlpWeight>> layers,
                std::unique_ptr<RoutingTraceWriter> trace)
      : layers_(std::move(layers)), trace_(std::move(trace)) {}

  void announce(int layer, std::span<const ExpertUse> uses, int64_t num_tokens) override;
  Result<ExpertLease> acquire(int layer, std::span<const int32_t> wanted) override;
  bool wants_prefetch(int /*layer*/) const override { return false; }
  void prefetch(int /*layer*/, std::span<const ExpertUse> /*guesses*/) override {}
  ExpertStoreStats stats() const override;

 private:
  void release(int /*layer*/, std::span<const int32_t> /*experts*/) noexcept override {}

  std::map<int, std::span<const MlpWeight>> layers_;
  std::unique_ptr<RoutingTraceWriter> trace_;
  mutable std::mutex mutex_;  // guards stats_
  ExpertStoreStats stats_;
};

}  // namespace nibble
