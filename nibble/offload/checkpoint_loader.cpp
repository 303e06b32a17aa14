// The slower way: an expert's nine or so tensors are read through the page cache and laid out for
// the backend each time the expert is needed.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <map>
#include <mutex>
#include <new>
#include <thread>

#include "nibble/base/check.h"
#include "nibble/base/error.h"
#include "nibble/offload/expert_loader.h"
#include "nibble/offload/packed_expert.h"

namespace nibble {
namespace {

using Clock = std::chrono::steady_clock;

class CheckpointLoader final : public ExpertLoader {
 public:
  CheckpointLoader(const CheckpointSource& source, const ModelConfig& config, Kernels& kernels)
      : source_(source), config_(config), kernels_(kernels) {}
  ~CheckpointLoader() override {
    {
      const std::lock_guard lock(mutex_);
      stop_ = true;
      urgent_.clear();
      guesses_.clear();
    }
    wake_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }

  Status prepare(bool with_mtp, int num_threads) {
    for (const int layer : moe_layers(config_, with_mtp)) {
      scales_[layer] = NIBBLE_TRY(expert_input_scales(source_, config_, layer));
      std::vector<uint64_t>& bytes = bytes_[layer];
      for (int e = 0; e < config_.n_routed_experts; ++e) {
        bytes.push_back(NIBBLE_TRY(expert_record_bytes(source_, config_, kernels_, layer, e)));
      }
    }
    for (int i = 0; i < num_threads; ++i) threads_.emplace_back([this] { work(); });
    return {};
  }

  uint64_t record_bytes(int layer, int expert) const override {
    const auto found = bytes_.find(layer);
    if (found == bytes_.end() || expert < 0 ||
        static_cast<size_t>(expert) >= found->second.size()) {
      return 0;
    }
    return found->second[static_cast<size_t>(expert)];
  }

  uint64_t start(int layer, int expert, std::span<std::byte> destination, bool urgent,
                 Done done) override {
    NIBBLE_CHECK(destination.size() == record_bytes(layer, expert));
    const std::lock_guard lock(mutex_);
    const uint64_t ticket = next_ticket_++;
    (urgent ? urgent_ : guesses_).push_back({ticket, layer, expert, destination, std::move(done)});
    wake_.notify_one();
    return ticket;
  }
  void hurry(uint64_t ticket) override {
    const std::lock_guard lock(mutex_);
    const auto found = find(guesses_, ticket);
    if (found == guesses_.end()) return;
    urgent_.push_back(std::move(*found));
    guesses_.erase(found);
  }
  bool cancel(uint64_t ticket) override {
    const std::lock_guard lock(mutex_);
    const auto found = find(guesses_, ticket);
    if (found == guesses_.end()) return false;
    guesses_.erase(found);
    return true;
  }
  uint64_t bytes_read() const override {
    const std::lock_guard lock(mutex_);
    return bytes_read_;
  }
  double busy_seconds() const override {
    const std::lock_guard lock(mutex_);
    return busy_seconds_;
  }
  std::string description() const override {
    return fmt::format("the checkpoint's own files, packed by {} threads", threads_.size());
  }

 private:
  struct Job {
    uint64_t ticket;
    int layer;
    int expert;
    std::span<std::byte> destination;
    Done done;
  };

  static std::deque<Job>::iterator find(std::deque<Job>& queue, uint64_t ticket) {
    return std::find_if(queue.begin(), queue.end(),
                        [&](const Job& job) { return job.ticket == ticket; });
  }

  Status load(const Job& job) const {
    try {
      return pack_expert(source_, config_, kernels_, job.layer, job.expert, scales_.at(job.layer),
                         job.destination);
    } catch (const std::bad_alloc&) {
      return out_of_memory("no memory left to read it");
    }
  }

  void work() {
    std::unique_lock lock(mutex_);
    for (;;) {
      wake_.wait(lock, [&] { return stop_ || !urgent_.empty() || !guesses_.empty(); });
      if (stop_) return;
      std::deque<Job>& queue = urgent_.empty() ? guesses_ : urgent_;
      Job job = std::move(queue.front());
      queue.pop_front();
      if (busy_++ == 0) busy_since_ = Clock::now();
      lock.unlock();
      Status status = load(job);
      job.done(std::move(status));
      lock.lock();
      bytes_read_ += job.destination.size();
      if (--busy_ == 0) {
        busy_seconds_ += std::chrono::duration<double>(Clock::now() - busy_since_).count();
      }
    }
  }

  const CheckpointSource& source_;
  ModelConfig config_;
  Kernels& kernels_;
  std::map<int, ExpertInputScales> scales_;     // by layer
  std::map<int, std::vector<uint64_t>> bytes_;  // by layer, expert

  mutable std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<Job> urgent_, guesses_;
  uint64_t next_ticket_ = 1;
  bool stop_ = false;
  int busy_ = 0;
  Clock::time_point busy_since_;
  double busy_seconds_ = 0;
  uint64_t bytes_read_ = 0;
  std::vector<std::thread> threads_;
};

}  // namespace

Result<std::unique_ptr<ExpertLoader>> make_checkpoint_loader(const CheckpointSource& source,
                                                             const ModelConfig& config,
                                                             Kernels& kernels, bool with_mtp,
                                                             int num_threads) {
  NIBBLE_CHECK(num_threads >= 1);
  auto loader = std::make_unique<CheckpointLoader>(source, config, kernels);
  NIBBLE_TRY(loader->prepare(with_mtp, num_threads));
  return std::unique_ptr<ExpertLoader>(std::move(loader));
}

}  // namespace nibble
