// What the server counts, as Prometheus reads it; names of spec serving section 7.1.
#pragma once

#include <array>
#include <cstdint>
#include <map>
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
  double queue = 0;    // before the first step that ran it; not known better than the first token
  double prefill = 0;  // to the first token
  double decode = 0;   // from there on
  double end_to_end = 0;
  int64_t prompt_tokens = 0;
  int64_t generation_tokens = 0;
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

  // The whole page. `state`: "loading", "ready", "draining".
  std::string print(const EngineStats& stats, const std::string& model_name, std::string_view state,
                    int64_t num_waiting, std::string_view version) const;

 private:
  std::map<std::pair<std::string, int>, int64_t> http_requests_;
  std::map<std::string, int64_t> finished_;
  std::map<std::string, int64_t> anomalies_;
  int64_t queue_rejected_ = 0;
  int64_t disconnects_ = 0;
  int64_t tool_calls_ = 0;
  int64_t bad_logits_ = 0;
  Histogram ttft_, itl_, tpot_, end_to_end_, queue_, prefill_, decode_, inference_;
  Histogram prompt_tokens_, generation_tokens_;
};

}  // namespace nibble
