#include "nibble/server/generation.h"

#include <fmt/format.h>

#include <algorithm>
#include <random>

#include "nibble/server/request_log.h"

namespace nibble {
namespace {

constexpr size_t kMaxUnsentBytes = 1 << 20;

double seconds(Generation::Clock::duration duration) {
  return std::chrono::duration<double>(duration).count();
}

std::string_view id_prefix(Api api) {
  switch (api) {
    case Api::kChat:
      return "chatcmpl-";
    case Api::kCompletions:
      return "cmpl-";
    case Api::kMessages:
      return "msg_";
    case Api::kResponses:
      return "resp_";
  }
  return "";
}

double mean_logprob(const Choice& choice) {
  const auto count = static_cast<double>(std::max<size_t>(choice.token_ids.size(), 1));
  return choice.cumulative_logprob / count;
}

}  // namespace

Generation::Generation(GenerationShared& shared, GenerationRequest request, GenerationOrigin origin,
                       std::shared_ptr<HttpReply> reply)
    : shared_(shared),
      request_(std::move(request)),
      origin_(std::move(origin)),
      reply_(std::move(reply)),
      arrival_(Clock::now()),
      last_sent_(arrival_) {
  context_.request = &request_;
  context_.model = shared_.model;
  context_.id = random_id(id_prefix(request_.api));
  context_.created = std::chrono::duration_cast<std::chrono::seconds>(
                         std::chrono::system_clock::now().time_since_epoch())
                         .count();
  context_.fingerprint = shared_.fingerprint;
  writer_ = make_reply_writer(context_);
  const auto each = static_cast<size_t>(request_.params.best_of.value_or(request_.params.n));
  for (size_t p = 0; p < request_.prompts.size(); ++p) {
    usage_.prompt_tokens += static_cast<int64_t>(request_.prompts[p].size());
    for (size_t i = 0; i < each; ++i) {
      Answer answer(request_, *shared_.model, p, static_cast<int>(i));
      answer.choice.index = static_cast<int>(p * each + i);
      parts_.emplace_back(std::move(answer));
    }
  }
}

Generation::~Generation() = default;

void Generation::start(std::function<void(Generation&)> on_end) {
  on_end_ = std::move(on_end);
  reply_->on_gone([weak = weak_from_this()] {
    if (const auto self = weak.lock()) {
      self->shared_.metrics->count_disconnect();
      self->cancel_all();
      self->end(499, "abort");
    }
  });
  if (ended_) return;
  if (!request_.has_seed) {
    static thread_local std::mt19937_64 rng{std::random_device{}()};
    request_.params.seed = static_cast<int64_t>(rng() >> 1);
  }
  for (size_t i = 0; i < parts_.size() && !ended_; ++i) ask(i);
}

void Generation::ask(size_t index) {
  Part& part = parts_[index];
  auto request = part.answer.next_request();
  if (!request) return fail(from_error(request.error()));
  auto ticket = shared_.engine->submit(
      *std::move(request), [self = shared_from_this(), index](const RequestUpdate& update) {
        self->shared_.updates.push([self, index, update] {
          self->on_update(index, update);
          if (!update.token_ids.empty()) {
            self->shared_.metrics->token_delay(seconds(Clock::now() - update.step_end));
          }
        });
      });
  if (!ticket) return fail(from_error(ticket.error()));
  part.ticket = *ticket;
}

void Generation::on_update(size_t index, const RequestUpdate& update) {
  Part& part = parts_[index];
  if (ended_ || part.done) return;
  first_update_ = true;
  if (update.error) {
    if (update.error->code == ErrorCode::kCorrupt) shared_.metrics->count_bad_logits();
    return fail(from_error(*update.error));
  }
  if (update.finished && update.finish_reason == FinishReason::kAbort) {
    ApiError error;
    error.status = 503;
    error.type = streaming_ ? "server_error" : "service_unavailable";
    error.code = streaming_ ? "server_shutdown" : "shutting_down";
    error.message = "the server shut down before the reply was complete";
    error.headers.emplace_back("Retry-After", "5");
    return fail(error);
  }
  measure(update);
  const bool first_of_prompt = index % (parts_.size() / request_.prompts.size()) == 0;
  if (first_of_prompt && !std::exchange(part.counted_cached, true)) {
    usage_.cached_tokens += update.num_cached_tokens;
  }
  ReplyDelta delta;
  const int64_t reasoning = part.answer.choice.num_reasoning_tokens;
  const Answer::Next next = part.answer.take(update, &delta);
  count(update, delta, part.answer.choice.num_reasoning_tokens - reasoning);
  if (next == Answer::Next::kDone) {
    answer_is_done(part);
    if (!update.finished) shared_.engine->cancel(*part.ticket);
  }
  const bool nothing = delta.token_ids.empty() && delta.events.empty() && !delta.finished;
  std::string text;
  if (request_.stream && !nothing) {
    delta.first = !std::exchange(part.begun, true);
    text = delta_text(delta, update.step_end);
  }
  if (part.done &&
      std::all_of(parts_.begin(), parts_.end(), [](const Part& one) { return one.done; })) {
    return finish(std::move(text));
  }
  if (!text.empty()) send(std::move(text));
  if (!ended_ && next == Answer::Next::kAsk) ask(index);
}

void Generation::count(const RequestUpdate& update, const ReplyDelta& delta,
                       int64_t new_reasoning_tokens) {
  usage_.completion_tokens += static_cast<int64_t>(delta.token_ids.size());
  usage_.reasoning_tokens += new_reasoning_tokens;
  usage_.draft_tokens += update.num_draft_tokens;
  usage_.accepted_tokens += update.num_accepted_tokens;
  if (update.num_draft_tokens > 0) ++num_windows_;
}

void Generation::answer_is_done(Part& part) {
  part.done = true;
  const ReplyParser* parser = part.answer.parser();
  if (parser == nullptr) return;
  shared_.metrics->count_tool_calls(parser->num_calls());
  for (const std::string& kind : parser->anomalies()) shared_.metrics->count_anomaly(kind);
}

HttpResponse Generation::head() const {
  HttpResponse response;
  response.headers = origin_.headers;
  if (request_.stream) {
    response.content_type = "text/event-stream";
    response.headers.emplace_back("Cache-Control", "no-cache");
    response.headers.emplace_back("X-Accel-Buffering", "no");
  }
  return response;
}

std::string Generation::begin_stream() {
  if (std::exchange(streaming_, true)) return "";
  reply_->begin(head());
  return writer_->begin(usage_);
}

std::string Generation::delta_text(const ReplyDelta& delta, Clock::time_point step_end) {
  std::string text = begin_stream();
  text += writer_->step(delta, usage_);
  if (origin_.tell_step_time && !text.empty()) {
    text.insert(0, fmt::format(": step {:.6f}\n", seconds(step_end.time_since_epoch())));
  }
  return text;
}

void Generation::send(std::string text) {
  last_sent_ = Clock::now();
  reply_->write(std::move(text));
  if (reply_->unsent_bytes() > kMaxUnsentBytes) {  // a client that does not read
    shared_.metrics->count_disconnect();
    cancel_all();
    end(499, "abort");
  }
}

// The n best of each prompt's answers, numbered anew.
std::vector<const Choice*> Generation::choose() {
  std::vector<const Choice*> choices;
  const size_t prompts = request_.prompts.size();
  const size_t each = parts_.size() / prompts;
  const auto n = static_cast<size_t>(request_.params.n);
  for (size_t p = 0; p < prompts; ++p) {
    std::vector<Choice*> own;
    for (size_t i = 0; i < each; ++i) own.push_back(&parts_[p * each + i].answer.choice);
    if (n < each) {
      std::stable_sort(own.begin(), own.end(), [](const Choice* a, const Choice* b) {
        return mean_logprob(*a) > mean_logprob(*b);
      });
      own.resize(n);
    }
    for (Choice* choice : own) {
      choice->index = static_cast<int>(choices.size());
      choices.push_back(choice);
    }
  }
  return choices;
}

void Generation::finish(std::string last_text) {
  if (shared_.model->call_memory) {
    for (const Part& part : parts_) {
      const Choice& choice = part.answer.choice;
      shared_.model->call_memory->remember(choice.calls, choice.token_ids, request_.parser.tags);
    }
  }
  if (request_.stream) {
    last_text += begin_stream();
    last_text += writer_->end(usage_);
    reply_->end(std::move(last_text));
  } else {
    const std::vector<const Choice*> choices = choose();
    HttpResponse response = head();
    if (deadline_passed_) response.headers.emplace_back("x-nibble-deadline", "exceeded");
    response.body = writer_->body(choices, usage_) + "\n";
    reply_->send(std::move(response));
  }
  RequestTimes times;
  const auto now = Clock::now();
  times.end_to_end = seconds(now - arrival_);
  times.queue = queue_seconds_;
  times.prefill = std::max(0.0, seconds(first_token_ - arrival_) - queue_seconds_);
  times.decode = seconds(now - first_token_);
  times.prompt_tokens = usage_.prompt_tokens;
  times.generation_tokens = usage_.completion_tokens;
  if (first_token_ == Clock::time_point()) {  // a prompt that was scored alone
    times.prefill = times.end_to_end;
    times.decode = 0;
  }
  shared_.metrics->finished(times);
  end(200, parts_.front().answer.choice.finish_reason);
}

void Generation::measure(const RequestUpdate& update) {
  if (update.token_ids.empty()) return;
  const auto now = Clock::now();
  if (first_token_ == Clock::time_point()) {
    first_token_ = now;
    queue_seconds_ = update.queue_seconds;
    shared_.metrics->first_token(seconds(now - arrival_));
  } else {
    const auto count = static_cast<int64_t>(update.token_ids.size());
    shared_.metrics->inter_token(seconds(now - last_token_) / static_cast<double>(count), count);
  }
  last_token_ = now;
}

void Generation::fail(const ApiError& error) {
  if (ended_) return;
  cancel_all();
  if (streaming_) {
    reply_->end(writer_->error(error));
  } else {
    HttpResponse response = error_response(error, request_.api == Api::kMessages);
    response.headers.insert(response.headers.end(), origin_.headers.begin(), origin_.headers.end());
    reply_->send(std::move(response));
  }
  end(streaming_ ? 200 : error.status, "error");
}

void Generation::cancel_all() {
  for (const Part& part : parts_) {
    if (part.ticket && !part.done) shared_.engine->cancel(*part.ticket);
  }
}

void Generation::end(int status, std::string_view finish) {
  if (std::exchange(ended_, true)) return;
  shared_.metrics->count_request(origin_.route, status);
  shared_.metrics->count_finish(finish == "tool_calls" ? "stop" : std::string(finish));
  log(status, finish);
  reply_.reset();
  if (on_end_) on_end_(*this);
}

void Generation::tick(Clock::time_point now) {
  if (ended_) return;
  const bool has_token = first_token_ != Clock::time_point();
  if (origin_.timeout && now - arrival_ > *origin_.timeout) {
    ApiError error;
    error.status = 504;
    error.type = "timeout_error";
    error.code = "deadline_exceeded";
    error.message = "the request took longer than its time limit";
    error.headers.emplace_back("x-should-retry", "false");
    if (!has_token || request_.stream) return fail(error);
    deadline_passed_ = true;
    cancel_all();
    for (Part& part : parts_) {
      if (part.done) continue;
      ReplyDelta delta;
      part.answer.cut(&delta);
      answer_is_done(part);
    }
    return finish();
  }
  if (!first_update_ && shared_.queue_timeout.count() > 0 &&
      now - arrival_ > shared_.queue_timeout) {
    ApiError error;
    error.status = 503;
    error.type = "service_unavailable";
    error.code = "queue_timeout";
    error.message = "the request waited too long for its turn";
    error.headers.emplace_back("Retry-After", "5");
    return fail(error);
  }
  if (request_.stream && now - last_sent_ >= shared_.keepalive_interval) {
    std::string text = begin_stream();
    text += writer_->keep_alive();
    send(std::move(text));
  }
}

void Generation::log(int status, std::string_view finish) const {
  const auto now = Clock::now();
  const bool has_token = first_token_ != Clock::time_point();
  RequestRecord record;
  record.id = origin_.request_id;
  record.trace_id = origin_.trace_id;
  record.client = origin_.client;
  record.route = origin_.route;
  record.status = status;
  record.finish = finish;
  record.usage = usage_;
  record.num_windows = num_windows_;
  record.queue_ms = 1e3 * queue_seconds_;
  record.ttft_ms = has_token ? 1e3 * seconds(first_token_ - arrival_) : 0;
  const double decode = has_token ? 1e3 * seconds(last_token_ - first_token_) : 0;
  const int64_t later = usage_.completion_tokens - 1;
  record.tpot_ms = later > 0 ? decode / static_cast<double>(later) : 0;
  record.end_to_end_ms = 1e3 * seconds(now - arrival_);
  log_request(record, shared_.log_json);
  if (!shared_.log_prompts) return;
  for (const auto& prompt : request_.prompts) {
    log_text("prompt", record.id, shared_.model->tokenizer->decode(prompt, false));
  }
  for (const Part& part : parts_) log_text("output", record.id, part.answer.choice.content);
}

}  // namespace nibble
