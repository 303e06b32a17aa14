#include "nibble/comm/watchdog.h"

#include <fmt/format.h>

#include <chrono>
#include <cstdlib>
#include <optional>

#include "nibble/base/log.h"

namespace nibble {

using Clock = std::chrono::steady_clock;

Watchdog::Watchdog(Communicator& comm, const WatchOptions& options)
    : comm_(comm), options_(options), thread_([this] { run(); }) {}

Watchdog::~Watchdog() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_one();
  thread_.join();
}

void Watchdog::run() {
  const auto seconds = [](Clock::time_point from, Clock::time_point to) {
    return std::chrono::duration<double>(to - from).count();
  };
  uint64_t told_number = 0;
  double told_seconds = 0;
  std::optional<Clock::time_point> failed;
  std::unique_lock lock(mutex_);
  while (!changed_.wait_for(lock, std::chrono::milliseconds(100), [&] { return stopping_; })) {
    const auto now = Clock::now();
    comm_.look();
    const Status status = comm_.status();
    if (!status && options_.ends_process) {
      if (!failed) {
        failed = now;
        log_error(fmt::format("rank {} of {} gives up: {}", comm_.rank(), comm_.size(),
                              status.error().message));
      }
      if (seconds(*failed, now) > options_.grace_seconds) std::_Exit(1);
      continue;
    }
    const CommPosition position = comm_.position();
    const double still = seconds(position.since, now);
    if (position.number != told_number) told_seconds = 0;
    if (position.number == 0 || position.waiting) continue;
    if (still < told_seconds + options_.tell_after_seconds) continue;
    told_number = position.number;
    told_seconds = still;
    log_warning(
        fmt::format("rank {} of {} is {}", comm_.rank(), comm_.size(), position.to_string(now)));
  }
}

}  // namespace nibble
