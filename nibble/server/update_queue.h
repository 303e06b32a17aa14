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
// burst of those delays nobody's stream. One wake-up serves all updates of a step.
class UpdateQueue {
 public:
  using Task = std::function<void()>;

  // `post` runs a task on the server's thread. To be set before the first push().
  void set_post(std::function<void(Task)> post) { post_ = std::move(post); }

  // From any thread.
  void push(Task task) {
    bool was_empty = false;
    {
      const std::lock_guard lock(mutex_);
      was_empty = tasks_.empty();
      tasks_.push_back(std::move(task));
    }
    if (was_empty) post_([this] { drain(); });
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
  std::mutex mutex_;  // guards tasks_
  std::vector<Task> tasks_;
};

}  // namespace nibble
