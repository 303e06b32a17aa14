// Requests at a given rate or concurrency to a server with OpenAI's API, and when each token came.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "nibble/base/result.h"

namespace nibble {

struct LoadTarget {
  std::string host;
  std::string port;
  std::string path;            // "/v1/completions" or "/v1/chat/completions"
  std::string api_key;         // "" : none
  bool ask_step_time = false;  // of nibble serve on this host
};

struct LoadRequest {
  std::string body;         // JSON, with stream and stream_options.include_usage
  double start_second = 0;  // not sent before
};

// Times in seconds.
struct LoadResult {
  bool success = false;
  std::string error;
  double start = 0;                // since the run began
  double time_to_first_token = 0;  // first event with text, reasoning or a call
  double latency = 0;              // to the end of the answer
  std::vector<double> gaps;        // between events with tokens
  std::vector<double> delays;      // from the end of a step until what it made was read here
  int64_t prompt_tokens = 0;       // as the server says
  int64_t output_tokens = 0;
};

// Sends all of them, at most `max_concurrency` at once (0: no limit), each on a connection of its
// own; returns the results in order. `progress` is called with the number of finished ones; false
// ends the run. Errors: kUnavailable when the host is unknown.
Result<std::vector<LoadResult>> run_load(const LoadTarget& target,
                                         const std::vector<LoadRequest>& requests,
                                         int64_t max_concurrency,
                                         const std::function<bool(int64_t finished)>& progress);

// http://HOST[:PORT][/PREFIX]; `endpoint` comes behind. Errors: kInvalidArgument for something
// else; kUnsupported for https.
Result<LoadTarget> parse_load_target(const std::string& base_url, const std::string& endpoint);

// The body of a GET. Errors: kUnavailable.
Result<std::string> http_get(const LoadTarget& target, const std::string& path);

}  // namespace nibble
