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
  HostTierLoader(std::unique_ptr<TieredStore> ram, std::unique_ptr<TransferQueue> transfers)
      : ram_(std::move(ram)), transfers_(std::move(transfers)), thread_([this] { work(); }) {}
  HostTierLoader(const HostTierLoader&) = delete;
  HostTierLoader& operator=(const HostTierLoader&) = delete;

  ~HostTierLoader() override {
    {
      const std::lock_guard lock(mutex_);
      closing_ = true;
      guesses_.clear();
    }
    wake_.notify_all();
    thread_.join();
    ram_.reset();
  }

  uint64_t record_bytes(int layer, int expert) const override {
    return ram_->record_bytes(layer, expert);
  }

  std::optional<MlpWeight> start_at_hand(int layer, int expert,
                                         std::span<std::byte> destination) override {
    const auto fetched = ram_->fetch_now(layer, expert);
    if (!fetched) return std::nullopt;
    return copy({0, layer, expert, destination, {}}, *fetched);
  }

  uint64_t start(int layer, int expert, std::span<std::byte> destination, bool urgent,
                 Done done) override {
    std::unique_lock lock(mutex_);
    Job job{next_ticket_++, layer, expert, destination, std::move(done)};
    const uint64_t ticket = job.ticket;
    if (urgent) {
      lock.unlock();
      fetch(std::move(job), true);
    } else {
      guesses_.push_back(std::move(job));
      wake_.notify_one();
    }
    return ticket;
  }

  void hurry(uint64_t ticket) override {
    std::unique_lock lock(mutex_);
    const auto found = guess(ticket);
    if (found != guesses_.end()) {
      Job job = std::move(*found);
      guesses_.erase(found);
      lock.unlock();
      fetch(std::move(job), true);
      return;
    }
    const auto reading = reading_.find(ticket);
    if (reading == reading_.end()) return;
    const auto [layer, expert] = reading->second;
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

  std::deque<Job>::iterator guess(uint64_t ticket) {
    return std::find_if(guesses_.begin(), guesses_.end(),
                        [&](const Job& job) { return job.ticket == ticket; });
  }

  // Begins the copy and returns the weight as it will be in the destination.
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
    const std::lock_guard lock(mutex_);
    Slot& slot = slots_[job.destination.data()];
    slot.weight = weight;
    slot.ticket = transfers_->copy(job.destination.data(), fetched.record, slot.mark);
    slot.is_awaited = false;
    if (copies_.empty()) busy_since_ = Clock::now();
    copies_.push_back({slot.ticket, job.layer, job.expert});
    bytes_copied_ += fetched.record.size();
    wake_.notify_one();
    return weight;
  }

  // The caller may hold the upper store's lock, which `done` takes: it is called elsewhere.
  void fetch(Job job, bool urgent) {
    const uint64_t ticket = job.ticket;
    const int layer = job.layer;
    const int expert = job.expert;
    {
      const std::lock_guard lock(mutex_);
      reading_[ticket] = {layer, expert};
    }
    const auto shared = std::make_shared<Job>(std::move(job));
    const auto fetched =
        ram_->fetch(layer, expert, urgent, [this, shared](Result<TieredStore::Fetched> result) {
          finish(*shared, std::move(result));
        });
    if (!fetched) return;
    const std::lock_guard lock(mutex_);
    found_.emplace_back(std::move(*shared), *fetched);
    wake_.notify_one();
  }

  void finish(Job& job, Result<TieredStore::Fetched> result) {
    bool closing = false;
    {
      const std::lock_guard lock(mutex_);
      reading_.erase(job.ticket);
      closing = closing_;
      wake_.notify_one();
    }
    if (!result) {
      job.done(tl::unexpected(std::move(result).error()));
    } else if (closing) {
      job.done(cancelled("the store is closing"));
    } else {
      (void)copy(job, *result);
      job.done({});
    }
  }

  // Gives records back whose copies are done, begins guesses while there is none, and ends fetches
  // whose expert was there after all.
  void work() {
    std::unique_lock lock(mutex_);
    for (;;) {
      wake_.wait(lock, [&] {
        return closing_ || !found_.empty() || !copies_.empty() || !guesses_.empty();
      });
      if (!found_.empty()) {
        auto [job, fetched] = std::move(found_.front());
        found_.pop_front();
        lock.unlock();
        finish(job, fetched);
        lock.lock();
      } else if (!copies_.empty()) {
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
        if (copies_.empty()) {
          busy_seconds_ += std::chrono::duration<double>(Clock::now() - busy_since_).count();
        }
      } else if (!guesses_.empty() && reading_.empty()) {
        Job job = std::move(guesses_.front());
        guesses_.pop_front();
        lock.unlock();
        fetch(std::move(job), false);
        lock.lock();
      } else if (closing_) {
        return;
      } else {
        wake_.wait(lock);  // for the reads that keep a guess waiting
      }
    }
  }

  std::unique_ptr<TieredStore> ram_;
  std::unique_ptr<TransferQueue> transfers_;

  mutable std::mutex mutex_;
  std::condition_variable wake_;
  std::unordered_map<const std::byte*, Slot> slots_;        // by destination
  std::map<uint64_t, std::pair<int, int>> reading_;         // layer and expert, by ticket
  std::deque<Job> guesses_;                                 // not begun
  std::deque<std::pair<Job, TieredStore::Fetched>> found_;  // at once, to be copied by the thread
  std::deque<Copy> copies_;                                 // under way, in their order
  uint64_t next_ticket_ = 1;
  uint64_t bytes_copied_ = 0;
  double busy_seconds_ = 0;
  Clock::time_point busy_since_;
  bool closing_ = false;
  bool told_ = false;
  std::thread thread_;  // last: it uses the rest
};

}  // namespace

Result<std::unique_ptr<ExpertLoader>> make_host_tier_loader(std::unique_ptr<TieredStore> ram,
                                                            Device& device, int copy_streams) {
  if (copy_streams < 1 || copy_streams > 2) {
    return invalid_argument(fmt::format("--copy-streams is {}, expected 1 or 2", copy_streams));
  }
  auto transfers = NIBBLE_TRY(device.make_transfer_queue(copy_streams));
  if (transfers == nullptr) {
    return unsupported(
        fmt::format("{} has no memory of its own to copy experts to", device.name()));
  }
  return std::unique_ptr<ExpertLoader>(
      std::make_unique<HostTierLoader>(std::move(ram), std::move(transfers)));
}

}  // namespace nibble
