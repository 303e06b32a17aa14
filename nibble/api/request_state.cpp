#include "nibble/api/request_state.h"

#include <fmt/format.h>

#include <algorithm>

#include "nibble/api/convert.h"
#include "nibble/base/log.h"

namespace nibble::api {
namespace {

double seconds_since(std::chrono::steady_clock::time_point begin) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

// A century is as good as for ever, and no clock overflows. NaN is no time.
std::chrono::duration<double> bounded(double seconds) {
  return std::chrono::duration<double>(seconds > 0 ? std::min(seconds, 3e9) : 0.0);
}

}  // namespace

RequestHandle::State::State(RequestOutput output, const nibble::SamplingParams& params,
                            Callback on_output)
    : id_(output.request_id),
      params_(params),
      streams_(params.best_of.value_or(params.n) == params.n),
      on_output_(std::move(on_output)),
      output_(std::move(output)) {
  const auto n = static_cast<size_t>(params.n);
  output_.outputs.resize(n);
  for (size_t i = 0; i < n; ++i) output_.outputs[i].index = static_cast<int64_t>(i);
  taken_.resize(n);
  callback_taken_.resize(n);
}

void RequestHandle::State::split_thinking(const Tokenizer& tokenizer) {
  splits_.assign(output_.outputs.size(),
                 ThinkingSplit(tokenizer, output_.prompt_token_ids, params_.skip_special_tokens));
}

nibble::Status RequestHandle::State::submit(const std::shared_ptr<Runtime>& runtime,
                                            nibble::Request request) {
  auto group = NIBBLE_TRY(AnswerGroup::submit(
      *runtime->engine, std::move(request),
      [self = shared_from_this()](const AnswerGroup& g, int choice, const RequestUpdate& update) {
        self->on_update(g, choice, update);
      }));
  bool aborted = false;
  {
    const std::lock_guard lock(mutex_);
    runtime_ = runtime;
    group_ = group;  // alive as long as the engine has a part of it
    aborted = aborted_;
  }
  if (aborted) group->cancel();  // by the callback, which was faster
  return {};
}

void RequestHandle::State::on_update(const AnswerGroup& group, int choice,
                                     const RequestUpdate& update) {
  std::optional<RequestOutput> shown;
  std::function<void()> on_progress;
  {
    const std::lock_guard lock(mutex_);
    take_in(group, choice, update);
    if (on_output_ && (streams_ || output_.finished)) shown = snapshot(&callback_taken_);
    if (fresh_) on_progress = on_progress_;
    if (output_.finished) on_progress_ = nullptr;
  }
  changed_.notify_all();
  if (on_progress) call_user("on_progress", on_progress);
  if (!shown) return;
  call_user("outputs", [&] { on_output_(*shown); });
  // A callback may hold its own request's handle: they would keep each other for ever.
  if (shown->finished) on_output_ = nullptr;
}

void RequestHandle::State::call_user(std::string_view name, const std::function<void()>& call) {
  std::string what;
  try {
    call();
    return;
  } catch (const std::exception& exception) {
    what = exception.what();
  } catch (...) {
    what = "no std::exception";
  }
  log_error(fmt::format("a callback for {} threw, its request ends: {}", name, what));
  abort();
}

void RequestHandle::State::take_in(const AnswerGroup& group, int choice,
                                   const RequestUpdate& update) {
  if (output_.metrics.time_to_first_token == 0 && !update.token_ids.empty()) {
    output_.metrics.time_to_first_token = seconds_since(arrival_);
  }
  output_.num_cached_tokens = group.num_cached_tokens();
  if (streams_) {
    const Answer& answer = group.answers()[static_cast<size_t>(choice)];
    CompletionOutput& shown = output_.outputs[static_cast<size_t>(choice)];
    add_text(static_cast<size_t>(choice), update.token_ids, update.text);
    for (const auto& position : update.logprobs) shown.logprobs.push_back(to_api(position));
    if (params_.logprobs) shown.cumulative_logprob = answer.cumulative_logprob;
    if (update.finished) {
      shown.finish_reason = finish_reason_name(answer.finish_reason);
      shown.stop_text = answer.stop_text;
      shown.stop_token_id = stop_token_of(answer, params_);
    }
    fresh_ = true;
  }
  if (update.error && !output_.error) output_.error = to_api(*update.error);
  if (group.finished()) finish(group);
}

void RequestHandle::State::add_text(size_t output, std::span<const int32_t> token_ids,
                                    std::string_view text) {
  CompletionOutput& shown = output_.outputs[output];
  shown.token_ids.insert(shown.token_ids.end(), token_ids.begin(), token_ids.end());
  if (splits_.empty()) {
    shown.text += text;
  } else {
    splits_[output].push(token_ids, text, &shown.reasoning_content, &shown.text);
  }
}

void RequestHandle::State::finish(const AnswerGroup& group) {
  if (!streams_) {
    const auto best = group.best();
    for (size_t i = 0; i < best.size(); ++i) {
      CompletionOutput& shown = output_.outputs[i];
      add_text(i, best[i]->token_ids, best[i]->text);
      shown.cumulative_logprob = best[i]->cumulative_logprob;
      if (params_.logprobs) {
        for (const auto& position : best[i]->logprobs) shown.logprobs.push_back(to_api(position));
      }
      shown.finish_reason = finish_reason_name(best[i]->finish_reason);
      shown.stop_text = best[i]->stop_text;
      shown.stop_token_id = stop_token_of(*best[i], params_);
    }
    // A choice that failed is no failure of the request as long as there are enough others.
    output_.error.reset();
    for (const Answer* answer : best) {
      if (answer->error && !output_.error) output_.error = to_api(*answer->error);
    }
  }
  for (const auto& position : group.prompt_logprobs()) {
    output_.prompt_logprobs.push_back(to_api(position));
  }
  output_.metrics.end_to_end = seconds_since(arrival_);
  output_.finished = true;
  fresh_ = true;
}

RequestOutput RequestHandle::State::snapshot(std::vector<Taken>* taken) const {
  RequestOutput copy = output_;
  for (size_t i = 0; i < copy.outputs.size(); ++i) {
    CompletionOutput& output = copy.outputs[i];
    Taken& before = (*taken)[i];
    output.text_diff = output.text.substr(before.text_bytes);
    output.reasoning_content_diff = output.reasoning_content.substr(before.reasoning_bytes);
    output.token_ids_diff.assign(
        output.token_ids.begin() + static_cast<std::ptrdiff_t>(before.tokens),
        output.token_ids.end());
    before = {output.text.size(), output.reasoning_content.size(), output.token_ids.size()};
  }
  return copy;
}

bool RequestHandle::State::wait(double seconds) {
  std::unique_lock lock(mutex_);
  return changed_.wait_for(lock, bounded(seconds), [this] { return fresh_ || output_.finished; });
}

bool RequestHandle::State::wait_finished(double seconds) {
  std::unique_lock lock(mutex_);
  return changed_.wait_for(lock, bounded(seconds), [this] { return output_.finished; });
}

void RequestHandle::State::on_progress(const std::function<void()>& callback) {
  bool now = false;
  {
    const std::lock_guard lock(mutex_);
    if (!output_.finished) on_progress_ = callback;
    now = callback && (fresh_ || (output_.finished && !gave_last_));
  }
  if (now) callback();
}

std::optional<RequestOutput> RequestHandle::State::next() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return fresh_ || output_.finished; });
  if (gave_last_) return std::nullopt;
  fresh_ = false;
  gave_last_ = output_.finished;
  return snapshot(&taken_);
}

RequestOutput RequestHandle::State::result() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return output_.finished; });
  return output_;
}

bool RequestHandle::State::finished() const {
  const std::lock_guard lock(mutex_);
  return output_.finished;
}

void RequestHandle::State::abort() {
  std::shared_ptr<Runtime> runtime;
  std::shared_ptr<AnswerGroup> group;
  {
    const std::lock_guard lock(mutex_);
    aborted_ = true;
    runtime = runtime_.lock();
    group = group_.lock();
  }
  if (runtime && group) group->cancel();
}

uint64_t RequestHandle::request_id() const { return state_->request_id(); }
std::optional<RequestOutput> RequestHandle::next() { return state_->next(); }
bool RequestHandle::wait(double seconds) const { return state_->wait(seconds); }
RequestOutput RequestHandle::result() const { return state_->result(); }
bool RequestHandle::wait_finished(double seconds) const { return state_->wait_finished(seconds); }
void RequestHandle::on_progress(const std::function<void()>& callback) {
  state_->on_progress(callback);
}
bool RequestHandle::finished() const { return state_->finished(); }
void RequestHandle::abort() { state_->abort(); }

}  // namespace nibble::api
