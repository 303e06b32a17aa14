// ExpertStore: where a forward pass gets its routed experts from, when they are not all in device
// memory. The model asks by layer and number; which tier answers is nobody's business here.
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "nibble/base/result.h"
#include "nibble/kernels/linear_weight.h"

namespace nibble {

// What the router wants of one expert in one step.
struct ExpertUse {
  int32_t expert = 0;
  int32_t tokens = 0;  // of the step that take it
  float weight = 0;    // the sum of their routing weights
};

// Counted since the store was made. Bytes are those of whole records.
struct ExpertStoreStats {
  int64_t num_steps = 0;    // announced layers
  int64_t num_hits = 0;     // wanted experts that were in memory when they were announced
  int64_t num_misses = 0;   // that were not, nor on their way
  int64_t num_on_host = 0;  // of the misses: computed by the host where they lay
  double host_seconds = 0;  // in which it computed them
  int64_t num_evictions = 0;
  int64_t bytes_hit = 0;
  int64_t bytes_read = 0;          // from below, guesses included
  int64_t num_guesses = 0;         // reads that a prediction began
  int64_t num_guesses_used = 0;    // there in time; also among the hits
  int64_t num_guesses_late = 0;    // on their way when they were wanted
  int64_t num_guesses_wasted = 0;  // evicted or cancelled before anyone wanted them
  double stall_seconds = 0;        // waits of the forward pass on the host
  double read_seconds = 0;         // in which at least one read was under way
  int64_t num_slots = 0;           // now: experts that fit in memory
  int64_t num_resident = 0;        // now: experts that are there
  int64_t num_experts = 0;         // of the model
  int64_t expert_bytes = 0;        // of the largest record

  // The tier below, where experts come to a device through the host's memory: what was asked of it
  // by misses and guesses. All zero without one.
  struct Below {
    int64_t num_slots = 0;
    int64_t num_resident = 0;
    int64_t num_hits = 0;
    int64_t num_misses = 0;
    int64_t bytes_read = 0;  // from its file
    double read_seconds = 0;

    double hit_rate() const { return share_of(num_hits, num_misses); }
  } below;

  // The share of wanted experts that needed no wait; 1 when nothing was wanted.
  double hit_rate() const { return share_of(num_hits, num_misses + num_guesses_late); }

  static double share_of(int64_t found, int64_t missed) {
    const int64_t all = found + missed;
    return all == 0 ? 1.0 : static_cast<double>(found) / static_cast<double>(all);
  }
};

class ExpertStore;

// Experts that stay where they are until it ends. Move-only; the store must outlive it.
class ExpertLease {
 public:
  ExpertLease() = default;
  // What ExpertStore::acquire() makes: `experts` is the layer's table, in which those of `ids` have
  // data.
  ExpertLease(ExpertStore* store, int layer, std::span<const MlpWeight> experts,
              std::vector<int32_t> ids)
      : store_(store), layer_(layer), experts_(experts), ids_(std::move(ids)) {}
  ExpertLease(ExpertLease&& other) noexcept { swap(other); }
  ExpertLease& operator=(ExpertLease&& other) noexcept {
    swap(other);
    return *this;
  }
  ExpertLease(const ExpertLease&) = delete;
  ExpertLease& operator=(const ExpertLease&) = delete;
  inline ~ExpertLease();

  std::span<const MlpWeight> experts() const { return experts_; }  // [n_routed_experts]
  std::span<const int32_t> ids() const { return ids_; }

 private:
  void swap(ExpertLease& other) {
    std::swap(store_, other.store_);
    std::swap(layer_, other.layer_);
    std::swap(experts_, other.experts_);
    std::swap(ids_, other.ids_);
  }

  ExpertStore* store_ = nullptr;
  int layer_ = 0;
  std::span<const MlpWeight> experts_;
  std::vector<int32_t> ids_;
};

// For one forward pass at a time, from one thread; stats() from any. For each MoE layer the pass
// calls announce() with what the router chose, then acquire() with what it has not yet computed
// until nothing is left. Layers are numbered as in the model; num_hidden_layers is the MTP layer.
class ExpertStore {
 public:
  virtual ~ExpertStore() = default;

  // The layer's experts are about to be used: they are counted, and what is missing begins to be
  // read. `uses` names each expert once. num_tokens: of the step.
  virtual void announce(int layer, std::span<const ExpertUse> uses, int64_t num_tokens) = 0;

  // Leases as many of `wanted`, which were announced, as are in device memory; waits until at least
  // one is. Every expert named in the lease has its data, whose checksum was right, for what reads
  // it in host memory or is given to the device from now on.
  // Errors: kCorrupt or kUnavailable naming the expert's record; the next try reads it again.
  virtual Result<ExpertLease> acquire(int layer, std::span<const int32_t> wanted) = 0;

  // For a GPU's pass. Of the last announce(): experts that the caller has to compute on the host,
  // where they lie, rather than acquire. They stay until the lease ends; once for each announce().
  virtual ExpertLease take_for_host() { return {}; }
  // Whether a step of so many tokens may meet such experts.
  virtual bool computes_on_host(int64_t /*num_tokens*/) const { return false; }
  // Tells the time that computing them took.
  virtual void computed_on_host(double /*seconds*/) {}

  // Whether acquire() of these would return at once.
  virtual bool is_at_hand(int /*layer*/, std::span<const int32_t> /*wanted*/) { return true; }

  // Whether prefetch() for this layer could read anything; false keeps the caller from predicting.
  virtual bool wants_prefetch(int layer) const = 0;

  // A guess at what the layer's next announce() will name, read while nothing else is. Weights are
  // the predicted ones. Those of a layer end with its announce().
  virtual void prefetch(int layer, std::span<const ExpertUse> guesses) = 0;

  virtual ExpertStoreStats stats() const = 0;

  // All experts of the layer, where they are in device memory for good and nobody counts their
  // uses: the pass then asks for nothing. Otherwise empty. The same at any time.
  virtual std::span<const MlpWeight> resident(int /*layer*/) const { return {}; }

 protected:
  friend class ExpertLease;
  virtual void release(int layer, std::span<const int32_t> experts) noexcept = 0;
};

inline ExpertLease::~ExpertLease() {
  if (store_ != nullptr) store_->release(layer_, ids_);
}

}  // namespace nibble
