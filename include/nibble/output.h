// What comes back for a prompt.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "nibble/result.h"

namespace nibble::api {

struct TokenLogprob {
  int32_t token_id = 0;
  double logprob = 0;  // natural; -inf for what can't be drawn
  int64_t rank = 0;    // 1: the likeliest
};

struct PositionLogprobs {
  TokenLogprob chosen;
  std::vector<TokenLogprob> top;  // best first; the chosen one is always among them
};

// One of the n answers to a prompt.
struct CompletionOutput {
  int64_t index = 0;
  std::string text;                          // of a chat: the answer behind the thinking
  std::vector<int32_t> token_ids;            // all, with the one that ended it
  std::string reasoning_content;             // of a chat: what is between <think> and </think>
  std::string finish_reason;                 // stop, length, abort, error; empty while it goes on
  std::string stop_text;                     // the stop string that ended it, or empty
  std::optional<int32_t> stop_token_id;      // the one of stop_token_ids that ended it
  std::vector<PositionLogprobs> logprobs;    // of token_ids, when asked for
  std::optional<double> cumulative_logprob;  // their sum, when asked for or ranked by best_of

  // What is new since the handle was last asked, or the callback last called.
  std::string text_diff;
  std::string reasoning_content_diff;
  std::vector<int32_t> token_ids_diff;
};

struct RequestMetrics {
  double arrival_time = 0;         // seconds since 1970
  double time_to_first_token = 0;  // seconds since arrival; 0 without a token
  double end_to_end = 0;           // seconds from arrival to the end; 0 while it goes on
};

struct RequestOutput {
  uint64_t request_id = 0;
  std::string prompt;  // as given; of token ids and chats the decoded text
  std::vector<int32_t> prompt_token_ids;
  std::vector<CompletionOutput> outputs;          // n; by best_of the best first
  std::vector<PositionLogprobs> prompt_logprobs;  // from the second token on, when asked for
  bool finished = false;
  int64_t num_cached_tokens = 0;  // of the prompt, found instead of computed
  int64_t seed = 0;               // that was used
  RequestMetrics metrics;
  std::optional<Error> error;  // with finish_reason "error"; it concerns this request alone

  // Of the first output.
  const std::string& text() const { return outputs.at(0).text; }
};

}  // namespace nibble::api

#ifndef NIBBLE_IMPLEMENTATION
namespace nibble {
using api::CompletionOutput;
using api::PositionLogprobs;
using api::RequestMetrics;
using api::RequestOutput;
using api::TokenLogprob;
}  // namespace nibble
#endif
