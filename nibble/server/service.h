// The server's routes: who may ask what, what waits, what is refused.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "nibble/engine/engine_thread.h"
#include "nibble/server/access.h"
#include "nibble/server/generation.h"
#include "nibble/server/http.h"
#include "nibble/server/metrics.h"

namespace nibble {

struct ServiceOptions {
  AccessOptions access;
  int64_t max_batch_size = 32;
  int64_t max_queue_size = 128;                  // answers that wait
  int64_t max_requests_per_key = 0;              // at once; 0: no limit
  std::chrono::milliseconds request_timeout{0};  // 0: none
  std::chrono::milliseconds queue_timeout = std::chrono::seconds(600);
  std::chrono::milliseconds keepalive_interval = std::chrono::seconds(5);
  std::chrono::milliseconds stall_timeout = std::chrono::seconds(120);
  size_t max_request_bytes = 32 << 20;
  bool web_ui = true;
  bool metrics = true;
  bool log_prompts = false;
  bool log_json = false;
  std::string version = "0";
  std::string commit;
};

// What is served, once it is loaded. What `model` and `engine` point to outlives the service.
struct ServedEngine {
  EngineThread* engine = nullptr;
  ServedModel model;
  std::string server_info;  // JSON text for GET /server_info
  std::string device = "cpu";
  int64_t block_size = 0;     // tokens of a KV block
  uint64_t weight_bytes = 0;  // in the device's memory
  uint64_t kv_cache_bytes = 0;
};

// How far loading is; what /health and every route tells meanwhile.
struct LoadProgress {
  std::string phase = "weights";
  uint64_t bytes_loaded = 0;
  uint64_t bytes_total = 0;
};

// All on the server's thread but for the functions that say otherwise.
class Service final : public HttpHandler {
 public:
  explicit Service(ServiceOptions options);
  ~Service() override;

  // The server that carries the replies; outlives the requests.
  void attach(HttpServer& server);

  // Until now every route but a few answered 503.
  void become_ready(ServedEngine served);

  // Any thread.
  void set_progress(const LoadProgress& progress);

  // New requests are refused from now on, and so are those that have not begun; the rest goes on
  // until it is done or `deadline` passed.
  void drain(std::chrono::steady_clock::time_point deadline);
  // Draining, and nothing is left.
  bool drained() const;

  void set_api_keys(std::vector<std::string> keys) { options_.access.api_keys = std::move(keys); }

  // To be called some times a second: deadlines, keep-alives, the log's summary.
  void tick();

  void handle(HttpRequest request, std::shared_ptr<HttpReply> reply) override;
  HttpResponse refusal(int status, std::string_view message) override;
  size_t max_body_bytes() const override { return options_.max_request_bytes; }

 private:
  using Clock = std::chrono::steady_clock;
  struct Call {  // one request on its way through
    HttpRequest request;
    std::shared_ptr<HttpReply> reply;
    std::string request_id;
    std::string key;
    HttpHeaders headers;  // of every reply to it
    bool anthropic = false;
  };

  void route(Call call);
  std::optional<ApiError> admit(int64_t answers, const std::string& key);
  void respond(const Call& call, HttpResponse response);
  void respond_json(const Call& call, std::string body);
  void refuse(const Call& call, const ApiError& error);
  void refuse_loading(const Call& call);

  void generate(Call call, Api api);
  void start_generation(const Call& call, GenerationRequest request);
  void models(const Call& call);
  void tokenize(const Call& call);
  void detokenize(const Call& call);
  void count_tokens(const Call& call);
  void health(const Call& call, bool ready_only);
  void metrics_page(const Call& call);
  void chat_page(const Call& call);
  void health_generate(const Call& call);
  void admin(const Call& call);
  void abort_request(const Call& call, const std::string& request_id);
  bool stalled() const;
  std::string_view state() const;
  int64_t num_answers() const;
  int64_t retry_after() const;
  void summary();

  ServiceOptions options_;
  HttpServer* server_ = nullptr;
  GenerationShared shared_;
  ServedEngine served_;
  ServerMetrics metrics_;
  bool ready_ = false;
  Clock::time_point ready_since_;
  bool draining_ = false;
  Clock::time_point drain_deadline_;
  Clock::time_point start_;
  int64_t created_ = 0;

  struct Active {
    std::shared_ptr<Generation> generation;
    std::string key;
  };
  std::unordered_map<Generation*, Active> active_;
  std::deque<Clock::time_point> completions_;  // of the last 30 s
  int64_t parsing_ = 0;                        // bodies that are read on another thread

  mutable std::mutex progress_mutex_;
  LoadProgress progress_;

  int64_t last_steps_ = 0;  // for stalled() and summary()
  Clock::time_point last_progress_;
  Clock::time_point last_summary_;
  EngineStats summary_stats_;
};

}  // namespace nibble
