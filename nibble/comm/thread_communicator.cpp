// Every operation is: tell where my data is; wait for all; read the others' data; wait for all, so
// that nobody changes what is still being read.
#include "nibble/comm/thread_communicator.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>

#include "nibble/base/check.h"
#include "nibble/base/error.h"

namespace nibble {
namespace {

using Bytes = Communicator::Bytes;
using ConstBytes = Communicator::ConstBytes;

// What a rank shows the others during an operation.
struct Shown {
  const void* data = nullptr;
  std::span<const ConstBytes> sends;
};

class ThreadGroup {
 public:
  explicit ThreadGroup(int size)
      : spins_(std::thread::hardware_concurrency() >= 4 * static_cast<unsigned>(size)),
        shown_(static_cast<size_t>(size)) {}

  // Returns when all ranks have come here, so that what they show may be read. Errors: kUnavailable
  // with the failure of another rank; then no rank comes through.
  Status wait_for_all() {
    std::unique_lock lock(mutex_);
    if (failure_) return unavailable(*failure_);
    const uint64_t generation = arrive(lock);
    changed_.wait(lock, [&] { return generation_ != generation || failure_; });
    if (generation_ != generation) return {};
    return unavailable(*failure_);
  }

  // Returns when nobody reads what this rank has shown any more. Whoever has come through
  // wait_for_all() comes here, too, whatever has failed meanwhile: to leave at once would take away
  // memory that another rank still reads.
  void wait_until_read() {
    std::unique_lock lock(mutex_);
    const uint64_t generation = arrive(lock);
    changed_.wait(lock, [&] { return generation_ != generation; });
  }

  void fail(std::string message) {
    const std::lock_guard lock(mutex_);
    if (!failure_) failure_ = std::move(message);
    changed_.notify_all();
  }

  Status failure() {
    const std::lock_guard lock(mutex_);
    return failure_ ? Status(unavailable(*failure_)) : Status();
  }

  // Read after wait_for_all, written before it.
  Shown& shown(int rank) { return shown_[static_cast<size_t>(rank)]; }

  // The sum of an all-reduce. Two, since a rank may be copying one while another has begun the next
  // operation; nobody can be two ahead.
  std::vector<float>& sums(uint64_t operation) { return sums_[operation % 2]; }

 private:
  // The generation that the last rank to come ends. Looks for its end for a while, unlocked.
  uint64_t arrive(std::unique_lock<std::mutex>& lock) {
    const uint64_t generation = generation_;
    if (++arrived_ == shown_.size()) {
      arrived_ = 0;
      ++generation_;
      changed_.notify_all();
    } else if (spins_) {
      lock.unlock();
      const auto start = std::chrono::steady_clock::now();
      while (generation_ == generation && std::chrono::steady_clock::now() - start < kLongestSpin) {
        std::this_thread::yield();
      }
      lock.lock();
    }
    return generation;
  }

  // Waking a thread takes tens of microseconds, several times a step of some milliseconds: where
  // there are processors to spare, ranks look for each other for about a step.
  static constexpr std::chrono::milliseconds kLongestSpin{20};

  const bool spins_;
  std::mutex mutex_;
  std::condition_variable changed_;
  size_t arrived_ = 0;
  std::atomic<uint64_t> generation_ = 0;  // changed with mutex_ held
  std::optional<std::string> failure_;
  std::vector<Shown> shown_;
  std::array<std::vector<float>, 2> sums_;
};

class ThreadCommunicator : public Communicator {
 public:
  ThreadCommunicator(int rank, int size, std::shared_ptr<ThreadGroup> group)
      : Communicator(rank, size), group_(std::move(group)) {}
  ThreadCommunicator(const ThreadCommunicator&) = delete;
  ThreadCommunicator& operator=(const ThreadCommunicator&) = delete;
  ~ThreadCommunicator() override {
    if (!is_closed()) group_->fail(fmt::format("rank {} has ended", rank()));
  }

  std::string_view name() const override { return "threads"; }

 protected:
  Status do_all_to_all(std::span<const ConstBytes> sends,
                       std::span<const Bytes> receives) override {
    group_->shown(rank()).sends = sends;
    NIBBLE_TRY(group_->wait_for_all());
    for (int r = 0; r < size(); ++r) {
      const ConstBytes from = group_->shown(r).sends[static_cast<size_t>(rank())];
      copy(from.data(), receives[static_cast<size_t>(r)].data(), from.size());
      NIBBLE_CHECK(from.size() == receives[static_cast<size_t>(r)].size());
    }
    group_->wait_until_read();
    return {};
  }

  // Each rank adds up one part of the vector.
  Status do_all_reduce_sum(float* x, int64_t count) override {
    std::vector<float>& sums = group_->sums(++num_sums_);
    if (rank() == 0 && sums.size() < static_cast<size_t>(count)) {
      sums.resize(static_cast<size_t>(count));
    }
    group_->shown(rank()).data = x;
    NIBBLE_TRY(group_->wait_for_all());
    const std::vector<int64_t> counts = even_parts(count, size());
    int64_t first = 0;
    for (int r = 0; r < rank(); ++r) first += counts[static_cast<size_t>(r)];
    add(first, counts[static_cast<size_t>(rank())], sums.data() + first);
    group_->wait_until_read();
    std::memcpy(x, sums.data(), static_cast<size_t>(count) * sizeof(float));
    return {};
  }

  Status do_all_gather(const void* in, std::span<const size_t> bytes, void* out) override {
    group_->shown(rank()).data = in;
    NIBBLE_TRY(group_->wait_for_all());
    char* to = static_cast<char*>(out);
    for (int r = 0; r < size(); ++r) {
      const size_t part = bytes[static_cast<size_t>(r)];
      copy(group_->shown(r).data, to, part);
      to += part;
    }
    group_->wait_until_read();
    return {};
  }

  Status do_reduce_scatter_sum(const float* in, std::span<const int64_t> counts,
                               float* out) override {
    group_->shown(rank()).data = in;
    NIBBLE_TRY(group_->wait_for_all());
    int64_t first = 0;
    for (int r = 0; r < rank(); ++r) first += counts[static_cast<size_t>(r)];
    add(first, counts[static_cast<size_t>(rank())], out);
    group_->wait_until_read();
    return {};
  }

  Status do_broadcast(void* data, size_t bytes, int root) override {
    group_->shown(rank()).data = data;
    NIBBLE_TRY(group_->wait_for_all());
    if (rank() != root) copy(group_->shown(root).data, data, bytes);
    group_->wait_until_read();
    return {};
  }

  Status do_barrier() override { return group_->wait_for_all(); }

  Status do_look() override { return group_->failure(); }

  void do_abort(std::string_view message) override {
    group_->fail(fmt::format("rank {}: {}", rank(), message));
  }

 private:
  static void copy(const void* from, void* to, size_t bytes) {
    if (bytes > 0 && from != to) std::memmove(to, from, bytes);
  }

  // out[i] = sum over ranks of their shown vector's element first + i.
  void add(int64_t first, int64_t count, float* out) {
    const auto part = [&](int r) {
      return static_cast<const float*>(group_->shown(r).data) + first;
    };
    if (count > 0) std::memcpy(out, part(0), static_cast<size_t>(count) * sizeof(float));
    for (int r = 1; r < size(); ++r) {
      const float* const x = part(r);
      for (int64_t i = 0; i < count; ++i) out[i] += x[i];
    }
  }

  std::shared_ptr<ThreadGroup> group_;
  uint64_t num_sums_ = 0;
};

}  // namespace

std::vector<std::unique_ptr<Communicator>> thread_communicators(int size) {
  NIBBLE_CHECK(size >= 1);
  auto group = std::make_shared<ThreadGroup>(size);
  std::vector<std::unique_ptr<Communicator>> ranks;
  ranks.reserve(static_cast<size_t>(size));
  for (int r = 0; r < size; ++r) {
    ranks.push_back(std::make_unique<ThreadCommunicator>(r, size, group));
  }
  return ranks;
}

}  // namespace nibble
