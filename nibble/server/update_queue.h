// What the engine's thread brings, on its way to the server's.
#pragma once

#include <exception>
#include <functional>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "nibble/base/log.h"

namespace nibble {

// Tokens go before new requests: the server's thread empties this before it reads one, so that a
// burst of those delays nobody's stream. The updates of a step are one wake-up: a server that woke
// for the first would be asleep again before the second, and each would cost the engine a system
// call and both threads a switch.
class UpdateQueue {
 public:
  using Task = std::function<void()>;

  // `post` runs a task on the server's thread. To be set before the first flush().
  void set_post(std::function<void(Task)> post) { post_ = std::move(post); }

  // From any thread. It runs at the next flush() or drain().
  void push(Task task) {
    const std::lock_guard lock(mutex_);
    tasks_.push_back(std::move(task));
  }

  // From any thread: has what was pushed run on the server's thread.
  void flush() {
    {
      const std::lock_guard lock(mutex_);
      if (tasks_.empty() || std::exchange(posted_, true)) return;
    }
    post_([this] {
      {
        const std::lock_guard lock(mutex_);
        posted_ = false;
      }
      drain();
    });
  }

  // On the server's thread: runs what is there, in order.
  void drain() {
    std::vector<Task> tasks;
    {
      const std::lock_guard lock(mutex_);
      tasks.swap(tasks_);
    }
    for (const Task& task : tasks) {
      try {
        task();
      } catch (const std::exception& e) {  // of one stream, not of those behind it
        log_error(std::string("an update of a request failed: ") + e.what());
      }
    }
  }

 private:
  std::function<void(Task)> post_;
  std::mutex mutex_;  // guards all below
  std::vector<Task> tasks_;
  bool posted_ = false;
};

}  // namespace nibble
