#include "nibble/engine/answer_group.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>

#include "nibble/base/error.h"

namespace nibble {
namespace {

using Clock = std::chrono::steady_clock;

constexpr double kForever = 3e9;  // seconds: a century; more would overflow the clock

// 0 for a whole answer, more the less it can be used.
int rank_class(const Answer& answer) {
  if (answer.error || answer.finish_reason == FinishReason::kError) return 3;
  if (answer.token_ids.empty()) return 2;
  return answer.finish_reason == FinishReason::kAbort ? 1 : 0;
}

}  // namespace

double Answer::mean_logprob() const {
  if (token_ids.empty()) return -std::numeric_limits<double>::infinity();
  return cumulative_logprob / static_cast<double>(token_ids.size());
}

Status check_streaming(const SamplingParams& params) {
  if (params.best_of.value_or(params.n) <= params.n) return {};
  return invalid_argument(
      fmt::format("best_of is {} and n is {}, but answers that are ranked at the end can't be "
                  "streamed; set best_of to n or don't stream",
                  *params.best_of, params.n));
}

AnswerGroup::AnswerGroup(EngineThread& engine, Request request, Sink sink)
    : engine_(engine),
      request_(std::move(request)),
      sink_(std::move(sink)),
      n_(request_.params.n),
      num_open_(0) {
  const int64_t count = request_.params.best_of.value_or(n_);
  // What ranks the answers has to be computed, even when nobody asked to see it.
  if (count > n_ && !request_.params.logprobs) request_.params.logprobs = 0;
  request_.params.n = 1;
  request_.params.best_of.reset();
  answers_.resize(static_cast<size_t>(count));
  for (size_t i = 0; i < answers_.size(); ++i) answers_[i].choice = static_cast<int>(i);
  num_open_ = static_cast<int>(count);
  if (request_.timeout_seconds) {
    deadline_ = Clock::now() +
                std::chrono::duration_cast<Clock::duration>(
                    std::chrono::duration<double>(std::min(*request_.timeout_seconds, kForever)));
  }
}

Result<std::shared_ptr<AnswerGroup>> AnswerGroup::submit(EngineThread& engine, Request request,
                                                         Sink sink) {
  NIBBLE_TRY(validate(request.params));
  std::shared_ptr<AnswerGroup> group(new AnswerGroup(engine, std::move(request), std::move(sink)));
  NIBBLE_TRY(group->start(0));
  return group;
}

Status AnswerGroup::start(int choice) {
  Request request = request_;
  request.choice = choice;
  if (choice > 0) request.params.prompt_logprobs.reset();
  if (deadline_) {
    const std::chrono::duration<double> left = *deadline_ - Clock::now();
    request.timeout_seconds = std::max(left.count(), 0.0);
  }
  const std::lock_guard lock(mutex_);
  if (cancelled_) return cancelled("the request was cancelled");
  tickets_.push_back(NIBBLE_TRY(engine_.submit(
      std::move(request), [self = shared_from_this(), choice](const RequestUpdate& update) {
        self->on_update(choice, update);
      })));
  return {};
}

void AnswerGroup::cancel() {
  const std::lock_guard lock(mutex_);
  cancelled_ = true;
  for (const uint64_t ticket : tickets_) engine_.cancel(ticket);
}

void AnswerGroup::start_others() {
  others_started_ = true;
  for (size_t i = 1; i < answers_.size(); ++i) {
    const auto choice = static_cast<int>(i);
    // Only cancel() and a shutdown keep one from starting, and either ends all.
    if (!start(choice)) end_choice(choice, FinishReason::kAbort, std::nullopt);
  }
}

void AnswerGroup::end_choice(int choice, FinishReason reason, std::optional<Error> error) {
  RequestUpdate update;
  update.finished = true;
  update.finish_reason = reason;
  update.error = std::move(error);
  on_update(choice, update);
}

void AnswerGroup::on_update(int choice, const RequestUpdate& update) {
  Answer& answer = answers_[static_cast<size_t>(choice)];
  answer.token_ids.insert(answer.token_ids.end(), update.token_ids.begin(), update.token_ids.end());
  answer.text += update.text;
  for (const PositionLogprobs& position : update.logprobs) {
    answer.cumulative_logprob += position.chosen.logprob;
    answer.logprobs.push_back(position);
  }
  if (choice == 0) {
    prompt_logprobs_.insert(prompt_logprobs_.end(), update.prompt_logprobs.begin(),
                            update.prompt_logprobs.end());
    num_cached_tokens_ = std::max(num_cached_tokens_, update.num_cached_tokens);
  }
  if (update.finished) {
    answer.finished = true;
    answer.finish_reason = update.finish_reason;
    answer.stop_text = update.stop_text;
    answer.error = update.error;
    --num_open_;
  }
  sink_(*this, choice, update);
  if (choice != 0 || others_started_ || answers_.size() == 1) return;

  const bool failed = update.finished && (update.finish_reason == FinishReason::kError ||
                                          update.finish_reason == FinishReason::kAbort);
  if (failed) {  // what is wrong with the prompt is wrong for all
    others_started_ = true;
    for (size_t i = 1; i < answers_.size(); ++i) {
      end_choice(static_cast<int>(i), update.finish_reason, update.error);
    }
  } else if (!update.token_ids.empty() || update.finished) {
    start_others();
  }
}

std::vector<const Answer*> AnswerGroup::best() const {
  std::vector<const Answer*> best;
  for (const Answer& answer : answers_) best.push_back(&answer);
  if (static_cast<int64_t>(best.size()) > n_) {
    std::stable_sort(best.begin(), best.end(), [](const Answer* a, const Answer* b) {
      const int class_a = rank_class(*a);
      const int class_b = rank_class(*b);
      return class_a != class_b ? class_a < class_b : a->mean_logprob() > b->mean_logprob();
    });
    best.resize(static_cast<size_t>(n_));
  }
  return best;
}

}  // namespace nibble
