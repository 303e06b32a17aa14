#include "nibble/base/thread_pool.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <string>
#include <string_view>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "nibble/base/check.h"
#include "nibble/base/processors.h"

namespace nibble {
namespace {

bool pinning_is_off() {
  const char* const value = std::getenv("NIBBLE_PIN");
  return value != nullptr && std::string_view(value) == "0";
}

}  // namespace

// A loop is published by raising `generation` under the mutex. Workers spin a little before they
// sleep, because the loops of one forward pass follow each other within microseconds.
struct ThreadPool::State {
  std::mutex mutex;
  std::condition_variable wake;
  std::vector<std::thread> workers;

  std::atomic<uint64_t> generation{0};
  std::atomic<bool> stop{false};
  std::atomic<int64_t> next{0};
  std::atomic<int> running{0};
  int64_t count = 0;
  int64_t grain = 1;
  const RangeTask* task = nullptr;

  // Where each thread keeps to one processor: which; [0] is the one that is left for the caller.
  // Empty where none does.
  std::vector<int> processors;

  // The caller goes where the system puts it. A worker that keeps to that very processor would
  // wait for it, so it takes the one that is left instead.
  void make_room_for_caller() {
    if (processors.empty()) return;
    const int here = sched_getcpu();
    if (here == processors[0]) return;
    for (size_t i = 1; i < processors.size(); ++i) {
      if (processors[i] != here) continue;
      cpu_set_t set;
      CPU_ZERO(&set);
      CPU_SET(processors[0], &set);
      if (pthread_setaffinity_np(workers[i - 1].native_handle(), sizeof(set), &set) != 0) return;
      std::swap(processors[0], processors[i]);
      return;
    }
  }

  void work(int thread_id) {
    for (;;) {
      const int64_t begin = next.fetch_add(grain, std::memory_order_relaxed);
      if (begin >= count) return;
      (*task)(begin, std::min(begin + grain, count), thread_id);
    }
  }

  void run_worker(int thread_id) {
    uint64_t seen = 0;
    for (;;) {
      for (int spin = 0; spin < kSpins && generation.load(std::memory_order_acquire) == seen &&
                         !stop.load(std::memory_order_relaxed);
           ++spin) {
        pause();
      }
      if (generation.load(std::memory_order_acquire) == seen) {
        std::unique_lock lock(mutex);
        wake.wait(lock, [&] {
          return stop.load(std::memory_order_relaxed) ||
                 generation.load(std::memory_order_acquire) != seen;
        });
      }
      if (stop.load(std::memory_order_relaxed)) return;
      seen = generation.load(std::memory_order_acquire);
      work(thread_id);
      running.fetch_sub(1, std::memory_order_acq_rel);
    }
  }

  void join() {
    {
      const std::lock_guard lock(mutex);
      stop.store(true);
    }
    wake.notify_all();
    for (std::thread& worker : workers) worker.join();
  }

  static void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
  }

  static constexpr int kSpins = 2000;  // some tens of microseconds
};

ThreadPool::ThreadPool(int num_threads, Placement placement) : state_(std::make_unique<State>()) {
  NIBBLE_CHECK(num_threads >= 1);
  std::vector<std::vector<int>> places(static_cast<size_t>(num_threads));
  if (placement == Placement::kPinned && num_threads > 1 && !pinning_is_off()) {
    places = place_threads(num_threads, numa_nodes(allowed_processors()));
  }
  try {
    for (int i = 1; i < num_threads; ++i) {
      state_->workers.emplace_back([this, i, place = places[static_cast<size_t>(i)]] {
        keep_thread_to(place);
        state_->run_worker(i);
      });
    }
    for (const std::vector<int>& place : places) {
      if (place.size() != 1) break;  // entry i is thread i's
      state_->processors.push_back(place[0]);
    }
  } catch (const std::system_error& error) {
    // The destructor won't run, and a thread that nobody joins would end the process.
    const size_t started = state_->workers.size() + 1;
    state_->join();
    throw std::system_error(error.code(), "cannot start thread " + std::to_string(started + 1) +
                                              " of " + std::to_string(num_threads));
  }
}

ThreadPool::~ThreadPool() { state_->join(); }

int ThreadPool::num_threads() const { return static_cast<int>(state_->workers.size()) + 1; }

void ThreadPool::parallel_for(int64_t count, int64_t grain, RangeTask task) {
  NIBBLE_CHECK(grain >= 1);
  if (count <= 0) return;
  if (state_->workers.empty() || count <= grain) {
    for (int64_t begin = 0; begin < count; begin += grain) {
      task(begin, std::min(begin + grain, count), 0);
    }
    return;
  }
  state_->make_room_for_caller();
  {
    const std::lock_guard lock(state_->mutex);
    state_->task = &task;
    state_->count = count;
    state_->grain = grain;
    state_->next.store(0, std::memory_order_relaxed);
    state_->running.store(static_cast<int>(state_->workers.size()), std::memory_order_relaxed);
    state_->generation.fetch_add(1, std::memory_order_release);
  }
  state_->wake.notify_all();
  state_->work(0);
  // Every worker has to pass, also one that found nothing: it may still read `task`.
  int spins = 0;
  while (state_->running.load(std::memory_order_acquire) != 0) {
    State::pause();
    if (++spins > State::kSpins) std::this_thread::yield();
  }
}

}  // namespace nibble
