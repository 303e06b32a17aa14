// Tells where a rank stands when nothing moves, and ends a process whose ranks have failed.
#pragma once

#include <condition_variable>
#include <mutex>
#include <thread>

#include "nibble/comm/communicator.h"

namespace nibble {

struct WatchOptions {
  double tell_after_seconds = 30;  // and again after each as long again
  double grace_seconds = 2;        // from a failure to the end of the process
  bool ends_process = true;        // exit code 1
};

// A thread of its own, from construction to destruction. The communicator must outlive it.
class Watchdog {
 public:
  Watchdog(Communicator& comm, const WatchOptions& options);
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;
  ~Watchdog();

 private:
  void run();

  Communicator& comm_;
  const WatchOptions options_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace nibble
