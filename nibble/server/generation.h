// One request on the engine: its answers while they grow, and the reply that tells them.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "nibble/engine/engine_thread.h"
#include "nibble/server/answer.h"
#include "nibble/server/http.h"
#include "nibble/server/metrics.h"
#include "nibble/server/reply_writer.h"
#include "nibble/server/update_queue.h"

namespace nibble {

// What all generations of a server share; outlives them.
struct GenerationShared {
  EngineThread* engine = nullptr;
  const ServedModel* model = nullptr;
  ServerMetrics* metrics = nullptr;
  UpdateQueue updates;  // to the server's thread
  std::chrono::milliseconds keepalive_interval = std::chrono::seconds(5);
  std::chrono::milliseconds queue_timeout = std::chrono::seconds(600);  // 0: none
  std::string fingerprint;
  bool log_prompts = false;
  bool log_json = false;
};

// The request's HTTP side.
struct GenerationOrigin {
  std::string request_id;
  std::string client;
  std::string route;
  std::string trace_id;  // of the client's trace, or ""
  HttpHeaders headers;   // of the reply
  std::optional<std::chrono::milliseconds> timeout;
  // Each write of a stream begins with the comment ": step SECONDS", when the step ended that made
  // its tokens, on the host's monotonic clock: a client on the same host sees what came on top.
  bool tell_step_time = false;
};

// All on the server's thread. Kept alive by the engine's sinks and by its owner.
class Generation : public std::enable_shared_from_this<Generation> {
 public:
  using Clock = std::chrono::steady_clock;

  Generation(GenerationShared& shared, GenerationRequest request, GenerationOrigin origin,
             std::shared_ptr<HttpReply> reply);
  Generation(const Generation&) = delete;
  Generation& operator=(const Generation&) = delete;
  ~Generation();

  // Hands the request to the engine. `on_end` is called once, when the reply is complete.
  void start(std::function<void(Generation&)> on_end);

  // Keep-alive comments and deadlines; to be called a few times a second.
  void tick(Clock::time_point now);

  // Ends it with an error: as a reply if nothing was sent yet, otherwise as an event.
  void fail(const ApiError& error);

  int64_t num_answers() const { return static_cast<int64_t>(parts_.size()); }
  // Whether the engine has brought nothing yet.
  bool is_waiting() const { return !first_update_; }
  bool ended() const { return ended_; }
  Clock::time_point arrival() const { return arrival_; }
  const std::string& request_id() const { return origin_.request_id; }

 private:
  struct Part {
    explicit Part(Answer a) : answer(std::move(a)) {}
    Answer answer;
    std::optional<uint64_t> ticket;
    bool counted_cached = false;
    bool begun = false;
    bool done = false;
  };

  void ask(size_t index);
  void on_update(size_t index, const RequestUpdate& update);
  void count(const RequestUpdate& update, const ReplyDelta& delta, int64_t new_reasoning_tokens);
  void answer_is_done(Part& part);
  std::string delta_text(const ReplyDelta& delta, Clock::time_point step_end);
  void send(std::string text);
  // Of the first call: what stands before all deltas.
  std::string begin_stream();
  void finish(std::string last_text = "");
  void end(int status, std::string_view finish);
  void cancel_all();
  void measure(const RequestUpdate& update);
  std::vector<const Choice*> choose();
  HttpResponse head() const;
  void log(int status, std::string_view finish) const;

  GenerationShared& shared_;
  GenerationRequest request_;
  GenerationOrigin origin_;
  std::shared_ptr<HttpReply> reply_;
  std::function<void(Generation&)> on_end_;
  ReplyContext context_;
  std::unique_ptr<ReplyWriter> writer_;
  std::vector<Part> parts_;
  Usage usage_;

  bool streaming_ = false;
  bool ended_ = false;
  bool first_update_ = false;
  bool deadline_passed_ = false;
  double queue_seconds_ = 0;
  int64_t num_windows_ = 0;
  Clock::time_point arrival_;
  Clock::time_point first_token_;
  Clock::time_point last_token_;
  Clock::time_point last_sent_;
};

}  // namespace nibble
