// TieredStore as the lower tier of another store: experts are fetched from it and leased until they
// have been copied.
#include <optional>
#include <utility>
#include <vector>

#include "nibble/base/error.h"
#include "nibble/offload/tiered_store.h"

namespace nibble {

TieredStore::Fetched TieredStore::lease_to_fetch(Layer& layer, int expert) {
  Entry& entry = layer.entries[static_cast<size_t>(expert)];
  ++entry.leases;
  entry.wanted = false;
  return {layer.table[static_cast<size_t>(expert)],
          slots_[static_cast<size_t>(entry.slot)].bytes().first(
              loader_->record_bytes(layer.number, expert))};
}

std::optional<TieredStore::Fetched> TieredStore::fetch_now(int number, int expert) {
  const std::lock_guard lock(mutex_);
  Layer& layer = layer_of(number);
  if (layer.entries[static_cast<size_t>(expert)].state != State::kReady) return std::nullopt;
  const ExpertUse use{expert, 1, 0};
  layer.policy->use({&use, 1}, 1);
  ++stats_.num_hits;
  return lease_to_fetch(layer, expert);
}

std::optional<TieredStore::Fetched> TieredStore::fetch(int number, int expert, bool urgent,
                                                       FetchDone done) {
  if (auto fetched = fetch_now(number, expert)) return fetched;
  const std::lock_guard lock(mutex_);
  Layer& layer = layer_of(number);
  Entry& entry = layer.entries[static_cast<size_t>(expert)];
  const ExpertUse use{expert, 1, 0};
  layer.policy->use({&use, 1}, 1);
  ++stats_.num_misses;
  if (entry.state == State::kReady) return lease_to_fetch(layer, expert);
  if (entry.state == State::kFailed) entry = Entry{};
  if (entry.state == State::kReading && urgent) loader_->hurry(entry.ticket);
  entry.wanted = true;
  fetches_.push_back({number, expert, urgent, std::move(done)});
  begin_fetches();
  return std::nullopt;
}

void TieredStore::hurry_fetch(int number, int expert) {
  const std::lock_guard lock(mutex_);
  Entry& entry = layer_of(number).entries[static_cast<size_t>(expert)];
  if (entry.state == State::kReading) loader_->hurry(entry.ticket);
  for (Fetch& fetch : fetches_) {
    if (fetch.layer == number && fetch.expert == expert) fetch.urgent = true;
  }
  begin_fetches();
}

ExpertLease TieredStore::lease_for_host(int number, std::span<const MissedExpert> missed,
                                        const HostExpertRates& rates, HostExperts mode) {
  const std::lock_guard lock(mutex_);
  Layer& layer = layer_of(number);
  std::vector<MissedExpert> here;
  for (const MissedExpert& one : missed) {
    if (layer.entries[static_cast<size_t>(one.expert)].state == State::kReady) here.push_back(one);
  }
  // Those that are not here come by way of the link, too.
  const auto copied = static_cast<int64_t>(missed.size() - here.size());
  std::vector<int32_t> chosen = experts_for_host(here, copied, rates, mode);
  if (chosen.empty()) return {};
  std::vector<ExpertUse> uses;
  for (const int32_t e : chosen) {
    Entry& entry = layer.entries[static_cast<size_t>(e)];
    ++entry.leases;
    entry.wanted = false;
    layer.leased[static_cast<size_t>(e)] = layer.table[static_cast<size_t>(e)];
    uses.push_back({e, 1, 0});
  }
  layer.policy->use(uses, 1);
  stats_.num_hits += static_cast<int64_t>(chosen.size());
  return ExpertLease(this, number, layer.leased, std::move(chosen));
}

void TieredStore::end_fetch(int number, int expert) {
  const int32_t id = expert;
  release(number, {&id, 1});
}

// Reads what is fetched as far as there are slots, the urgent ones first.
void TieredStore::begin_fetches() {
  for (const bool urgent : {true, false}) {
    for (const Fetch& fetch : fetches_) {
      if (fetch.urgent != urgent) continue;
      Layer& layer = layer_of(fetch.layer);
      Entry& entry = layer.entries[static_cast<size_t>(fetch.expert)];
      if (entry.state != State::kAbsent) continue;
      int slot = -1;
      if (!take_slot(fetch.layer, true, &slot)) return;
      begin_read(layer, fetch.expert, slot, urgent);
      entry.guessed = false;  // whoever guesses counts
    }
  }
}

std::vector<std::pair<TieredStore::FetchDone, Result<TieredStore::Fetched>>>
TieredStore::ended_fetches(Layer& layer, int expert) {
  std::vector<std::pair<FetchDone, Result<Fetched>>> ended;
  Entry& entry = layer.entries[static_cast<size_t>(expert)];
  for (auto fetch = fetches_.begin(); fetch != fetches_.end();) {
    if (fetch->layer != layer.number || fetch->expert != expert) {
      ++fetch;
      continue;
    }
    if (entry.state == State::kReady) {
      ended.emplace_back(std::move(fetch->done), lease_to_fetch(layer, expert));
    } else {
      const Error error = entry.error.value_or(Error{ErrorCode::kCancelled, "cancelled"});
      ended.emplace_back(std::move(fetch->done), tl::unexpected(error));
    }
    fetch = fetches_.erase(fetch);
  }
  if (!ended.empty() && entry.state != State::kReady) entry = Entry{};
  return ended;
}

}  // namespace nibble
