// What the server counts, as Prometheus reads it; names of spec serving section 7.1.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "nibble/engine/engine.h"

namespace nibble {

class Histogram {
 public:
  explicit Histogram(std::span<const double> bounds)
      : bounds_(bounds.begin(), bounds.end()), counts_(bounds.size() + 1) {}

  void observe(double value, int64_t times = 1);

  // NAME_bucket, NAME_sum and NAME_count lines; `labels` without braces.
  void print(std::string_view name, std::string_view help, const std::string& labels,
             std::string* out) const;

 private:
  std::vector<double> bounds_;   // rising
  std::vector<int64_t> counts_;  // of each bound, and of what is above
  double sum_ = 0;
};

// The seconds and tokens of one finished request.
struct RequestTimes {
  double queue = 0;    // before the first step that ran it
  double prefill = 0;  // from there to the first token
  double decode = 0;   // from there on
  double end_to_end = 0;
  int64_t prompt_tokens = 0;
  int64_t generation_tokens = 0;
};

// What the page tells beside the counts.
struct ServerFacts {
  std::string model_name;
  std::string_view state;  // "loading", "ready" or "draining"
  std::string version;
  std::string commit;
  int64_t num_waiting = 0;
  int64_t num_connections = 0;
  uint64_t load_bytes = 0;
  uint64_t load_bytes_total = 0;
  std::string device = "cpu";
  int64_t block_size = 0;     // tokens of a KV block
  uint64_t weight_bytes = 0;  // in the device's memory
  uint64_t kv_cache_bytes = 0;
  std::optional<MemoryReport> memory;  // of the device, by use
};

// Used by the server's thread alone.
class ServerMetrics {
 public:
  ServerMetrics();

  void count_request(std::string_view route, int status) {
    ++http_requests_[{std::string(route), status}];
  }
  void count_finish(const std::string& reason) { ++finished_[reason]; }
  void count_rejected() { ++queue_rejected_; }
  void count_disconnect() { ++disconnects_; }
  void count_anomaly(const std::string& kind) { ++anomalies_[kind]; }
  void count_tool_calls(int64_t calls) { tool_calls_ += calls; }
  void count_bad_logits() { ++bad_logits_; }
  void first_token(double seconds) { ttft_.observe(seconds); }
  void inter_token(double seconds, int64_t tokens) { itl_.observe(seconds, tokens); }
  void finished(const RequestTimes& times);

  // From the end of an engine's step until its token was handed to the socket.
  void token_delay(double seconds) { token_delay_.observe(seconds); }

  // The whole page.
  std::string print(const EngineStats& stats, const ServerFacts& facts) const;

 private:
  std::map<std::pair<std::string, int>, int64_t> http_requests_;
  std::map<std::string, int64_t> finished_;
  std::map<std::string, int64_t> anomalies_;
  int64_t queue_rejected_ = 0;
  int64_t disconnects_ = 0;
  int64_t tool_calls_ = 0;
  int64_t bad_logits_ = 0;
  Histogram ttft_, itl_, tpot_, end_to_end_, queue_, prefill_, decode_, inference_;
  Histogram prompt_tokens_, generation_tokens_, token_delay_;
};

}  // namespace nibble
