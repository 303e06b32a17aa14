// What stands behind a RequestHandle: one request's output, filled by the engine's thread, read by
// any other.
#pragma once

#include <chrono>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "nibble/api/thinking_split.h"
#include "nibble/engine/answer_group.h"
#include "nibble/engine/loaded_model.h"
#include "nibble/engine/rank_group.h"
#include "nibble/llm.h"

namespace nibble::api {

// What runs requests; the engine goes first.
struct Runtime {
  std::unique_ptr<RankGroup> ranks;  // goes last
  std::unique_ptr<LoadedModel> model;
  std::unique_ptr<EngineThread> engine;
};

class RequestHandle::State : public std::enable_shared_from_this<RequestHandle::State> {
 public:
  using Callback = std::function<void(const RequestOutput&)>;

  // `output` holds what is known of the request; `params` are those that the engine gets.
  State(RequestOutput output, const nibble::SamplingParams& params, Callback on_output);

  // Before submit(): the reply is a chat's, its thinking is parted from the answer.
  void split_thinking(const Tokenizer& tokenizer);

  // Once: queues the request of `prompt` token ids. Errors: those of AnswerGroup::submit().
  nibble::Status submit(const std::shared_ptr<Runtime>& runtime, nibble::Request request);

  uint64_t request_id() const { return id_; }
  std::optional<RequestOutput> next();
  bool wait(double seconds);
  RequestOutput result();
  bool wait_finished(double seconds);
  void on_progress(const std::function<void()>& callback);
  bool finished() const;
  void abort();

 private:
  struct Taken {
    size_t text_bytes = 0;
    size_t reasoning_bytes = 0;
    size_t tokens = 0;
  };

  void on_update(const AnswerGroup& group, int choice, const RequestUpdate& update);
  void take_in(const AnswerGroup& group, int choice, const RequestUpdate& update);
  void finish(const AnswerGroup& group);
  // Calls what a user gave; the request ends when it throws.
  void call_user(std::string_view name, const std::function<void()>& call);
  void add_text(size_t output, std::span<const int32_t> token_ids, std::string_view text);
  // The output, with what is new in it since `taken`, which is brought up to date.
  RequestOutput snapshot(std::vector<Taken>* taken) const;

  const uint64_t id_;
  const nibble::SamplingParams params_;
  const bool streams_;  // best_of is n: choices are shown while they grow
  Callback on_output_;  // the engine's thread alone; empty behind its last call
  const std::chrono::steady_clock::time_point arrival_ = std::chrono::steady_clock::now();

  mutable std::mutex mutex_;  // guards all below
  std::condition_variable changed_;
  RequestOutput output_;
  std::vector<ThinkingSplit> splits_;  // of a chat: for each output
  std::vector<Taken> taken_;           // by next()
  std::vector<Taken> callback_taken_;  // by the callback
  bool fresh_ = false;                 // something came since next()
  bool gave_last_ = false;
  std::function<void()> on_progress_;
  bool aborted_ = false;
  std::weak_ptr<Runtime> runtime_;  // a handle may outlive its LLM
  std::weak_ptr<AnswerGroup> group_;
};

}  // namespace nibble::api
