// One answer of a generation: what the engine is asked for, and what its tokens mean.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "nibble/engine/engine.h"
#include "nibble/server/reply_writer.h"

namespace nibble {

// Most answers are one request to the engine. With GenerationRequest::call_rules each tool call is
// several: up to its head, its name, its arguments, and what may follow; spec serving section 4.4.
// What is written for the model in between counts as its output.
class Answer {
 public:
  // `request` and `model` outlive this. `prompt`: index among the request's prompts;
  // `choice_of_prompt`: index among the answers to it.
  Answer(const GenerationRequest& request, const ServedModel& model, size_t prompt,
         int choice_of_prompt);

  Choice choice;

  size_t prompt() const { return prompt_; }
  const ReplyParser* parser() const { return parser_.get(); }  // null: the reply is plain text

  // What the engine is to be asked for, at the beginning and after kAsk.
  Result<Request> next_request();

  enum class Next {
    kMore,  // the same request brings more
    kAsk,   // it is over: next_request()
    kDone,  // the answer is complete; the request may still run
  };
  // What one update of the engine brings; to be called for updates without an error.
  Next take(const RequestUpdate& update, ReplyDelta* delta);

  // Ends the answer where it is, as if by max_tokens.
  void cut(ReplyDelta* delta);

 private:
  enum class Phase {
    kFree,       // whatever the model writes
    kThink,      // up to the end of the reasoning
    kName,       // of a function
    kArguments,  // of a call to it
    kBetween,    // two calls
  };

  int64_t room() const;
  bool is_eos(int32_t id) const;
  bool is_stop_id(int32_t id) const;
  bool in_given_call() const;
  void insert(int32_t id) { choice.token_ids.push_back(id); }
  Status insert_text(const std::string& text);
  Next ask(const Status& status, ReplyDelta* delta);
  Status begin_calls();
  Status begin_call(bool with_tag);
  Status begin_arguments(const CallableTool& tool);
  void take_tokens(const RequestUpdate& update, ReplyDelta* delta);
  void take_text(const RequestUpdate& update, ReplyDelta* delta);
  Next take_name(const RequestUpdate& update, ReplyDelta* delta);
  Next advance(const RequestUpdate& update, ReplyDelta* delta);
  Next finish(bool by_length, ReplyDelta* delta);
  void apply(ReplyDelta* delta);

  const GenerationRequest& request_;
  const ServedModel& model_;
  size_t prompt_;
  int choice_of_prompt_;
  Phase phase_ = Phase::kFree;
  int64_t num_requests_ = 0;
  std::unique_ptr<ReplyParser> parser_;
  const CallableTool* tool_ = nullptr;  // kArguments: the one that is called
  std::string name_;                    // kName: as far as it is there
  std::string opened_;                  // a call that the next update tells, or ""
  size_t num_reported_ = 0;             // of choice.token_ids

  std::vector<PositionLogprobs> held_logprobs_;    // white space that may become content
  std::vector<PositionLogprobs> pending_content_;  // not yet with their text
  std::vector<PositionLogprobs> pending_reasoning_;
};

}  // namespace nibble
