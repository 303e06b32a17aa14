#include "nibble/offload/host_tier_loader.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <thread>
#include <unordered_map>

#include "nibble/base/check.h"
#include "nibble/base/error.h"
#include "nibble/base/log.h"

namespace nibble {
namespace {

using Clock = std::chrono::steady_clock;

class HostTierLoader final : public ExpertLoader {
 public:
  HostTierLoader(std::unique_ptr<TieredStore> ram, std::unique_ptr<TransferQueue> transfers,
                 HostExperts host_experts, const HostExpertRates& rates)
      : ram_(std::move(ram)),
        transfers_(std::move(transfers)),
        host_experts_(host_experts),
        rates_(rates),
        beginner_([this] { begin_and_end_fetches(); }),
        returner_([this] { return_copied(); }) {}
  HostTierLoader(const HostTierLoader&) = delete;
  HostTierLoader& operator=(const HostTierLoader&) = delete;

  ~HostTierLoader() override {
    {
      const std::lock_guard lock(mutex_);
      closing_ = true;  // from here on no copy begins
      guesses_.clear();
    }
    wake_.notify_all();
    beginner_.join();
    returner_.join();
    ram_.reset();
  }

  uint64_t record_bytes(int layer, int expert) const override {
    return ram_->record_bytes(layer, expert);
  }

  std::optional<MlpWeight> start_at_hand(int layer, int expert,
                                         std::span<std::byte> destination) override {
    const auto fetched = ram_->fetch_now(layer, expert);
    if (!fetched) return std::nullopt;
    const std::lock_guard lock(mutex_);
    return copy({0, layer, expert, destination, {}}, *fetched);
  }

  uint64_t start(int layer, int expert, std::span<std::byte> destination, bool urgent,
                 Done done) override {
    std::unique_lock lock(mutex_);
    Job job{next_ticket_++, layer, expert, destination, std::move(done)};
    const uint64_t ticket = job.ticket;
    if (urgent) {
      fetch(std::move(job), true, lock);
    } else {
      guesses_.push_back(std::move(job));
      wake_.notify_all();
    }
    return ticket;
  }

  void hurry(uint64_t ticket) override {
    std::unique_lock lock(mutex_);
    const auto found = guess(ticket);
    if (found != guesses_.end()) {
      Job job = std::move(*found);
      guesses_.erase(found);
      fetch(std::move(job), true, lock);
      return;
    }
    const auto found_reading = reading_.find(ticket);
    if (found_reading == reading_.end()) return;
    Reading& reading = found_reading->second;
    reading.is_hurried = true;  // for fetch(), which may not have asked `ram` yet
    const int layer = reading.layer;
    const int expert = reading.expert;
    lock.unlock();
    ram_->hurry_fetch(layer, expert);
  }

  bool cancel(uint64_t ticket) override {
    const std::lock_guard lock(mutex_);
    const auto found = guess(ticket);
    if (found == guesses_.end()) return false;
    guesses_.erase(found);
    return true;
  }

  Result<MlpWeight> open(std::span<std::byte> record, int /*layer*/, int /*expert*/,
                         const ExpertShape& /*shape*/, ActivationFormat /*activation*/) override {
    const std::lock_guard lock(mutex_);
    return slots_.at(record.data()).weight;
  }

  void use(std::span<const std::byte* const> records) override {
    uint64_t last = 0;
    {
      const std::lock_guard lock(mutex_);
      for (const std::byte* const record : records) {
        Slot& slot = slots_.at(record);
        if (!slot.is_awaited) last = std::max(last, slot.ticket);
        slot.is_awaited = true;
      }
    }
    if (last > 0) transfers_->hold_device_until(last);  // copies end in their order
  }

  void used(std::span<const std::byte* const> records) override {
    const uint64_t mark = transfers_->mark();
    const std::lock_guard lock(mutex_);
    for (const std::byte* const record : records) slots_.at(record).mark = mark;
  }

  ExpertLease lease_for_host(int layer, std::span<const MissedExpert> missed) override {
    return ram_->lease_for_host(layer, missed, rates_, host_experts_);
  }
  bool computes_on_host() const override { return host_experts_ != HostExperts::kOff; }

  uint64_t bytes_read() const override {
    const std::lock_guard lock(mutex_);
    return bytes_copied_;
  }
  double busy_seconds() const override {
    const std::lock_guard lock(mutex_);
    return busy_seconds_;
  }
  std::string description() const override {
    return fmt::format("the host's memory ({})", ram_->description());
  }
  ExpertStoreStats::Below below() const override {
    const ExpertStoreStats ram = ram_->stats();
    return {ram.num_slots,  ram.num_resident, ram.num_hits,
            ram.num_misses, ram.bytes_read,   ram.read_seconds};
  }

 private:
  struct Job {
    uint64_t ticket = 0;
    int layer = 0;
    int expert = 0;
    std::span<std::byte> destination;
    Done done;
  };
  // What is in a destination.
  struct Slot {
    MlpWeight weight;
    uint64_t ticket = 0;      // of the copy
    uint64_t mark = 0;        // of the work that used it last
    bool is_awaited = false;  // the device's work was told to wait for the copy
  };
  struct Copy {
    uint64_t ticket = 0;
    int layer = 0;
    int expert = 0;
  };
  // What was asked of `ram`.
  struct Reading {
    int layer = 0;
    int expert = 0;
    bool is_hurried = false;
  };

  std::deque<Job>::iterator guess(uint64_t ticket) {
    return std::find_if(guesses_.begin(), guesses_.end(),
                        [&](const Job& job) { return job.ticket == ticket; });
  }

  // Begins the copy and returns the weight as it will be in the destination. With the lock held.
  MlpWeight copy(const Job& job, const TieredStore::Fetched& fetched) {
    NIBBLE_CHECK(fetched.record.size() == job.destination.size());
    MlpWeight weight = fetched.weight;
    for (LinearWeight* const matrix : {&weight.gate_proj, &weight.up_proj, &weight.down_proj}) {
      for (const void** const pointer : {&matrix->data, &matrix->scales}) {
        if (*pointer == nullptr) continue;
        const auto offset = static_cast<const std::byte*>(*pointer) - fetched.record.data();
        *pointer = job.destination.data() + offset;
      }
    }
    Slot& slot = slots_[job.destination.data()];
    slot.weight = weight;
    slot.ticket = transfers_->copy(job.destination.data(), fetched.record, slot.mark);
    slot.is_awaited = false;
    if (copies_.empty()) busy_since_ = Clock::now();
    copies_.push_back({slot.ticket, job.layer, job.expert});
    bytes_copied_ += fetched.record.size();
    wake_.notify_all();
    return weight;
  }

  // Called with the lock held, returns with it held; given up while the tier below is asked. The
  // caller may hold the upper store's, which `done` takes: it is called elsewhere.
  void fetch(Job job, bool urgent, std::unique_lock<std::mutex>& lock) {
    const uint64_t ticket = job.ticket;
    const int layer = job.layer;
    const int expert = job.expert;
    reading_[ticket] = {layer, expert, false};
    lock.unlock();
    const auto shared = std::make_shared<Job>(std::move(job));
    const auto fetched =
        ram_->fetch(layer, expert, urgent, [this, shared](Result<TieredStore::Fetched> result) {
          finish(*shared, std::move(result));
        });
    lock.lock();
    if (fetched) {
      ended_.emplace_back(std::move(shared->done), copy_unless_closing(*shared, *fetched));
      wake_.notify_all();
      return;
    }
    const auto reading = reading_.find(ticket);
    if (reading == reading_.end() || !reading->second.is_hurried) return;
    lock.unlock();
    ram_->hurry_fetch(layer, expert);
    lock.lock();
  }

  // With the lock held: a copy either begins before the destructor, which waits for it, or not at
  // all.
  Status copy_unless_closing(const Job& job, const TieredStore::Fetched& fetched) {
    reading_.erase(job.ticket);
    if (closing_) return cancelled("the store is closing");
    (void)copy(job, fetched);
    return {};
  }

  void finish(Job& job, Result<TieredStore::Fetched> result) {
    Status status;
    {
      const std::lock_guard lock(mutex_);
      if (result) {
        status = copy_unless_closing(job, *result);
      } else {
        reading_.erase(job.ticket);
        status = tl::unexpected(std::move(result).error());
      }
      wake_.notify_all();
    }
    job.done(std::move(status));
  }

  // Begins guesses while nothing is under way, and tells the end of fetches whose expert was there
  // after all.
  void begin_and_end_fetches() {
    std::unique_lock lock(mutex_);
    for (;;) {
      const auto guess_may_begin = [&] {
        return !guesses_.empty() && reading_.empty() && copies_.empty();
      };
      wake_.wait(lock, [&] { return closing_ || !ended_.empty() || guess_may_begin(); });
      if (!ended_.empty()) {
        auto [done, status] = std::move(ended_.front());
        ended_.pop_front();
        lock.unlock();
        done(std::move(status));
        lock.lock();
      } else if (guess_may_begin()) {
        Job job = std::move(guesses_.front());
        guesses_.pop_front();
        fetch(std::move(job), false, lock);
      } else {
        return;  // closing
      }
    }
  }

  // Gives records back whose copies are done.
  void return_copied() {
    std::unique_lock lock(mutex_);
    for (;;) {
      wake_.wait(lock, [&] { return closing_ || !copies_.empty(); });
      if (copies_.empty()) return;
      const Copy copy = copies_.front();
      lock.unlock();
      const Status status = transfers_->wait(copy.ticket);
      ram_->end_fetch(copy.layer, copy.expert);
      lock.lock();
      if (!status && !told_) {
        told_ = true;  // the step that needs it fails by itself
        log_error(fmt::format("experts can't be copied any more: {}", status.error().message));
      }
      copies_.pop_front();
      if (!copies_.empty()) continue;
      busy_seconds_ += std::chrono::duration<double>(Clock::now() - busy_since_).count();
      wake_.notify_all();
    }
  }

  std::unique_ptr<TieredStore> ram_;
  std::unique_ptr<TransferQueue> transfers_;
  const HostExperts host_experts_;
  const HostExpertRates rates_;

  mutable std::mutex mutex_;
  std::condition_variable wake_;
  std::unordered_map<const std::byte*, Slot> slots_;  // by destination
  std::map<uint64_t, Reading> reading_;               // by ticket
  std::deque<Job> guesses_;                           // not begun
  std::deque<std::pair<Done, Status>> ended_;         // without a read, to be told
  std::deque<Copy> copies_;                           // under way, in their order
  uint64_t next_ticket_ = 1;
  uint64_t bytes_copied_ = 0;
  double busy_seconds_ = 0;
  Clock::time_point busy_since_;
  bool closing_ = false;
  bool told_ = false;
  std::thread beginner_;  // last: they use the rest
  std::thread returner_;
};

}  // namespace

Result<std::unique_ptr<ExpertLoader>> make_host_tier_loader(std::unique_ptr<TieredStore> ram,
                                                            Device& device, int copy_streams,
                                                            HostExperts host_experts,
                                                            const HostExpertRates& rates) {
  if (copy_streams < 1 || copy_streams > 2) {
    return invalid_argument(fmt::format("--copy-streams is {}, expected 1 or 2", copy_streams));
  }
  auto transfers = NIBBLE_TRY(device.make_transfer_queue(copy_streams));
  if (transfers == nullptr) {
    return unsupported(
        fmt::format("{} has no memory of its own to copy experts to", device.name()));
  }
  return std::unique_ptr<ExpertLoader>(
      std::make_unique<HostTierLoader>(std::move(ram), std::move(transfers), host_experts, rates));
}

}  // namespace nibble
