// One prompt with n answers: best_of requests that share it, gathered and ranked.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "nibble/base/result.h"
#include "nibble/engine/engine_thread.h"

namespace nibble {

// What came for one choice so far.
struct Answer {
  int choice = 0;
  std::vector<int32_t> token_ids;
  std::string text;
  std::vector<PositionLogprobs> logprobs;  // of token_ids, with params.logprobs or best_of > n
  double cumulative_logprob = 0;           // their sum
  bool finished = false;
  FinishReason finish_reason = FinishReason::kStop;
  std::string stop_text;
  std::optional<Error> error;

  // cumulative_logprob for each token; -inf without any.
  double mean_logprob() const;
};

// The choices of a request: 0 .. best_of - 1, each with random numbers of its own. The prompt is
// computed once: the others start when choice 0 has its first token, and find the prompt's whole
// blocks in the prefix cache. What a choice gives is the same as if it ran alone.
class AnswerGroup : public std::enable_shared_from_this<AnswerGroup> {
 public:
  // Called on the engine's thread with each update, already counted in. It has to be quick. The
  // group may be looked at there, or by anyone once it is finished.
  using Sink = std::function<void(const AnswerGroup&, int choice, const RequestUpdate&)>;

  // Submits `request` for each choice (its own `choice` is ignored). `engine` must outlive the
  // group's end. Errors: those of validate(); kUnavailable after shutdown(). All else comes as an
  // update of a choice with kError.
  static Result<std::shared_ptr<AnswerGroup>> submit(EngineThread& engine, Request request,
                                                     Sink sink);

  // All choices end with kAbort within one step. From any thread.
  void cancel();

  bool finished() const { return num_open_ == 0; }

  // By choice: best_of of them.
  const std::vector<Answer>& answers() const { return answers_; }

  // The n to return: all in order of their choice when best_of is n, otherwise those with the
  // highest mean log-probability, best first, ties by choice. Behind all whole answers come those
  // that were aborted, then those without a token, then failed ones.
  std::vector<const Answer*> best() const;

  // Of choice 0, which the prompt was computed for.
  const std::vector<PositionLogprobs>& prompt_logprobs() const { return prompt_logprobs_; }
  int64_t num_cached_tokens() const { return num_cached_tokens_; }

 private:
  AnswerGroup(EngineThread& engine, Request request, Sink sink);

  Status start(int choice);
  void start_others();
  void on_update(int choice, const RequestUpdate& update);
  void end_choice(int choice, FinishReason reason, std::optional<Error> error);

  EngineThread& engine_;
  Request request_;
  Sink sink_;
  int64_t n_ = 1;

  // The engine's thread alone, until the group is finished.
  std::vector<Answer> answers_;
  std::vector<PositionLogprobs> prompt_logprobs_;
  int64_t num_cached_tokens_ = 0;
  bool others_started_ = false;
  std::atomic<int> num_open_;

  std::optional<std::chrono::steady_clock::time_point> deadline_;

  std::mutex mutex_;  // guards the rest
  std::vector<uint64_t> tickets_;
  bool cancelled_ = false;
};

// best_of above n can't be streamed: which answers will be kept is known at the end.
// Errors: kInvalidArgument.
Status check_streaming(const SamplingParams& params);

}  // namespace nibble
