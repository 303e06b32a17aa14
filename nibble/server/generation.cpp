#include "nibble/server/generation.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <random>

#include "nibble/base/log.h"

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

void join(std::vector<ReplyEvent>& events) {
  std::vector<ReplyEvent> joined;
  for (ReplyEvent& event : events) {
    const bool is_text = event.kind == ReplyEvent::Kind::kReasoning ||
                         event.kind == ReplyEvent::Kind::kContent ||
                         event.kind == ReplyEvent::Kind::kToolArguments;
    if (is_text && !joined.empty() && joined.back().kind == event.kind &&
        joined.back().call == event.call) {
      joined.back().text += event.text;
    } else {
      joined.push_back(std::move(event));
    }
  }
  events = std::move(joined);
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
      Answer answer;
      answer.prompt = p;
      answer.choice.index = static_cast<int>(p * each + i);
      answers_.push_back(std::move(answer));
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
  const bool choose_name = request_.forced_names.size() > 1;
  for (size_t i = 0; i < answers_.size() && !ended_; ++i) {
    if (choose_name) {
      submit_choice_of_name(i);
    } else {
      if (!request_.forced_names.empty()) answers_[i].forced_name = request_.forced_names.front();
      submit(i);
    }
  }
}

// tool_choice required, several functions: first the name alone.
void Generation::submit_choice_of_name(size_t index) {
  Answer& answer = answers_[index];
  Request request;
  request.prompt_token_ids = request_.prompts[answer.prompt];
  request.params = request_.params;
  request.params.stop_token_ids.clear();
  request.params.logprobs.reset();
  request.params.prompt_logprobs.reset();
  request.params.max_tokens.reset();
  request.params.min_tokens = 0;
  request.params.n = 1;
  request.params.best_of.reset();
  Guided guided;
  guided.kind = Guided::Kind::kChoice;
  guided.choices = request_.forced_names;
  request.params.guided = std::move(guided);
  if (request_.parser.tags.think_begin >= 0) {
    request.params.logit_bias[request_.parser.tags.think_begin] = -100;
  }
  request.choice = answer.choice.index;
  auto ticket = shared_.engine->submit(
      std::move(request), [self = shared_from_this(), index](const RequestUpdate& update) {
        self->shared_.post([self, index, update] { self->on_update(index, update); });
      });
  if (!ticket) return fail(from_error(ticket.error()));
  answer.ticket = *ticket;
}

void Generation::submit(size_t index) {
  Answer& answer = answers_[index];
  Request request;
  request.prompt_token_ids = request_.prompts[answer.prompt];
  request.params = request_.params;
  request.params.n = 1;
  request.params.best_of.reset();
  const auto each = static_cast<int>(answers_.size() / request_.prompts.size());
  request.choice = answer.choice.index % each;
  ReplyParserOptions options = request_.parser;
  if (!request_.forced_names.empty()) {
    const auto at =
        std::find(request_.forced_names.begin(), request_.forced_names.end(), answer.forced_name) -
        request_.forced_names.begin();
    const std::string& schema = request_.forced_schemas[static_cast<size_t>(at)];
    EncodeOptions plain;
    plain.parse_added_tokens = false;
    const auto ids = shared_.model->tokenizer->encode(answer.forced_name + "\n```json\n", plain);
    if (!ids) return fail(from_error(ids.error()));
    request.prompt_token_ids.insert(request.prompt_token_ids.end(), ids->begin(), ids->end());
    Guided guided;
    guided.kind = schema.empty() ? Guided::Kind::kJsonObject : Guided::Kind::kJsonSchema;
    guided.text = schema;
    guided.strict = false;
    guided.suffix = "\n```";
    request.params.guided = std::move(guided);
    if (options.tags.think_begin >= 0) request.params.logit_bias[options.tags.think_begin] = -100;
    options.forced_tool = answer.forced_name;
  }
  if (request_.parse_reply) {
    const Tokenizer* tokenizer = shared_.model->tokenizer;
    const bool skip = request_.params.skip_special_tokens;
    options.token_text = [tokenizer, skip](int32_t id) -> std::string_view {
      if (skip && tokenizer->is_special(id)) return {};
      return tokenizer->token_bytes(id);
    };
    answer.parser = std::make_unique<ReplyParser>(std::move(options));
  }
  auto ticket = shared_.engine->submit(
      std::move(request), [self = shared_from_this(), index](const RequestUpdate& update) {
        self->shared_.post([self, index, update] { self->on_update(index, update); });
      });
  if (!ticket) return fail(from_error(ticket.error()));
  answer.ticket = *ticket;
}

void Generation::on_update(size_t index, const RequestUpdate& update) {
  Answer& answer = answers_[index];
  if (ended_ || answer.done) return;
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
  if (!request_.forced_names.empty() && answer.forced_name.empty()) {
    return on_name_update(answer, index, update);
  }
  const bool first_of_prompt = index % (answers_.size() / request_.prompts.size()) == 0;
  if (first_of_prompt && !std::exchange(answer.counted_cached, true)) {
    usage_.cached_tokens += update.num_cached_tokens;
  }
  ReplyDelta delta;
  delta.choice = &answer.choice;
  auto& prompt_logprobs = answer.choice.prompt_logprobs;
  prompt_logprobs.insert(prompt_logprobs.end(), update.prompt_logprobs.begin(),
                         update.prompt_logprobs.end());
  if (answer.parser) {
    take_tokens(answer, update, &delta);
  } else {
    take_text(answer, update, &delta);
  }
  const bool stopped = answer.parser && answer.parser->stopped();
  if (update.finished || stopped) finish_answer(answer, update, &delta);
  apply(answer, &delta);
  if (stopped && !update.finished) shared_.engine->cancel(*answer.ticket);
  const bool nothing = delta.token_ids.empty() && delta.events.empty() && !delta.finished;
  if (request_.stream && !nothing) {
    delta.first = !std::exchange(answer.begun, true);
    send_delta(delta);
  }
  if (!delta.finished || ended_) return;
  if (std::all_of(answers_.begin(), answers_.end(), [](const Answer& a) { return a.done; })) {
    finish();
  }
}

void Generation::on_name_update(Answer& answer, size_t index, const RequestUpdate& update) {
  answer.chosen_text += update.text;
  usage_.completion_tokens += static_cast<int64_t>(update.token_ids.size());
  if (!update.finished) return;
  const auto& names = request_.forced_names;
  if (std::find(names.begin(), names.end(), answer.chosen_text) == names.end()) {
    ApiError error = bad_request("the context is too small for the call that tool_choice asks for",
                                 "context_length_exceeded", "messages");
    return fail(error);
  }
  answer.forced_name = answer.chosen_text;
  submit(index);
}

void Generation::take_tokens(Answer& answer, const RequestUpdate& update, ReplyDelta* delta) {
  ReplyParser& parser = *answer.parser;
  Choice& choice = answer.choice;
  const auto& stop_ids = request_.params.stop_token_ids;
  const ReplyTags& tags = request_.parser.tags;
  for (size_t i = 0; i < update.token_ids.size() && !parser.stopped(); ++i) {
    const int32_t id = update.token_ids[i];
    ++answer.num_tokens;
    ++usage_.completion_tokens;
    choice.token_ids.push_back(id);
    delta->token_ids.push_back(id);
    const bool is_last = update.finished && i + 1 == update.token_ids.size();
    const bool is_stop_id = is_last && update.finish_reason == FinishReason::kStop &&
                            std::find(stop_ids.begin(), stop_ids.end(), id) != stop_ids.end();
    if (is_stop_id && id != tags.calls_end && id != tags.call_end) {
      choice.stop_token_id = id;
      continue;
    }
    const bool matching = answer.num_tokens >= request_.params.min_tokens;
    const auto channel = parser.push(id, delta->events, matching);
    if (i >= update.logprobs.size()) continue;
    const PositionLogprobs& logprobs = update.logprobs[i];
    choice.cumulative_logprob += logprobs.chosen.logprob;
    if (channel == ReplyParser::Channel::kHeld) {
      answer.held_logprobs.push_back(logprobs);
    } else if (channel == ReplyParser::Channel::kContent) {
      auto& pending = answer.pending_content;
      std::move(answer.held_logprobs.begin(), answer.held_logprobs.end(),
                std::back_inserter(pending));
      answer.held_logprobs.clear();
      // EOS is in the reply's count, not in its content.
      const bool skipped =
          request_.params.skip_special_tokens && shared_.model->tokenizer->is_special(id);
      if (!skipped) pending.push_back(logprobs);
    } else {
      answer.held_logprobs.clear();
      if (channel == ReplyParser::Channel::kReasoning) answer.pending_reasoning.push_back(logprobs);
    }
  }
  const int64_t before = choice.num_reasoning_tokens;
  choice.num_reasoning_tokens = parser.num_reasoning_tokens();
  usage_.reasoning_tokens += choice.num_reasoning_tokens - before;
}

void Generation::take_text(Answer& answer, const RequestUpdate& update, ReplyDelta* delta) {
  Choice& choice = answer.choice;
  answer.num_tokens += static_cast<int64_t>(update.token_ids.size());
  usage_.completion_tokens += static_cast<int64_t>(update.token_ids.size());
  choice.token_ids.insert(choice.token_ids.end(), update.token_ids.begin(), update.token_ids.end());
  delta->token_ids = update.token_ids;
  if (!update.text.empty()) {
    delta->events.push_back({ReplyEvent::Kind::kContent, update.text, 0});
  }
  for (const PositionLogprobs& logprobs : update.logprobs) {
    choice.cumulative_logprob += logprobs.chosen.logprob;
  }
  delta->content_logprobs = update.logprobs;
  choice.content_logprobs.insert(choice.content_logprobs.end(), update.logprobs.begin(),
                                 update.logprobs.end());
  if (!update.stop_text.empty()) choice.stop_text = update.stop_text;
  if (update.finished && update.finish_reason == FinishReason::kStop && update.stop_text.empty() &&
      !update.token_ids.empty()) {
    const auto& ids = request_.params.stop_token_ids;
    if (std::find(ids.begin(), ids.end(), update.token_ids.back()) != ids.end()) {
      choice.stop_token_id = update.token_ids.back();
    }
  }
}

void Generation::finish_answer(Answer& answer, const RequestUpdate& update, ReplyDelta* delta) {
  answer.done = true;
  delta->finished = true;
  Choice& choice = answer.choice;
  const bool by_length = update.finished && update.finish_reason == FinishReason::kLength &&
                         !(answer.parser && answer.parser->stopped());
  choice.finish_reason = by_length ? "length" : "stop";
  if (!answer.parser) return;
  ReplyParser& parser = *answer.parser;
  parser.finish(by_length, delta->events);
  choice.stop_text = parser.stop_text();
  if (parser.num_calls() > 0 && !by_length && !choice.stop_text) {
    choice.finish_reason = "tool_calls";
  }
  shared_.metrics->count_tool_calls(parser.num_calls());
  for (const std::string& kind : parser.anomalies()) shared_.metrics->count_anomaly(kind);
}

// Adds what came to the answer as a whole.
void Generation::apply(Answer& answer, ReplyDelta* delta) {
  join(delta->events);
  Choice& choice = answer.choice;
  bool has_content = false;
  bool has_reasoning = false;
  for (const ReplyEvent& event : delta->events) {
    switch (event.kind) {
      case ReplyEvent::Kind::kReasoning:
        choice.reasoning += event.text;
        has_reasoning = true;
        break;
      case ReplyEvent::Kind::kContent:
        choice.content += event.text;
        has_content = true;
        break;
      case ReplyEvent::Kind::kContentWasReasoning:
        if (!request_.stream) {
          choice.reasoning += std::exchange(choice.content, "");
          std::move(choice.content_logprobs.begin(), choice.content_logprobs.end(),
                    std::back_inserter(choice.reasoning_logprobs));
          choice.content_logprobs.clear();
        }
        break;
      case ReplyEvent::Kind::kToolStart:
        choice.calls.push_back({random_id("call_"), event.text, ""});
        break;
      case ReplyEvent::Kind::kToolArguments:
        choice.calls[static_cast<size_t>(event.call)].arguments += event.text;
        break;
      case ReplyEvent::Kind::kToolEnd:
        break;
    }
  }
  if (!answer.parser) return;
  const auto flush = [](std::vector<PositionLogprobs>& pending, std::vector<PositionLogprobs>& out,
                        std::vector<PositionLogprobs>& all) {
    all.insert(all.end(), pending.begin(), pending.end());
    out = std::exchange(pending, {});
  };
  if (has_content) flush(answer.pending_content, delta->content_logprobs, choice.content_logprobs);
  if (has_reasoning) {
    flush(answer.pending_reasoning, delta->reasoning_logprobs, choice.reasoning_logprobs);
  }
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

void Generation::begin_stream() {
  if (std::exchange(streaming_, true)) return;
  reply_->begin(head());
  const std::string first = writer_->begin(usage_);
  if (!first.empty()) reply_->write(first);
}

void Generation::send_delta(const ReplyDelta& delta) {
  begin_stream();
  std::string text = writer_->step(delta, usage_);
  if (text.empty()) return;
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
  const size_t each = answers_.size() / prompts;
  const auto n = static_cast<size_t>(request_.params.n);
  for (size_t p = 0; p < prompts; ++p) {
    std::vector<Choice*> own;
    for (size_t i = 0; i < each; ++i) own.push_back(&answers_[p * each + i].choice);
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

void Generation::finish() {
  if (request_.stream) {
    begin_stream();
    reply_->write(writer_->end(usage_));
    reply_->end();
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
  times.prefill = seconds(first_token_ - arrival_);
  times.decode = seconds(now - first_token_);
  times.prompt_tokens = usage_.prompt_tokens;
  times.generation_tokens = usage_.completion_tokens;
  shared_.metrics->finished(times);
  const std::string& reason = answers_.front().choice.finish_reason;
  end(200, reason);
}

void Generation::measure(const RequestUpdate& update) {
  if (update.token_ids.empty()) return;
  const auto now = Clock::now();
  if (first_token_ == Clock::time_point()) {
    first_token_ = now;
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
    reply_->write(writer_->error(error));
    reply_->end();
  } else {
    HttpResponse response = error_response(error, request_.api == Api::kMessages);
    response.headers.insert(response.headers.end(), origin_.headers.begin(), origin_.headers.end());
    reply_->send(std::move(response));
  }
  end(streaming_ ? 200 : error.status, "error");
}

void Generation::abort() {
  cancel_all();
  end(499, "abort");
}

void Generation::cancel_all() {
  for (const Answer& answer : answers_) {
    if (answer.ticket && !answer.done) shared_.engine->cancel(*answer.ticket);
  }
}

void Generation::end(int status, std::string_view finish) {
  if (std::exchange(ended_, true)) return;
  shared_.metrics->count_request(origin_.route, status);
  shared_.metrics->count_finish(finish == "tool_calls" ? "stop" : std::string(finish));
  log_line(status, finish);
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
    if (!has_token || request_.stream || !request_.forced_names.empty()) return fail(error);
    deadline_passed_ = true;
    cancel_all();
    for (Answer& answer : answers_) {
      if (answer.done) continue;
      RequestUpdate cut;
      cut.finished = true;
      cut.finish_reason = FinishReason::kLength;
      ReplyDelta delta;
      delta.choice = &answer.choice;
      finish_answer(answer, cut, &delta);
      apply(answer, &delta);
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
    begin_stream();
    reply_->write(writer_->keep_alive());
    last_sent_ = now;
  }
}

void Generation::log_line(int status, std::string_view finish) const {
  const auto now = Clock::now();
  const bool has_token = first_token_ != Clock::time_point();
  const double ttft = has_token ? 1e3 * seconds(first_token_ - arrival_) : 0;
  const double decode = has_token ? 1e3 * seconds(last_token_ - first_token_) : 0;
  const double tpot =
      usage_.completion_tokens > 1 ? decode / static_cast<double>(usage_.completion_tokens - 1) : 0;
  const double end_to_end = 1e3 * seconds(now - arrival_);
  if (shared_.log_json) {
    nlohmann::ordered_json json = {{"event", "request"},
                                   {"id", origin_.request_id},
                                   {"client", origin_.client},
                                   {"route", origin_.route},
                                   {"status", status},
                                   {"finish", finish},
                                   {"prompt", usage_.prompt_tokens},
                                   {"cached", usage_.cached_tokens},
                                   {"output", usage_.completion_tokens},
                                   {"reasoning", usage_.reasoning_tokens},
                                   {"ttft_ms", std::round(ttft * 10) / 10},
                                   {"tpot_ms", std::round(tpot * 100) / 100},
                                   {"e2e_ms", std::round(end_to_end * 10) / 10}};
    log_info(json.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace));
  } else {
    log_info(fmt::format(
        "request id={} client={} route={} status={} finish={} prompt={} cached={} output={} "
        "reasoning={} ttft_ms={:.1f} tpot_ms={:.2f} e2e_ms={:.1f}",
        origin_.request_id, origin_.client, origin_.route, status, finish, usage_.prompt_tokens,
        usage_.cached_tokens, usage_.completion_tokens, usage_.reasoning_tokens, ttft, tpot,
        end_to_end));
  }
  if (!shared_.log_prompts) return;
  for (const auto& prompt : request_.prompts) {
    log_info(fmt::format("prompt id={} text={}", origin_.request_id,
                         json_text(shared_.model->tokenizer->decode(prompt, false))));
  }
  for (const Answer& answer : answers_) {
    log_info(
        fmt::format("output id={} text={}", origin_.request_id, json_text(answer.choice.content)));
  }
}

}  // namespace nibble
