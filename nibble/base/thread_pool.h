// A fixed set of threads that run one loop at a time.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <type_traits>
#include <vector>

#include "nibble/base/processors.h"

namespace nibble {

// A reference to a callable void(int64_t begin, int64_t end, int thread_id): no allocation, unlike
// std::function. The callable must outlive the call it is passed to.
class RangeTask {
 public:
  template <typename F,
            typename = std::enable_if_t<!std::is_same_v<std::remove_cvref_t<F>, RangeTask>>>
  // A lambda is passed where a RangeTask is asked for, so the conversion is implicit.
  // NOLINTNEXTLINE(google-explicit-constructor,bugprone-forwarding-reference-overload)
  RangeTask(F&& f)
      : object_(const_cast<void*>(static_cast<const void*>(&f))),
        call_([](void* object, int64_t begin, int64_t end, int thread_id) {
          (*static_cast<std::remove_reference_t<F>*>(object))(begin, end, thread_id);
        }) {}
  void operator()(int64_t begin, int64_t end, int thread_id) const {
    call_(object_, begin, end, thread_id);
  }

 private:
  void* object_;
  void (*call_)(void*, int64_t, int64_t, int);
};

// Whether a pool's own threads keep to processors and NUMA nodes as place_threads says.
enum class Placement { kFree, kPinned };

// One caller at a time; the caller's thread works too, and stays where the system puts it. Tasks
// must not throw.
class ThreadPool {
 public:
  // num_threads >= 1, the caller included. NIBBLE_PIN=0 in the environment makes kPinned kFree.
  // Throws std::system_error when the system starts no more threads.
  explicit ThreadPool(int num_threads, Placement placement = Placement::kFree);
  // The same on these nodes (a test may make its own) instead of the machine's.
  ThreadPool(int num_threads, Placement placement, const std::vector<NumaNode>& nodes);
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;
  ~ThreadPool();

  int num_threads() const;

  // Calls task(begin, end, thread_id) for disjoint ranges that together are [0, count), in pieces
  // of at most `grain` (>= 1), taken by whichever thread is free. Returns when all are done; what
  // the tasks wrote is then visible to the caller.
  void parallel_for(int64_t count, int64_t grain, RangeTask task);

  // The system's numbers of the nodes that the threads keep to, rising. One where they keep to
  // none, or where there is one.
  std::span<const int> nodes() const;
  // The index in nodes() of a thread's node; the caller's is that of its last loop, for it moves.
  int home(int thread_id) const;
  // Where the part of nodes()[node] of `count` things begins, in proportion to its threads; `count`
  // for node = nodes().size().
  int64_t share_begin(int64_t count, size_t node) const;
  // parallel_for of pieces that belong to nodes: nodes()[i] has bounds[i] to bounds[i + 1], the
  // last bound is the count. A thread takes its own node's pieces first, then what others have
  // left. No piece has parts of two nodes.
  void parallel_for_nodes(std::span<const int64_t> bounds, int64_t grain, RangeTask task);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace nibble
