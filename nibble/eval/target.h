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

namespace nibble {

struct Sampling {
  double temperature = 0.6;
  double top_p = 0.95;
  int64_t max_tokens = 32768;
};

struct Completion {
  std::string reasoning;
  std::string text;          // behind the reasoning: the answer part
  bool is_unclosed = false;  // thinking never ended: there is no answer part
  std::string finish_reason;
  int64_t prompt_tokens = 0;
  int64_t completion_tokens = 0;
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

  // Asks one question; `key` comes back with its answer. Equal seeds and samples give equal answers
  // where the target can. Errors: kUnavailable when the target is gone for good; what is wrong with
  // one question comes as its Completion::error.
  virtual Status submit(uint64_t key, const std::string& prompt, const Sampling& sampling,
                        int64_t seed, int sample) = 0;

  // Works or waits for a moment and returns what was finished; perhaps nothing.
  virtual Result<std::vector<std::pair<uint64_t, Completion>>> wait() = 0;

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

// The engine in this process. Errors: those of loading and Engine::create.
Result<std::unique_ptr<CompletionTarget>> make_engine_target(const std::filesystem::path& directory,
                                                             const EngineTargetOptions& options);

}  // namespace nibble
