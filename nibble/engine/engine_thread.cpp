#include "nibble/engine/engine_thread.h"

#include <exception>

#include "nibble/base/error.h"

namespace nibble {

EngineThread::EngineThread(std::unique_ptr<Engine> engine)
    : engine_(std::move(engine)),
      device_(&engine_->device()),
      max_seq_len_(engine_->max_seq_len()),
      stats_(engine_->stats()) {
  thread_ = std::thread([this] { run(); });
}

EngineThread::~EngineThread() { shutdown(); }

Result<uint64_t> EngineThread::submit(Request request, UpdateSink sink) {
  uint64_t ticket = 0;
  {
    const std::lock_guard lock(mutex_);
    if (stopping_) return unavailable(failure_.empty() ? "the engine is shutting down" : failure_);
    ticket = next_ticket_++;
    submissions_.push_back({ticket, std::move(request), std::move(sink)});
  }
  wake_.notify_one();
  return ticket;
}

void EngineThread::set_after_updates(std::function<void()> callback) {
  const std::lock_guard lock(mutex_);
  after_updates_ = std::move(callback);
}

void EngineThread::after_updates() {
  std::function<void()> callback;
  {
    const std::lock_guard lock(mutex_);
    callback = after_updates_;
  }
  if (callback) callback();
}

void EngineThread::cancel(uint64_t ticket) {
  {
    const std::lock_guard lock(mutex_);
    cancelled_.push_back(ticket);
  }
  wake_.notify_one();
}

void EngineThread::reset_prefix_cache() {
  {
    const std::lock_guard lock(mutex_);
    forget_prefixes_ = true;
  }
  wake_.notify_one();
}

EngineStats EngineThread::stats() const {
  const std::lock_guard lock(mutex_);
  return stats_;
}

Result<MemoryReport> EngineThread::memory() const {
  return memory_report(*device_, stats().graphs.device_bytes);
}

std::optional<std::string> EngineThread::failure() const {
  const std::lock_guard lock(mutex_);
  if (failure_.empty()) return std::nullopt;
  return failure_;
}

void EngineThread::shutdown() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_one();
  const std::lock_guard lock(join_mutex_);
  if (thread_.joinable()) thread_.join();
}

void EngineThread::run() {
  for (;;) {
    std::vector<Submission> submissions;
    std::vector<uint64_t> cancelled;
    bool stopping = false;
    bool forget = false;
    {
      std::unique_lock lock(mutex_);
      wake_.wait(lock, [&] {
        return stopping_ || forget_prefixes_ || !submissions_.empty() || !cancelled_.empty() ||
               engine_->has_work();
      });
      submissions.swap(submissions_);
      cancelled.swap(cancelled_);
      stopping = stopping_;
      forget = std::exchange(forget_prefixes_, false);
    }
    if (forget) engine_->reset_prefix_cache();
    take_in(std::move(submissions), cancelled);
    if (stopping) abort_all();
    try {
      std::vector<RequestUpdate> updates;
      if (engine_->has_work()) updates = engine_->step();
      {
        // Before the updates: who saw a request's end finds its blocks free.
        const EngineStats stats = engine_->stats();
        const std::lock_guard lock(mutex_);
        stats_ = stats;
      }
      deliver(updates);
      after_updates();  // also of what take_in() refused
      if (engine_->failure()) {
        fail_all(engine_->failure()->message);
        return;
      }
    } catch (const std::exception& exception) {
      // Out of memory, or a device that failed: the engine's state can't be trusted any more.
      fail_all(exception.what());
      return;
    }
    const std::lock_guard lock(mutex_);
    if (stopping && submissions_.empty() && !engine_->has_work()) return;
  }
}

void EngineThread::take_in(std::vector<Submission> submissions,
                           const std::vector<uint64_t>& cancelled) {
  for (Submission& submission : submissions) {
    const auto id = engine_->add(std::move(submission.request));
    if (id) {
      clients_.emplace(*id, Client{submission.ticket, std::move(submission.sink)});
      ids_.emplace(submission.ticket, *id);
      continue;
    }
    RequestUpdate update;
    update.finished = true;
    update.finish_reason = FinishReason::kError;
    update.error = id.error();
    submission.sink(update);
  }
  for (const uint64_t ticket : cancelled) {
    const auto found = ids_.find(ticket);
    if (found != ids_.end()) engine_->cancel(found->second);
  }
}

void EngineThread::deliver(const std::vector<RequestUpdate>& updates) {
  for (const RequestUpdate& update : updates) {
    const auto found = clients_.find(update.id);
    if (found == clients_.end()) continue;
    found->second.sink(update);
    if (!update.finished) continue;
    ids_.erase(found->second.ticket);
    clients_.erase(found);
  }
}

void EngineThread::fail_all(const std::string& reason) {
  std::vector<Submission> submissions;
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    failure_ = "the engine failed: " + reason;
    submissions.swap(submissions_);
  }
  RequestUpdate update;
  update.finished = true;
  update.finish_reason = FinishReason::kError;
  update.error = unavailable(failure_).value();
  for (const auto& [id, client] : clients_) {
    update.id = id;
    client.sink(update);
  }
  clients_.clear();
  ids_.clear();
  update.id = 0;
  for (const Submission& submission : submissions) submission.sink(update);
  after_updates();
}

void EngineThread::abort_all() {
  for (const auto& [id, client] : clients_) engine_->cancel(id);
}

}  // namespace nibble
