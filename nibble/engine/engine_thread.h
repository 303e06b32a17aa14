// An engine on a thread of its own, for callers on any number of threads.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <unordered_map>
#include <utility>
#include <vector>

#include "nibble/base/result.h"
#include "nibble/engine/engine.h"

namespace nibble {

// Every function may be called from any thread. The destructor ends what still runs with kAbort.
class EngineThread {
 public:
  // Called on the engine's thread, so it has to be quick and must not call back into this object
  // but for submit() and cancel(). The last call for a request has `finished`.
  using UpdateSink = std::function<void(const RequestUpdate&)>;

  explicit EngineThread(std::unique_ptr<Engine> engine);
  EngineThread(const EngineThread&) = delete;
  EngineThread& operator=(const EngineThread&) = delete;
  ~EngineThread();

  // Called on the engine's thread when the updates of a step have all been told, so that whoever
  // hands them to another thread wakes it once. One at a time; it has to be as quick as a sink.
  void set_after_updates(std::function<void()> callback);

  // Queues a request. What is wrong with it comes as an update with kError, on the engine's thread.
  // Returns a ticket for cancel(). Errors: kUnavailable after shutdown(), and when a step threw:
  // then every request has ended with kError.
  Result<uint64_t> submit(Request request, UpdateSink sink);

  // The request ends with kAbort within one step. Unknown and finished tickets are ignored.
  void cancel(uint64_t ticket);

  // Forgets all cached prefixes before the next step.
  void reset_prefix_cache();

  // As of the end of the last step.
  EngineStats stats() const;

  // Where the device's memory went. Errors: those of Device::memory().
  Result<MemoryReport> memory() const;

  // Why it can't go on: a step threw, or a device or a rank is lost. Every request was told.
  std::optional<std::string> failure() const;

  // Takes no more requests, ends those that run with kAbort, waits for the thread. Idempotent.
  void shutdown();

  int64_t max_seq_len() const { return max_seq_len_; }

 private:
  struct Submission {
    uint64_t ticket = 0;
    Request request;
    UpdateSink sink;
  };
  struct Client {
    uint64_t ticket = 0;
    UpdateSink sink;
  };

  void run();
  void take_in(std::vector<Submission> submissions, const std::vector<uint64_t>& cancelled);
  void deliver(const std::vector<RequestUpdate>& updates);
  void after_updates();
  void fail_all(const std::string& reason);
  void abort_all();

  // The engine's thread alone.
  std::unique_ptr<Engine> engine_;
  std::unordered_map<uint64_t, Client> clients_;  // by the engine's id
  std::unordered_map<uint64_t, uint64_t> ids_;    // ticket -> the engine's id
  Device* device_ = nullptr;                      // thread-safe where it is used
  int64_t max_seq_len_ = 0;                       // fixed

  mutable std::mutex mutex_;  // guards all below
  std::condition_variable wake_;
  std::vector<Submission> submissions_;
  std::vector<uint64_t> cancelled_;
  bool forget_prefixes_ = false;
  EngineStats stats_;
  uint64_t next_ticket_ = 1;
  bool stopping_ = false;
  std::string failure_;  // why the engine can't go on
  std::function<void()> after_updates_;

  std::mutex join_mutex_;
  std::thread thread_;
};

}  // namespace nibble
