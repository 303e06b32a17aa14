// What `nibble bench serve` prints: spec serving section 7.3.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace nibble {

// One of the times, in milliseconds, or tokens a second of one user.
struct LoadMetric {
  const char* name;     // "ttft"
  const char* heading;  // of its part of the table
  const char* label;    // "TTFT"
  std::vector<double> values;
};

// What a run of load was like.
struct LoadSummary {
  double duration = 0;
  int64_t completed = 0;
  int64_t failed = 0;
  int64_t good = 0;
  int64_t input_tokens = 0;
  int64_t output_tokens = 0;
  double peak_output = 0;  // tokens in the busiest second
  int64_t peak_concurrency = 0;
  std::vector<LoadMetric> metrics;  // ttft, tpot, itl, e2el, maybe delay; each sorted
  std::optional<double> acceptance_length;
  double drafts = 0;
  double draft_tokens = 0;
  double accepted = 0;
  std::vector<double> accepted_at;  // by place of the draft

  // What was asked for, as far as the report repeats it.
  int64_t max_concurrency = 0;  // 0: no limit
  double request_rate = 0;      // 0: all at once
  bool has_goodput = false;
  std::vector<double> percentiles;
  std::vector<std::string> percentile_metrics;  // of the four names; empty: all
  std::string model;
  std::string backend;  // as the server says; "" when it doesn't
  int64_t num_drafts = 0;
};

// Linear between neighbours; 0 for no values. `sorted` rises; p in 0..100.
double percentile(const std::vector<double>& sorted, double p);

// In the layout of vllm bench serve, or of trtllm-bench.
std::string load_table(const LoadSummary& summary);
std::string load_table_trtllm(const LoadSummary& summary);

// With "model", "backend", "input_len", "output_len" and "rows" it is what nibble plan --calibrate
// reads, when the server said what it runs on.
std::string load_json(const LoadSummary& summary);
std::string load_csv(const LoadSummary& summary);

// Four curves: the share of requests (or tokens) below each time.
std::string load_svg(const LoadSummary& summary);

}  // namespace nibble
