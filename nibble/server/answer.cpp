#include "nibble/server/answer.h"

#include <algorithm>
#include <iterator>

#include "nibble/base/error.h"

namespace nibble {
namespace {

// What a model may write between two calls; the template has one line end there.
constexpr int64_t kMaxTokensBetweenCalls = 16;

bool contains(const std::vector<int64_t>& ids, int32_t id) {
  return std::find(ids.begin(), ids.end(), id) != ids.end();
}

void join(std::vector<ReplyEvent>& events) {
  if (events.size() < 2) return;
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

}  // namespace

Answer::Answer(const GenerationRequest& request, const ServedModel& model, size_t prompt,
               int choice_of_prompt)
    : request_(request), model_(model), prompt_(prompt), choice_of_prompt_(choice_of_prompt) {
  if (!request_.parse_reply) return;
  ReplyParserOptions options = request_.parser;
  const Tokenizer* tokenizer = model_.tokenizer;
  const bool skip = request_.params.skip_special_tokens;
  options.token_text = [tokenizer, skip](int32_t id) -> std::string_view {
    if (skip && tokenizer->is_special(id)) return {};
    return tokenizer->token_bytes(id);
  };
  parser_ = std::make_unique<ReplyParser>(std::move(options));
}

bool Answer::is_eos(int32_t id) const { return contains(model_.eos_token_ids, id); }
bool Answer::is_stop_id(int32_t id) const { return contains(request_.params.stop_token_ids, id); }

// Tokens that the answer may still have.
int64_t Answer::room() const {
  const auto prompt_size = static_cast<int64_t>(request_.prompts[prompt_].size());
  const int64_t context = model_.max_seq_len - prompt_size;
  const int64_t most = std::min(request_.params.max_tokens.value_or(context), context);
  return most - static_cast<int64_t>(choice.token_ids.size());
}

// The grammar ends these arguments, so their EOS is no part of the reply.
bool Answer::in_given_call() const {
  return phase_ == Phase::kArguments && tool_ != nullptr && tool_->constrained;
}

Result<Request> Answer::next_request() {
  const CallRules& rules = request_.call_rules;
  if (num_requests_ == 0 && rules.required) {
    phase_ = Phase::kThink;
    if (request_.parser.start != ReplyParserOptions::Start::kReasoning) NIBBLE_TRY(begin_calls());
  }
  Request request;
  request.prompt_token_ids = request_.prompts[prompt_];
  request.prompt_token_ids.insert(request.prompt_token_ids.end(), choice.token_ids.begin(),
                                  choice.token_ids.end());
  request.choice = choice_of_prompt_;
  SamplingParams& params = request.params;
  params = request_.params;
  params.n = 1;
  params.best_of.reset();
  const ReplyTags& tags = request_.parser.tags;
  const auto stop_at = [&](std::initializer_list<int32_t> ids) {
    for (const int32_t id : ids) {
      if (id >= 0) params.stop_token_ids.push_back(id);
    }
  };
  if (num_requests_ > 0) {
    params.prompt_logprobs.reset();
    params.min_tokens = 0;
    // Each request counts its positions from 0: other random numbers for each.
    constexpr uint64_t kOdd = 0x9e3779b97f4a7c15;
    const auto mixed = static_cast<uint64_t>(params.seed.value_or(0)) +
                       kOdd * static_cast<uint64_t>(num_requests_);
    params.seed = static_cast<int64_t>(mixed >> 1);
  }
  if (phase_ != Phase::kFree) {
    params.guided.reset();
    params.ignore_eos = false;
    params.max_tokens = std::max<int64_t>(room(), 1);
    if (phase_ != Phase::kThink) {
      params.thinking_budget.reset();
      if (tags.think_begin >= 0) params.logit_bias[tags.think_begin] = -100;
    }
  }
  switch (phase_) {
    case Phase::kFree:
      if (!request_.parser.parse_tools) break;
      if (!rules.tools.empty()) {
        stop_at({tags.calls_begin});
        break;
      }
      stop_at({tags.calls_end});
      if (!request_.parser.parallel_tool_calls) stop_at({tags.call_end});
      break;
    case Phase::kThink:
      stop_at({tags.think_end, tags.calls_begin});
      break;
    case Phase::kName: {
      params.stop_token_ids.clear();
      params.logprobs.reset();
      params.max_tokens.reset();
      Guided& guided = params.guided.emplace();
      guided.kind = Guided::Kind::kChoice;
      for (const CallableTool& tool : rules.tools) guided.choices.push_back(tool.name);
      break;
    }
    case Phase::kArguments:
      if (tool_->constrained) {
        Guided& guided = params.guided.emplace();
        guided.kind = tool_->schema.empty() ? Guided::Kind::kJsonObject : Guided::Kind::kJsonSchema;
        guided.text = tool_->schema;
        guided.strict = tool_->strict;
        guided.suffix = "\n```";
      } else {
        stop_at({tags.call_end, tags.calls_end});
      }
      break;
    case Phase::kBetween:
      stop_at({tags.call_begin, tags.calls_end});
      params.max_tokens = std::min(*params.max_tokens, kMaxTokensBetweenCalls);
      break;
  }
  ++num_requests_;
  return request;
}

Status Answer::insert_text(const std::string& text) {
  EncodeOptions plain;
  plain.parse_added_tokens = false;
  for (const int32_t id : NIBBLE_TRY(model_.tokenizer->encode(text, plain))) insert(id);
  return {};
}

// Behind the reasoning, or instead of content.
Status Answer::begin_calls() {
  insert(request_.parser.tags.calls_begin);
  return begin_call(true);
}

// The head of a call up to its name, or, with one function, up to its arguments.
Status Answer::begin_call(bool with_tag) {
  const ReplyTags& tags = request_.parser.tags;
  if (with_tag) insert(tags.call_begin);
  NIBBLE_TRY(insert_text("function"));
  insert(tags.call_separator);
  const auto& tools = request_.call_rules.tools;
  if (tools.size() == 1) return begin_arguments(tools.front());
  name_.clear();
  phase_ = Phase::kName;
  return {};
}

Status Answer::begin_arguments(const CallableTool& tool) {
  tool_ = &tool;
  phase_ = Phase::kArguments;
  opened_ = tool.name;
  return insert_text(tool.name + "\n```json\n");
}

Answer::Next Answer::ask(const Status& status, ReplyDelta* delta) {
  return status && room() > 0 ? Next::kAsk : finish(true, delta);
}

Answer::Next Answer::take(const RequestUpdate& update, ReplyDelta* delta) {
  delta->choice = &choice;
  Next next = Next::kMore;
  if (phase_ == Phase::kName) {
    next = take_name(update, delta);
  } else {
    if (!opened_.empty()) parser_->open_call(std::exchange(opened_, ""), delta->events);
    auto& prompt_logprobs = choice.prompt_logprobs;
    prompt_logprobs.insert(prompt_logprobs.end(), update.prompt_logprobs.begin(),
                           update.prompt_logprobs.end());
    if (parser_) {
      take_tokens(update, delta);
    } else {
      take_text(update, delta);
    }
    if (update.finished || (parser_ && parser_->stopped())) next = advance(update, delta);
  }
  apply(delta);
  return next;
}

void Answer::cut(ReplyDelta* delta) {
  delta->choice = &choice;
  (void)finish(true, delta);
  apply(delta);
}

Answer::Next Answer::take_name(const RequestUpdate& update, ReplyDelta* delta) {
  name_ += update.text;
  if (!update.finished) return Next::kMore;
  const auto& tools = request_.call_rules.tools;
  const auto tool = std::find_if(tools.begin(), tools.end(),
                                 [&](const CallableTool& one) { return one.name == name_; });
  if (tool == tools.end()) return finish(true, delta);  // the context ended inside the name
  return ask(begin_arguments(*tool), delta);
}

// What comes behind a request that is over.
Answer::Next Answer::advance(const RequestUpdate& update, ReplyDelta* delta) {
  const bool stopped = parser_ && parser_->stopped();
  const bool by_length = update.finished && update.finish_reason == FinishReason::kLength;
  const int32_t last = update.token_ids.empty() ? -1 : update.token_ids.back();
  const ReplyTags& tags = request_.parser.tags;
  const CallRules& rules = request_.call_rules;
  if (stopped || choice.stop_token_id) return finish(false, delta);
  switch (phase_) {
    case Phase::kFree:
      if (!by_length && !rules.tools.empty() && last == tags.calls_begin) {
        return ask(begin_call(true), delta);
      }
      break;
    case Phase::kThink:
      if (by_length) break;
      if (last == tags.calls_begin) return ask(begin_call(true), delta);
      if (last != tags.think_end) {  // the model wanted to end: its reasoning is over
        insert(tags.think_end);
        (void)parser_->push(tags.think_end, delta->events);
      }
      if (const Status status = insert_text("\n\n"); !status) return ask(status, delta);
      return ask(begin_calls(), delta);
    case Phase::kArguments:
      if (by_length) break;
      if (in_given_call()) {
        parser_->close_call(delta->events);
        insert(tags.call_end);
      } else if (last != tags.call_end) {
        break;
      }
      if (!rules.several) break;
      phase_ = Phase::kBetween;
      return ask({}, delta);
    case Phase::kBetween:
      if (!by_length && last == tags.call_begin) return ask(begin_call(false), delta);
      return finish(false, delta);
    case Phase::kName:
      break;
  }
  return finish(by_length, delta);
}

void Answer::take_tokens(const RequestUpdate& update, ReplyDelta* delta) {
  ReplyParser& parser = *parser_;
  const ReplyTags& tags = request_.parser.tags;
  for (size_t i = 0; i < update.token_ids.size() && !parser.stopped(); ++i) {
    const int32_t id = update.token_ids[i];
    const bool is_last = update.finished && i + 1 == update.token_ids.size();
    if (is_last && is_eos(id) && (phase_ == Phase::kThink || in_given_call())) break;
    choice.token_ids.push_back(id);
    if (is_last && update.finish_reason == FinishReason::kStop && is_stop_id(id) &&
        id != tags.calls_end && id != tags.call_end) {
      choice.stop_token_id = id;
      continue;
    }
    const bool matching =
        static_cast<int64_t>(choice.token_ids.size()) >= request_.params.min_tokens;
    const auto channel = parser.push(id, delta->events, matching);
    if (i >= update.logprobs.size()) continue;
    const PositionLogprobs& logprobs = update.logprobs[i];
    choice.cumulative_logprob += logprobs.chosen.logprob;
    if (channel == ReplyParser::Channel::kHeld) {
      held_logprobs_.push_back(logprobs);
    } else if (channel == ReplyParser::Channel::kContent) {
      std::move(held_logprobs_.begin(), held_logprobs_.end(), std::back_inserter(pending_content_));
      held_logprobs_.clear();
      // EOS is in the reply's count, not in its content.
      const bool skipped = request_.params.skip_special_tokens && model_.tokenizer->is_special(id);
      if (!skipped) pending_content_.push_back(logprobs);
    } else {
      held_logprobs_.clear();
      if (channel == ReplyParser::Channel::kReasoning) pending_reasoning_.push_back(logprobs);
    }
  }
  choice.num_reasoning_tokens = parser.num_reasoning_tokens();
}

void Answer::take_text(const RequestUpdate& update, ReplyDelta* delta) {
  choice.token_ids.insert(choice.token_ids.end(), update.token_ids.begin(), update.token_ids.end());
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
      !update.token_ids.empty() && is_stop_id(update.token_ids.back())) {
    choice.stop_token_id = update.token_ids.back();
  }
}

Answer::Next Answer::finish(bool by_length, ReplyDelta* delta) {
  delta->finished = true;
  choice.finish_reason = by_length ? "length" : "stop";
  if (!parser_) return Next::kDone;
  parser_->finish(by_length, delta->events);
  choice.stop_text = parser_->stop_text();
  if (parser_->num_calls() > 0 && !by_length && !choice.stop_text) {
    choice.finish_reason = "tool_calls";
  }
  return Next::kDone;
}

// Adds what came to the answer as a whole.
void Answer::apply(ReplyDelta* delta) {
  join(delta->events);
  delta->token_ids.assign(choice.token_ids.begin() + static_cast<std::ptrdiff_t>(num_reported_),
                          choice.token_ids.end());
  num_reported_ = choice.token_ids.size();
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
  if (!parser_) return;
  const auto flush = [](std::vector<PositionLogprobs>& pending, std::vector<PositionLogprobs>& out,
                        std::vector<PositionLogprobs>& all) {
    all.insert(all.end(), pending.begin(), pending.end());
    out = std::exchange(pending, {});
  };
  if (has_content) flush(pending_content_, delta->content_logprobs, choice.content_logprobs);
  if (has_reasoning) {
    flush(pending_reasoning_, delta->reasoning_logprobs, choice.reasoning_logprobs);
  }
}

}  // namespace nibble
