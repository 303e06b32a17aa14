// Who answers the questions of a benchmark.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "nibble/base/result.h"
#include "nibble/engine/engine.h"
#include "nibble/engine/loaded_model.h"
#include "nibble/engine/rank_group.h"

namespace nibble {

struct Sampling {
  double temperature = 0.6;
  double top_p = 0.95;
  int64_t max_tokens = 32768;
  std::vector<std::string> stop = {};  // texts that end an answer
  bool raw_prompt = false;             // the prompt as it is, without a chat template
};

struct Completion {
  std::string reasoning;
  std::string text;          // behind the reasoning: the answer part
  bool is_unclosed = false;  // thinking never ended: there is no answer part
  std::string finish_reason;
  int64_t prompt_tokens = 0;
  int64_t completion_tokens = 0;
  int64_t reasoning_tokens = -1;  // of them, as the target says; -1: it says nothing
  double ttft_ms = 0;
  double total_ms = 0;
  int retries = 0;
  std::string error;  // empty for an answer
};

// Splits what a model said at its last "</think>"; `opened` when the prompt ends in an open one.
void split_reply(std::string reply, bool opened, Completion* completion);

class CompletionTarget {
 public:
  virtual ~CompletionTarget() = default;

  // Asks one question; `key` comes back with its answer. Equal prompts and seeds give equal answers
  // where the target can. Errors: kUnavailable when the target is gone for good; what is wrong with
  // one question comes as its Completion::error.
  virtual Status submit(uint64_t key, const std::string& prompt, const Sampling& sampling,
                        int64_t seed) = 0;

  // Works or waits for a moment and returns what was finished; perhaps nothing.
  virtual Result<std::vector<std::pair<uint64_t, Completion>>> wait() = 0;

  // After an interrupt: starts nothing more, gives what runs a moment, returns what it brought.
  virtual std::vector<std::pair<uint64_t, Completion>> drain() { return {}; }

  // Output tokens so far, of unfinished answers too.
  virtual int64_t num_tokens() const = 0;

  // What changes answers, as a JSON object: model, precision, speculation.
  virtual std::string identity() const = 0;
};

struct EngineTargetOptions {
  ModelOptions model;
  EngineOptions engine;
  std::string chat_template;
};

// The engine in this process, which is rank 0 of `ranks`, started with options.model. Errors: those
// of loading and Engine::create.
Result<std::unique_ptr<CompletionTarget>> make_engine_target(const std::filesystem::path& directory,
                                                             const EngineTargetOptions& options,
                                                             std::unique_ptr<RankGroup> ranks);

struct HttpTargetOptions {
  std::string base_url;      // http://HOST:PORT, with or without /v1
  std::string served_model;  // empty: the first that the server lists
  int64_t concurrency = 8;   // requests at once, a connection for each
  double request_timeout = 3600;
  int retries = 5;         // of a request: connection lost, HTTP 408, 409, 429, 5xx
  std::string api_key;     // never logged
  std::string extra_body;  // JSON object: further fields of each request
};

// Any server with OpenAI's /v1/chat/completions or (raw_prompt) /v1/completions. Errors:
// kUnavailable when it does not answer; kInvalidArgument for a malformed URL or extra_body.
Result<std::unique_ptr<CompletionTarget>> make_http_target(const HttpTargetOptions& options);

}  // namespace nibble
