#include "nibble/offload/tiered_store.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <limits>

#include "nibble/base/check.h"
#include "nibble/base/error.h"
#include "nibble/base/log.h"
#include "nibble/base/text.h"
#include "nibble/offload/packed_expert.h"

namespace nibble {
namespace {

using Clock = std::chrono::steady_clock;

constexpr auto kPatience = std::chrono::seconds(10);  // before a wait is told

// Slots that belong to no layer: reads under way while a layer's own are in use.
constexpr int64_t kFloatingSlots = 4;

// Experts on their way to a device that are leased together: they run while the next ones come.
constexpr size_t kArriving = 16;

}  // namespace

TieredStore::TieredStore(const ModelConfig& config, TieredStoreOptions options)
    : shape_{config.hidden_size, config.moe_intermediate_size},
      num_experts_(config.n_routed_experts),
      options_(std::move(options)) {}

Result<std::unique_ptr<TieredStore>> TieredStore::create(std::unique_ptr<ExpertLoader> loader,
                                                         const ModelConfig& config, bool with_mtp,
                                                         TieredStoreOptions options) {
  if (options.prefetch_layers < 0 || options.prefetch_layers > 1) {
    return invalid_argument(
        fmt::format("--prefetch-layers is {}, expected 0 or 1", options.prefetch_layers));
  }
  std::unique_ptr<TieredStore> store(new TieredStore(config, std::move(options)));
  store->loader_ = std::move(loader);
  const auto experts = static_cast<size_t>(config.n_routed_experts);
  store->layer_index_.assign(static_cast<size_t>(config.num_hidden_layers) + 1, -1);
  std::vector<HotExpert> all;
  for (const int number : moe_layers(config, with_mtp)) {
    store->layer_index_[static_cast<size_t>(number)] = static_cast<int>(store->layers_.size());
    Layer& layer = store->layers_.emplace_back();
    layer.number = number;
    layer.entries.resize(experts);
    layer.table.resize(experts);
    layer.policy = make_eviction_policy(store->options_.eviction, config.n_routed_experts);
    for (int e = 0; e < config.n_routed_experts; ++e) {
      const uint64_t bytes = store->loader_->record_bytes(number, e);
      NIBBLE_CHECK(bytes > 0);
      store->slot_bytes_ = std::max(store->slot_bytes_, bytes);
      MlpWeight& weight = layer.table[static_cast<size_t>(e)];
      weight.gate_proj.rows = weight.up_proj.rows = weight.down_proj.cols =
          config.moe_intermediate_size;
      weight.gate_proj.cols = weight.up_proj.cols = weight.down_proj.rows = config.hidden_size;
      all.push_back({number, e});
    }
    layer.leased = layer.table;
  }
  store->stats_.num_experts = static_cast<int64_t>(all.size());
  store->stats_.expert_bytes = static_cast<int64_t>(store->slot_bytes_);
  if (all.empty()) return store;
  {
    const std::lock_guard lock(store->mutex_);
    NIBBLE_TRY(store->resize(store->options_.memory_bytes));
  }
  if (store->everything_fits_) {
    NIBBLE_TRY(store->preload(all, false));
  } else {
    NIBBLE_TRY(store->preload(store->options_.hot_experts, true));
  }
  return store;
}

TieredStore::~TieredStore() {
  {
    const std::lock_guard lock(mutex_);
    fetches_.clear();  // nobody waits any more
  }
  for_host_ = {};
  loader_.reset();
}

TieredStore::Layer& TieredStore::layer_of(int number) {
  const int index = layer_index_.at(static_cast<size_t>(number));
  NIBBLE_CHECK(index >= 0);
  return layers_[static_cast<size_t>(index)];
}
const TieredStore::Layer& TieredStore::layer_of(int number) const {
  return const_cast<TieredStore*>(this)->layer_of(number);
}

int64_t TieredStore::slots_for(uint64_t bytes) const {
  const auto all = static_cast<int64_t>(layers_.size()) * num_experts_;
  if (bytes == 0) return all;
  return std::min(all, static_cast<int64_t>(bytes / slot_bytes_));
}

Status TieredStore::resize(uint64_t bytes) {
  const int64_t slots = slots_for(bytes);
  if (slots < 1) {
    return invalid_argument(fmt::format("--expert-memory is {}, and one expert takes {}",
                                        format_bytes(bytes), format_bytes(slot_bytes_)));
  }
  if (const auto missing = slots - static_cast<int64_t>(slots_.size()); missing > 0) {
    auto more = NIBBLE_TRY(options_.allocate_slots(slot_bytes_, missing));
    for (SlotMemory& slot : more) {
      slots_.push_back(std::move(slot));
      free_slots_.push_back(static_cast<int>(slots_.size()) - 1);
    }
  }
  target_slots_ = slots;
  const auto layers = static_cast<int64_t>(layers_.size());
  everything_fits_ = slots == layers * num_experts_;
  const int64_t floating = everything_fits_ ? 0 : std::min(kFloatingSlots, slots / 8);
  for (int64_t i = 0; i < layers; ++i) {
    const int64_t share = (slots - floating) / layers + (i < (slots - floating) % layers ? 1 : 0);
    layers_[static_cast<size_t>(i)].share =
        static_cast<int>(std::min<int64_t>(share, num_experts_));
  }
  trim();
  return {};
}

// Gives slots back until the budget holds, as far as nothing is using them.
void TieredStore::trim() {
  while (static_cast<int64_t>(slots_.size()) > target_slots_) {
    if (free_slots_.empty()) {
      int freed = -1;
      const Layer* widest = nullptr;
      for (const Layer& layer : layers_) {
        if (widest == nullptr || layer.held - layer.share > widest->held - widest->share) {
          widest = &layer;
        }
      }
      if (!take_slot(widest->number, true, &freed)) return;
      free_slots_.push_back(freed);
    }
    // The last slot moves to the place of the one that goes.
    const int gone = free_slots_.back();
    free_slots_.pop_back();
    const int last = static_cast<int>(slots_.size()) - 1;
    if (gone != last) {
      std::swap(slots_[static_cast<size_t>(gone)], slots_[static_cast<size_t>(last)]);
      const auto moved = std::find(free_slots_.begin(), free_slots_.end(), last);
      if (moved != free_slots_.end()) *moved = gone;
      for (Layer& layer : layers_) {
        for (Entry& entry : layer.entries) {
          if (entry.slot == last) entry.slot = gone;
        }
      }
    }
    slots_.pop_back();
  }
}

Status TieredStore::set_memory(uint64_t bytes) {
  if (options_.on_device) {
    return unsupported("the device's room for experts can't change while it is in use");
  }
  const std::lock_guard lock(mutex_);
  if (layers_.empty()) return {};
  NIBBLE_TRY(resize(bytes));
  begin_fetches();
  return {};
}

void TieredStore::evict(Layer& layer, Entry& entry) {
  const auto expert = static_cast<size_t>(&entry - layer.entries.data());
  if (entry.guessed) ++stats_.num_guesses_wasted;
  for (LinearWeight* weight : {&layer.table[expert].gate_proj, &layer.table[expert].up_proj,
                               &layer.table[expert].down_proj}) {
    weight->data = nullptr;
    weight->scales = nullptr;
  }
  free_slots_.push_back(entry.slot);
  entry = Entry{};
  --layer.held;
  --layer.num_ready;
  ++stats_.num_evictions;
}

// Frees the slot of the layer's least valued expert that nobody uses or is about to use. As a last
// resort a guess or a pinned expert goes.
bool TieredStore::evict_from(Layer& layer, bool last_resort) {
  Entry* worst = nullptr;
  double worst_value = std::numeric_limits<double>::infinity();
  for (Entry& entry : layer.entries) {
    if (entry.state != State::kReady || entry.leases > 0 || entry.wanted) continue;
    if ((entry.guessed || entry.pinned) && !last_resort) continue;
    const double value = layer.policy->value(static_cast<int32_t>(&entry - layer.entries.data()));
    if (worst == nullptr || value < worst_value) {
      worst = &entry;
      worst_value = value;
    }
  }
  if (worst == nullptr) return false;
  evict(layer, *worst);
  return true;
}

bool TieredStore::take_slot(int layer, bool urgent, int* slot) {
  if (free_slots_.empty() && !make_room(layer_of(layer), urgent)) return false;
  *slot = free_slots_.back();
  free_slots_.pop_back();
  return true;
}

// Evicts one expert for `own`: of its own once it has its share, else of a layer above its share.
bool TieredStore::make_room(Layer& own, bool urgent) {
  if (own.held >= own.share && evict_from(own, false)) return true;
  std::vector<Layer*> others;
  for (Layer& other : layers_) others.push_back(&other);
  std::stable_sort(others.begin(), others.end(), [](const Layer* a, const Layer* b) {
    return a->held - a->share > b->held - b->share;
  });
  for (Layer* other : others) {
    if (other->held > other->share && evict_from(*other, false)) return true;
  }
  if (!urgent) return false;
  // What the layer waits for or is about to compute will make room soon: better than to take from
  // others what they will want again.
  for (const Entry& entry : own.entries) {
    if (entry.state == State::kReading) return false;
    if (entry.state == State::kReady && (entry.wanted || entry.leases > 0)) return false;
  }
  for (const bool last_resort : {false, true}) {
    if (evict_from(own, last_resort)) return true;
    for (Layer* other : others) {
      if (evict_from(*other, last_resort)) return true;
    }
  }
  return false;
}

void TieredStore::begin_read(Layer& layer, int expert, int slot, bool urgent) {
  Entry& entry = layer.entries[static_cast<size_t>(expert)];
  entry.state = State::kReading;
  entry.slot = slot;
  entry.guessed = !urgent;
  ++layer.held;
  const uint64_t bytes = loader_->record_bytes(layer.number, expert);
  const auto memory = slots_[static_cast<size_t>(slot)].bytes().first(bytes);
  if (urgent) {
    if (const auto weight = loader_->start_at_hand(layer.number, expert, memory)) {
      entry.state = State::kReady;
      entry.arriving = true;
      layer.table[static_cast<size_t>(expert)] = *weight;
      ++layer.num_ready;
      return;
    }
  }
  entry.ticket = loader_->start(
      layer.number, expert, memory, urgent,
      [this, loader = loader_.get(), number = layer.number, expert, memory](Status status) {
        std::optional<MlpWeight> weight;
        if (status) {
          auto read = loader->open(memory, number, expert, shape_, options_.activation);
          if (read) {
            weight = *read;
          } else {
            status = tl::unexpected(std::move(read).error());
          }
        } else {
          status = with_context(std::move(status), expert_record_name(number, expert));
        }
        finish_read(number, expert, weight, std::move(status));
      });
}

void TieredStore::finish_read(int number, int expert, const std::optional<MlpWeight>& weight,
                              Status status) {
  std::unique_lock lock(mutex_);
  Layer& layer = layer_of(number);
  Entry& entry = layer.entries[static_cast<size_t>(expert)];
  NIBBLE_CHECK(entry.state == State::kReading);
  if (status) {
    entry.state = State::kReady;
    layer.table[static_cast<size_t>(expert)] = *weight;
    ++layer.num_ready;
  } else {
    if (entry.guessed) ++stats_.num_guesses_wasted;
    free_slots_.push_back(entry.slot);
    --layer.held;
    const bool wanted = entry.wanted;
    entry = Entry{};
    entry.wanted = wanted;
    if (status.error().code != ErrorCode::kCancelled) {
      entry.state = State::kFailed;
      entry.error = std::move(status).error();
    }
  }
  auto ended = ended_fetches(layer, expert);
  if (static_cast<int64_t>(slots_.size()) > target_slots_) trim();
  begin_fetches();
  changed_.notify_all();
  lock.unlock();
  for (auto& [done, result] : ended) done(std::move(result));
}

void TieredStore::clear_wanted() {
  if (last_announced_ == nullptr) return;
  for (Entry& entry : last_announced_->entries) entry.wanted = false;
}

// Guesses at this layer that turned out wrong and are still being read.
void TieredStore::end_guesses(Layer& layer, std::span<const ExpertUse> uses) {
  for (int32_t e = 0; e < num_experts_; ++e) {
    Entry& entry = layer.entries[static_cast<size_t>(e)];
    if (!entry.guessed) continue;
    const bool used = std::any_of(uses.begin(), uses.end(),
                                  [e](const ExpertUse& use) { return use.expert == e; });
    if (used) continue;
    if (entry.state == State::kReading && loader_->cancel(entry.ticket)) {
      free_slots_.push_back(entry.slot);
      entry = Entry{};
      --layer.held;
      ++stats_.num_guesses_wasted;
    } else if (entry.state == State::kReady) {
      // It was wrong for this step and may be right for a later one: an expert like any other.
      entry.guessed = false;
      ++stats_.num_guesses_wasted;
    }
  }
}

void TieredStore::announce(int number, std::span<const ExpertUse> uses, int64_t num_tokens) {
  if (options_.trace != nullptr) options_.trace->add(number, uses, num_tokens);
  for_host_ = {};  // of a pass that failed
  const std::lock_guard lock(mutex_);
  Layer& layer = layer_of(number);
  clear_wanted();  // of a pass that failed
  last_announced_ = &layer;
  ++stats_.num_steps;
  if (everything_fits_ && layer.num_ready == num_experts_) {
    stats_.num_hits += static_cast<int64_t>(uses.size());
    stats_.bytes_hit += static_cast<int64_t>(uses.size()) * static_cast<int64_t>(slot_bytes_);
    return;
  }
  layer.policy->use(uses, num_tokens);
  end_guesses(layer, uses);
  for (const ExpertUse& use : uses) {
    Entry& entry = layer.entries[static_cast<size_t>(use.expert)];
    entry.wanted = true;
    if (entry.state == State::kReady) {
      ++stats_.num_hits;
      stats_.bytes_hit += static_cast<int64_t>(slot_bytes_);
      stats_.num_guesses_used += entry.guessed ? 1 : 0;
    } else if (entry.state == State::kReading) {
      ++stats_.num_guesses_late;
      loader_->hurry(entry.ticket);
    } else {
      ++stats_.num_misses;
      if (entry.state == State::kFailed) entry.state = State::kAbsent;  // of a guess
    }
    entry.guessed = false;
  }
  choose_for_host(layer, uses, num_tokens);
  std::vector<int32_t> wanted;
  for (const ExpertUse& use : uses) {
    if (layer.entries[static_cast<size_t>(use.expert)].wanted) wanted.push_back(use.expert);
  }
  start_missing(layer, wanted);
}

void TieredStore::choose_for_host(Layer& layer, std::span<const ExpertUse> uses,
                                  int64_t num_tokens) {
  if (!computes_on_host(num_tokens)) return;
  std::vector<MissedExpert> missed;
  for (const ExpertUse& use : uses) {
    if (layer.entries[static_cast<size_t>(use.expert)].state != State::kAbsent) continue;
    missed.push_back({use.expert, use.tokens, layer.policy->value(use.expert)});
  }
  if (missed.empty()) return;
  for_host_ = loader_->lease_for_host(layer.number, missed);
  for (const int32_t e : for_host_.ids()) layer.entries[static_cast<size_t>(e)].wanted = false;
  stats_.num_on_host += static_cast<int64_t>(for_host_.ids().size());
}

void TieredStore::computed_on_host(double seconds) {
  const std::lock_guard lock(mutex_);
  stats_.host_seconds += seconds;
}

bool TieredStore::is_at_hand(int number, std::span<const int32_t> wanted) {
  const std::lock_guard lock(mutex_);
  const Layer& layer = layer_of(number);
  return std::any_of(wanted.begin(), wanted.end(), [&](int32_t e) {
    const State state = layer.entries[static_cast<size_t>(e)].state;
    return state == State::kReady || state == State::kFailed;
  });
}

void TieredStore::start_missing(Layer& layer, std::span<const int32_t> wanted) {
  for (const int32_t e : wanted) {
    if (layer.entries[static_cast<size_t>(e)].state != State::kAbsent) continue;
    int slot = -1;
    if (!take_slot(layer.number, true, &slot)) return;
    begin_read(layer, e, slot, true);
  }
}

void TieredStore::wait(std::unique_lock<std::mutex>& lock, const Layer& layer,
                       std::span<const int32_t> wanted) {
  const auto begin = Clock::now();
  if (changed_.wait_for(lock, kPatience) == std::cv_status::timeout) {
    log_warning(fmt::format("{} is still being read after {} s",
                            expert_record_name(layer.number, wanted.front()), kPatience.count()));
    changed_.wait(lock);
  }
  stats_.stall_seconds += std::chrono::duration<double>(Clock::now() - begin).count();
}

Result<ExpertLease> TieredStore::acquire(int number, std::span<const int32_t> wanted) {
  NIBBLE_CHECK(!wanted.empty());
  std::unique_lock lock(mutex_);
  Layer& layer = layer_of(number);
  for (;;) {
    start_missing(layer, wanted);
    std::vector<int32_t> ids;
    std::vector<int32_t> arriving;
    for (const int32_t e : wanted) {
      Entry& entry = layer.entries[static_cast<size_t>(e)];
      if (entry.state == State::kFailed) {
        Error error = *std::move(entry.error);
        entry = Entry{};
        clear_wanted();
        return tl::unexpected(std::move(error));
      }
      if (entry.state == State::kReady) (entry.arriving ? arriving : ids).push_back(e);
    }
    if (ids.empty()) {
      ids.swap(arriving);
      ids.resize(std::min(ids.size(), kArriving));
    }
    if (!ids.empty()) {
      for (const int32_t e : ids) {
        Entry& entry = layer.entries[static_cast<size_t>(e)];
        ++entry.leases;
        entry.wanted = false;
        entry.arriving = false;
        layer.leased[static_cast<size_t>(e)] = layer.table[static_cast<size_t>(e)];
      }
      if (options_.on_device) loader_->use(records_of(layer, ids));
      return ExpertLease(this, number, layer.leased, std::move(ids));
    }
    wait(lock, layer, wanted);
  }
}

void TieredStore::release(int number, std::span<const int32_t> experts) noexcept {
  const std::lock_guard lock(mutex_);
  Layer& layer = layer_of(number);
  if (options_.on_device) loader_->used(records_of(layer, experts));
  for (const int32_t e : experts) --layer.entries[static_cast<size_t>(e)].leases;
  if (static_cast<int64_t>(slots_.size()) > target_slots_) trim();
  begin_fetches();
  changed_.notify_all();
}

bool TieredStore::wants_prefetch(int number) const {
  if (options_.prefetch_layers == 0) return false;
  const std::lock_guard lock(mutex_);
  return layer_of(number).num_ready < num_experts_;
}

void TieredStore::prefetch(int number, std::span<const ExpertUse> guesses) {
  if (options_.prefetch_layers == 0) return;
  const std::lock_guard lock(mutex_);
  Layer& layer = layer_of(number);
  for (const ExpertUse& guess : guesses) {
    if (guess.weight < options_.prefetch_min_score) continue;
    Entry& entry = layer.entries[static_cast<size_t>(guess.expert)];
    if (entry.state != State::kAbsent) continue;
    int slot = -1;
    if (!take_slot(layer.number, false, &slot)) return;
    ++stats_.num_guesses;
    begin_read(layer, guess.expert, slot, false);
  }
}

Status TieredStore::preload(std::span<const HotExpert> experts, bool pin) {
  std::unique_lock lock(mutex_);
  std::vector<HotExpert> reading;
  for (const HotExpert& hot : experts) {
    const auto number = static_cast<size_t>(hot.layer);
    if (number >= layer_index_.size() || hot.expert >= num_experts_) {
      return invalid_argument(fmt::format("the hot set names {}, which the model lacks",
                                          expert_record_name(hot.layer, hot.expert)));
    }
    if (layer_index_[number] < 0) continue;  // the MTP layer, not loaded
    Layer& layer = layer_of(hot.layer);
    Entry& entry = layer.entries[static_cast<size_t>(hot.expert)];
    const auto room = pin ? static_cast<int>(options_.hot_share * layer.share) : num_experts_;
    if (entry.state != State::kAbsent || layer.held >= room || free_slots_.empty()) continue;
    const int slot = free_slots_.back();
    free_slots_.pop_back();
    begin_read(layer, hot.expert, slot, true);
    entry.pinned = pin;
    reading.push_back(hot);
  }
  for (const HotExpert& hot : reading) {
    Layer& layer = layer_of(hot.layer);
    Entry& entry = layer.entries[static_cast<size_t>(hot.expert)];
    changed_.wait(lock, [&] { return entry.state != State::kReading; });
    if (entry.state == State::kFailed) return tl::unexpected(*std::move(entry.error));
    // Of all experts nobody asks again (resident()).
    if (options_.on_device) loader_->use(records_of(layer, std::span(&hot.expert, 1)));
  }
  return {};
}

std::span<const MlpWeight> TieredStore::resident(int number) const {
  // Where the budget may change, or uses are recorded, each step asks.
  if (!options_.on_device || !everything_fits_ || options_.trace != nullptr) return {};
  return layer_of(number).table;
}

std::vector<const std::byte*> TieredStore::records_of(const Layer& layer,
                                                      std::span<const int32_t> experts) const {
  std::vector<const std::byte*> records;
  for (const int32_t e : experts) {
    const Entry& entry = layer.entries[static_cast<size_t>(e)];
    records.push_back(slots_[static_cast<size_t>(entry.slot)].bytes().data());
  }
  return records;
}

ExpertStoreStats TieredStore::stats() const {
  const std::lock_guard lock(mutex_);
  ExpertStoreStats stats = stats_;
  stats.num_slots = static_cast<int64_t>(slots_.size());
  for (const Layer& layer : layers_) stats.num_resident += layer.num_ready;
  stats.bytes_read = static_cast<int64_t>(loader_->bytes_read());
  stats.read_seconds = loader_->busy_seconds();
  stats.below = loader_->below();
  return stats;
}

std::string TieredStore::description() const {
  const std::lock_guard lock(mutex_);
  return fmt::format("{} of {} experts of {} in memory, the others from {}; {}", target_slots_,
                     stats_.num_experts, format_bytes(slot_bytes_), loader_->description(),
                     eviction_kind_name(options_.eviction.kind));
}

}  // namespace nibble
