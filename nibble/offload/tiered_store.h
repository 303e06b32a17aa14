// Experts in two tiers: as many as a budget allows in memory, the rest in a file below.
//
// The upper tier may be a device's memory: then the loader is the tier below it
// (host_tier_loader.h), another store whose experts are fetched instead of announced.
//
// Memory is cut into slots of one record. A layer has a share of them; what its policy values least
// makes room for what is wanted. While a large step streams a layer through, slots that other
// layers hold above their share, and a few that belong to none, take the reads that are under way.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "nibble/base/result.h"
#include "nibble/checkpoint/config.h"
#include "nibble/model/expert_store.h"
#include "nibble/offload/eviction_policy.h"
#include "nibble/offload/expert_loader.h"
#include "nibble/offload/routing_trace.h"
#include "nibble/offload/slot_memory.h"

namespace nibble {

struct TieredStoreOptions {
  // For records; 0: all of them. At least one record.
  uint64_t memory_bytes = 0;
  EvictionOptions eviction;
  int prefetch_layers = 1;       // how many layers ahead are guessed: 0 or 1
  float prefetch_min_score = 0;  // a guess with a smaller routing weight is not read
  // Experts that are loaded first and stay, best first within a layer; at most hot_share of a
  // layer's slots.
  std::vector<HotExpert> hot_experts;
  double hot_share = 0.5;
  ActivationFormat activation = ActivationFormat::kUnquantized;
  SlotAllocator allocate_slots = host_slots();
  // The slots are a device's, whose work may run behind the host: what the loader's use() and
  // used() are for. The budget can't change then.
  bool on_device = false;
  std::unique_ptr<RoutingTraceWriter> trace;  // may be null
};

class TieredStore final : public ExpertStore {
 public:
  // Loads the hot experts, or all if there is room for all: then nothing is ever evicted. Errors:
  // kInvalidArgument for a budget below one record or a hot expert that the model lacks; those of
  // the loader, naming the record; kOutOfMemory.
  static Result<std::unique_ptr<TieredStore>> create(std::unique_ptr<ExpertLoader> loader,
                                                     const ModelConfig& config, bool with_mtp,
                                                     TieredStoreOptions options);
  ~TieredStore() override;

  void announce(int layer, std::span<const ExpertUse> uses, int64_t num_tokens) override;
  Result<ExpertLease> acquire(int layer, std::span<const int32_t> wanted) override;
  ExpertLease take_for_host() override { return std::move(for_host_); }
  bool computes_on_host(int64_t num_tokens) const override {
    return num_tokens <= kMostHostTokens && loader_->computes_on_host();
  }
  void computed_on_host(double seconds) override;
  bool is_at_hand(int layer, std::span<const int32_t> wanted) override;
  bool wants_prefetch(int layer) const override;
  void prefetch(int layer, std::span<const ExpertUse> guesses) override;
  ExpertStoreStats stats() const override;
  std::span<const MlpWeight> resident(int layer) const override;

  // What a tier above asks for, on any thread, instead of announce() and acquire(). A fetched
  // expert stays until end_fetch().
  struct Fetched {
    MlpWeight weight;
    std::span<const std::byte> record;
  };
  using FetchDone = std::function<void(Result<Fetched>)>;
  // Only if it is in memory already.
  std::optional<Fetched> fetch_now(int layer, int expert);
  // Otherwise it is read, urgent ones first; then `done` is called on a thread of the loader.
  // Returned, and `done` not called, if it came to memory meanwhile. Errors of `done`: as
  // acquire().
  std::optional<Fetched> fetch(int layer, int expert, bool urgent, FetchDone done);
  void hurry_fetch(int layer, int expert);
  void end_fetch(int layer, int expert);
  // Of `missed` those that are in memory and that experts_for_host() chooses, for a tier above
  // whose caller computes them here. For one thread at a time.
  ExpertLease lease_for_host(int layer, std::span<const MissedExpert> missed,
                             const HostExpertRates& rates, HostExperts mode);
  uint64_t record_bytes(int layer, int expert) const {
    return loader_->record_bytes(layer, expert);
  }

  // Changes the budget while it runs, from any thread. What is in use stays until its lease ends.
  // Errors: as create(); kUnsupported for slots of a device.
  Status set_memory(uint64_t bytes);

  std::string description() const;

 private:
  // A step of more tokens brings its experts to the device: each is used by many.
  static constexpr int64_t kMostHostTokens = 32;

  enum class State { kAbsent, kReading, kReady, kFailed };
  struct Entry {
    State state = State::kAbsent;
    int slot = -1;
    int leases = 0;
    bool wanted = false;   // announced, not yet leased
    bool guessed = false;  // read for a prediction, not yet announced
    bool pinned = false;
    bool arriving = false;  // its copy was begun at once, and nobody waited for it yet
    uint64_t ticket = 0;
    std::optional<Error> error;
  };
  struct Layer {
    int number = 0;
    int share = 0;  // slots
    int held = 0;   // slots that its experts have now
    int num_ready = 0;
    std::vector<Entry> entries;
    std::vector<MlpWeight> table;  // [num_experts]; without data where not ready
    // What leases show: written by the forward pass's thread alone, so that it may read all of it
    // without the lock while reads end. Entries that are not leased may be stale.
    std::vector<MlpWeight> leased;
    std::unique_ptr<EvictionPolicy> policy;
  };

  TieredStore(const ModelConfig& config, TieredStoreOptions options);

  struct Fetch {
    int layer;
    int expert;
    bool urgent;
    FetchDone done;
  };

  // All below are called with the lock held.
  Layer& layer_of(int number);
  const Layer& layer_of(int number) const;
  Status resize(uint64_t bytes);
  void trim();
  int64_t slots_for(uint64_t bytes) const;
  bool take_slot(int layer, bool urgent, int* slot);
  bool make_room(Layer& own, bool urgent);
  bool evict_from(Layer& layer, bool last_resort);
  void evict(Layer& layer, Entry& entry);
  void begin_read(Layer& layer, int expert, int slot, bool urgent);
  void start_missing(Layer& layer, std::span<const int32_t> wanted);
  void end_guesses(Layer& layer, std::span<const ExpertUse> uses);
  void choose_for_host(Layer& layer, std::span<const ExpertUse> uses, int64_t num_tokens);
  void clear_wanted();
  void wait(std::unique_lock<std::mutex>& lock, const Layer& layer,
            std::span<const int32_t> wanted);

  Fetched lease_to_fetch(Layer& layer, int expert);
  void begin_fetches();
  // The fetches of an expert whose read has ended, taken from the queue.
  std::vector<std::pair<FetchDone, Result<Fetched>>> ended_fetches(Layer& layer, int expert);
  std::vector<const std::byte*> records_of(const Layer& layer,
                                           std::span<const int32_t> experts) const;

  Status preload(std::span<const HotExpert> experts, bool pin);
  void finish_read(int layer, int expert, const std::optional<MlpWeight>& weight,
                   Status status);  // takes the lock
  void release(int layer, std::span<const int32_t> experts) noexcept override;

  const ExpertShape shape_;
  const int num_experts_;
  TieredStoreOptions options_;
  uint64_t slot_bytes_ = 0;

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Layer> layers_;
  std::vector<int> layer_index_;  // by number; -1 for dense layers
  std::vector<SlotMemory> slots_;
  std::vector<int> free_slots_;
  int64_t target_slots_ = 0;
  bool everything_fits_ = false;
  Layer* last_announced_ = nullptr;
  ExpertLease for_host_;       // of the last announce()
  std::deque<Fetch> fetches_;  // whose expert is not in memory yet
  ExpertStoreStats stats_;

  std::unique_ptr<ExpertLoader> loader_;  // goes first: its threads call finish_read
};

}  // namespace nibble
