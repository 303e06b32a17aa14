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
  // The pieces of a loop that nobody has taken: of a node's, or [0] all. On a line of its own, for
  // the threads of each node write their own all the time.
  struct alignas(64) Queue {
    std::atomic<int64_t> next{0};
    int64_t end = 0;
  };
  std::vector<Queue> queues;
  size_t num_queues = 1;  // of this loop
  std::atomic<int> running{0};
  int64_t grain = 1;
  const RangeTask* task = nullptr;

  // Only the caller writes these, between loops.
  std::vector<int> node_ids = {0};
  std::vector<size_t> homes;            // of each thread, in node_ids
  std::vector<int64_t> threads_before;  // of each node and of the end
  std::vector<size_t> processor_homes;  // by processor, kNoHome for one of no node
  static constexpr auto kNoHome = static_cast<size_t>(-1);

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
      std::swap(homes[0], homes[i]);
      return;
    }
  }

  void find_caller() {
    const auto here = static_cast<size_t>(sched_getcpu());
    if (here < processor_homes.size() && processor_homes[here] != kNoHome) {
      homes[0] = processor_homes[here];
    }
  }

  // Leaves the nodes that have threads, and counts them.
  void take_nodes(const std::vector<NumaNode>& nodes) {
    std::vector<size_t> renamed(nodes.size(), kNoHome);
    node_ids.clear();
    threads_before = {0};
    for (size_t n = 0; n < nodes.size(); ++n) {
      const auto threads = std::count(homes.begin(), homes.end(), n);
      if (threads == 0) continue;
      renamed[n] = node_ids.size();
      node_ids.push_back(nodes[n].id);
      threads_before.push_back(threads_before.back() + threads);
      for (const int processor : nodes[n].processors) {
        const auto p = static_cast<size_t>(processor);
        if (p >= processor_homes.size()) processor_homes.resize(p + 1, kNoHome);
        processor_homes[p] = renamed[n];
      }
    }
    for (size_t& home : homes) home = renamed[home];
    queues = std::vector<Queue>(node_ids.size());
  }

  void work(int thread_id) {
    const size_t home = num_queues > 1 ? homes[static_cast<size_t>(thread_id)] : 0;
    for (size_t i = 0; i < num_queues; ++i) {
      Queue& queue = queues[(home + i) % num_queues];
      for (;;) {
        const int64_t begin = queue.next.fetch_add(grain, std::memory_order_relaxed);
        if (begin >= queue.end) break;
        (*task)(begin, std::min(begin + grain, queue.end), thread_id);
      }
    }
  }

  // Runs the loop that the queues hold, on all threads.
  void run(const RangeTask& loop, int64_t grain_of_loop, size_t queues_of_loop) {
    {
      const std::lock_guard lock(mutex);
      task = &loop;
      grain = grain_of_loop;
      num_queues = queues_of_loop;
      running.store(static_cast<int>(workers.size()), std::memory_order_relaxed);
      generation.fetch_add(1, std::memory_order_release);
    }
    wake.notify_all();
    work(0);
    // Every worker has to pass, also one that found nothing: it may still read `task`.
    int spins = 0;
    while (running.load(std::memory_order_acquire) != 0) {
      pause();
      if (++spins > kSpins) std::this_thread::yield();
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

ThreadPool::ThreadPool(int num_threads, Placement placement)
    : ThreadPool(num_threads, placement,
                 placement == Placement::kPinned ? numa_nodes(allowed_processors())
                                                 : std::vector<NumaNode>()) {}

ThreadPool::ThreadPool(int num_threads, Placement placement, const std::vector<NumaNode>& nodes)
    : state_(std::make_unique<State>()) {
  NIBBLE_CHECK(num_threads >= 1);
  const auto threads = static_cast<size_t>(num_threads);
  std::vector<std::vector<int>> places(threads);
  state_->queues = std::vector<State::Queue>(1);
  state_->homes.assign(threads, 0);
  state_->threads_before = {0, num_threads};
  if (placement == Placement::kPinned && num_threads > 1 && !pinning_is_off()) {
    places = place_threads(num_threads, nodes);
    state_->homes = thread_nodes(places, nodes);
    state_->take_nodes(nodes);
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

std::span<const int> ThreadPool::nodes() const { return state_->node_ids; }

int ThreadPool::home(int thread_id) const {
  return static_cast<int>(state_->homes[static_cast<size_t>(thread_id)]);
}

int64_t ThreadPool::share_begin(int64_t count, size_t node) const {
  return count * state_->threads_before[node] / num_threads();
}

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
  state_->queues[0].next.store(0, std::memory_order_relaxed);
  state_->queues[0].end = count;
  state_->run(task, grain, 1);
}

void ThreadPool::parallel_for_nodes(std::span<const int64_t> bounds, int64_t grain,
                                    RangeTask task) {
  NIBBLE_CHECK(bounds.size() == state_->node_ids.size() + 1 && bounds[0] == 0);
  NIBBLE_CHECK(grain >= 1);
  if (state_->node_ids.size() == 1 || bounds.back() <= grain) {
    return parallel_for(bounds.back(), grain, task);
  }
  state_->make_room_for_caller();
  state_->find_caller();
  for (size_t i = 0; i < state_->node_ids.size(); ++i) {
    state_->queues[i].next.store(bounds[i], std::memory_order_relaxed);
    state_->queues[i].end = bounds[i + 1];
  }
  state_->run(task, grain, state_->node_ids.size());
}

}  // namespace nibble
