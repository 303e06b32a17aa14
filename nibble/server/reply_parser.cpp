#include "nibble/server/reply_parser.h"

#include <algorithm>
#include <utility>

namespace nibble {
namespace {

constexpr std::string_view kOpeningFence = "```json\n";
constexpr std::string_view kClosingFence = "\n```";

bool is_white(char c) { return c == ' ' || c == '\n' || c == '\r' || c == '\t'; }

bool only_white(std::string_view text) { return std::all_of(text.begin(), text.end(), is_white); }

bool only_newlines(std::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return c == '\n'; });
}

// Whether `text` is a beginning of newline, three backticks, white space; *complete when all of the
// backticks are there.
bool may_be_closing_fence(std::string_view text, bool* complete) {
  *complete = text.size() >= kClosingFence.size();
  if (!*complete) return kClosingFence.starts_with(text);
  return text.starts_with(kClosingFence) && only_white(text.substr(kClosingFence.size()));
}

}  // namespace

ReplyTags find_reply_tags(const Tokenizer& tokenizer) {
  const auto id = [&](std::string_view text) { return tokenizer.token_id(text).value_or(-1); };
  ReplyTags tags;
  tags.think_begin = id("<think>");
  tags.think_end = id("</think>");
  tags.calls_begin = id("<｜tool▁calls▁begin｜>");
  tags.calls_end = id("<｜tool▁calls▁end｜>");
  tags.call_begin = id("<｜tool▁call▁begin｜>");
  tags.call_end = id("<｜tool▁call▁end｜>");
  tags.call_separator = id("<｜tool▁sep｜>");
  return tags;
}

ReplyParserOptions::Start reply_start(const ReplyTags& tags, const Tokenizer& tokenizer,
                                      const std::vector<int32_t>& prompt) {
  for (auto id = prompt.rbegin(); id != prompt.rend(); ++id) {
    const std::string_view text = tokenizer.token_bytes(*id);
    if (!text.empty() && only_newlines(text)) continue;
    if (*id == tags.think_begin) return ReplyParserOptions::Start::kReasoning;
    if (*id == tags.think_end) return ReplyParserOptions::Start::kContent;
    break;
  }
  return ReplyParserOptions::Start::kUndecided;
}

ReplyParser::ReplyParser(ReplyParserOptions options)
    : options_(std::move(options)),
      state_(State::kStart),
      stop_matcher_(options_.stop, options_.include_stop),
      reasoning_stop_matcher_(
          options_.stop_in_reasoning ? options_.stop : std::vector<std::string>(),
          options_.include_stop) {
  using Start = ReplyParserOptions::Start;
  if (options_.start == Start::kReasoning) state_ = State::kReasoning;
  if (options_.start == Start::kContent || !options_.parse_reasoning) {
    state_ = State::kContent;
    reasoned_ = true;
  }
}

ReplyParser::Channel ReplyParser::push(int32_t id, std::vector<ReplyEvent>& events, bool matching) {
  if (stopped_) return Channel::kNone;
  const std::string_view text = options_.token_text(id);
  if (state_ >= State::kCalls) return push_tool(id, text, events);

  const ReplyTags& tags = options_.tags;
  const bool think = options_.parse_reasoning;
  const bool is_begin = think && id == tags.think_begin;
  const bool is_end = think && id == tags.think_end;
  if (id == tags.calls_begin || id == tags.calls_end || id == tags.call_begin ||
      id == tags.call_end || id == tags.call_separator) {
    if (!options_.parse_tools || id != tags.calls_begin) return Channel::kNone;
    begin_calls(events);
    return Channel::kTool;
  }
  switch (state_) {
    case State::kStart:
      if (is_begin) {
        held_.clear();
        ++num_reasoning_tokens_;
        state_ = State::kReasoning;
        return Channel::kNone;
      }
      if (is_end) {  // an empty reasoning part
        held_.clear();
        reasoned_ = true;
        state_ = State::kAfter;
        return Channel::kNone;
      }
      if (only_white(text)) {
        held_ += text;
        return Channel::kHeld;
      }
      state_ = State::kContent;
      {
        const std::string all = std::exchange(held_, "") + std::string(text);
        add_content(all, matching, events);
      }
      return Channel::kContent;
    case State::kReasoning:
      ++num_reasoning_tokens_;
      if (is_end) {
        leave_reasoning(false, events);
        return Channel::kNone;
      }
      if (is_begin) {
        anomaly("nested_start");
        return Channel::kNone;
      }
      add_reasoning(text, events);
      return Channel::kReasoning;
    case State::kAfter:
      if (is_begin || is_end) {
        anomaly("tag_after_reasoning");
        return Channel::kNone;
      }
      {
        const size_t begin = std::min(text.find_first_not_of('\n'), text.size());
        if (begin == text.size()) return Channel::kNone;
        state_ = State::kContent;
        add_content(text.substr(begin), matching, events);
      }
      return Channel::kContent;
    default:
      break;
  }
  if (is_end) {
    anomaly("end_without_start");
    if (!reasoned_) {
      leave_content(events);
      events.push_back({ReplyEvent::Kind::kContentWasReasoning, "", 0});
      reasoned_ = true;
      state_ = State::kAfter;
    }
    return Channel::kNone;
  }
  if (is_begin && !content_has_text_) {
    ++num_reasoning_tokens_;
    state_ = State::kReasoning;
    return Channel::kNone;
  }
  add_content(text, matching, events);
  return Channel::kContent;
}

void ReplyParser::add_reasoning(std::string_view bytes, std::vector<ReplyEvent>& events) {
  std::string text = std::exchange(held_, "");
  utf8_.push(bytes, text);
  if (!reasoning_began_) {
    const size_t begin = text.find_first_not_of('\n');
    if (begin == std::string::npos) return;
    text.erase(0, begin);
    reasoning_began_ = true;
  }
  const size_t last = text.find_last_not_of('\n');
  const size_t end = last == std::string::npos ? 0 : last + 1;
  held_ = text.substr(end);
  text.resize(end);
  if (text.empty()) return;
  if (options_.stop_in_reasoning) {
    auto output = reasoning_stop_matcher_.push(text);
    text = std::move(output.text);
    if (output.match) {
      stop_text_ = options_.stop[*output.match];
      stopped_ = true;
      held_.clear();
    }
    if (text.empty()) return;
  }
  events.push_back({ReplyEvent::Kind::kReasoning, std::move(text), 0});
}

void ReplyParser::leave_reasoning(bool keep_newlines, std::vector<ReplyEvent>& events) {
  std::string rest = reasoning_stop_matcher_.flush();
  std::string cut;
  utf8_.flush(cut);
  if (!cut.empty() || keep_newlines) rest += held_ + cut;
  held_.clear();
  if (!rest.empty()) events.push_back({ReplyEvent::Kind::kReasoning, std::move(rest), 0});
  reasoned_ = true;
  state_ = State::kAfter;
}

void ReplyParser::add_content(std::string_view bytes, bool matching,
                              std::vector<ReplyEvent>& events) {
  std::string text;
  utf8_.push(bytes, text);
  if (!text.empty()) give_content(text, matching, events);
}

void ReplyParser::give_content(const std::string& text, bool matching,
                               std::vector<ReplyEvent>& events) {
  if (!only_white(text)) content_has_text_ = true;
  auto output = stop_matcher_.push(text, matching);
  if (!output.text.empty()) {
    events.push_back({ReplyEvent::Kind::kContent, std::move(output.text), 0});
  }
  if (output.match) {
    stop_text_ = options_.stop[*output.match];
    stopped_ = true;
  }
}

void ReplyParser::leave_content(std::vector<ReplyEvent>& events) {
  std::string cut;
  utf8_.flush(cut);
  if (!cut.empty()) give_content(cut, true, events);
  if (stopped_) return;
  std::string rest = stop_matcher_.flush();
  if (!rest.empty()) events.push_back({ReplyEvent::Kind::kContent, std::move(rest), 0});
}

void ReplyParser::begin_calls(std::vector<ReplyEvent>& events) {
  if (state_ == State::kReasoning) {
    anomaly("calls_in_reasoning");
    leave_reasoning(false, events);
  } else if (state_ == State::kContent) {
    leave_content(events);
  }
  held_.clear();
  if (!stopped_) state_ = State::kCalls;
}

void ReplyParser::open_call(const std::string& name, std::vector<ReplyEvent>& events) {
  if (stopped_) return;
  if (state_ < State::kCalls) begin_calls(events);
  if (stopped_) return;  // the content's rest held a stop string
  head_.clear();
  start_call(name, events);
  state_ = State::kArgs;
}

void ReplyParser::close_call(std::vector<ReplyEvent>& events) {
  if (stopped_ || state_ != State::kArgs) return;
  end_arguments(events);
  state_ = State::kCalls;
}

ReplyParser::Channel ReplyParser::push_tool(int32_t id, std::string_view text,
                                            std::vector<ReplyEvent>& events) {
  const ReplyTags& tags = options_.tags;
  if (id == tags.call_end || id == tags.calls_end || id == tags.call_begin) {
    const bool has_name = state_ == State::kName && !head_.empty();
    if (state_ == State::kHead || (state_ == State::kName && !has_name)) {
      anomaly("call_without_name");
    }
    if (has_name) {
      start_call(head_, events);
      state_ = State::kArgs;
    }
    if (state_ == State::kFence) add_arguments(std::exchange(head_, ""), events);
    if (state_ == State::kFence || state_ == State::kArgs) end_arguments(events);
    head_.clear();
    state_ = State::kCalls;
    if (id == tags.calls_end) stopped_ = true;
    if (id == tags.call_end && !options_.parallel_tool_calls && num_calls_ > 0) stopped_ = true;
    if (id == tags.call_begin) state_ = State::kHead;
    return Channel::kTool;
  }
  switch (state_) {
    case State::kCalls:
      if (!only_white(text)) anomaly("text_between_calls");
      break;
    case State::kHead:
      if (id != tags.call_separator) {
        head_ += text;
      } else if (head_ == "function") {
        head_.clear();
        state_ = State::kName;
      } else {  // DeepSeek-V3.1: the name comes first, and arguments without a fence
        start_call(std::exchange(head_, ""), events);
        state_ = State::kArgs;
      }
      break;
    case State::kName: {
      if (id == tags.call_separator) break;
      head_ += text;
      const size_t newline = head_.find('\n');
      if (newline == std::string::npos) break;
      const std::string rest = head_.substr(newline + 1);
      start_call(head_.substr(0, newline), events);
      head_.clear();
      state_ = State::kFence;
      add_fence(rest, events);
      break;
    }
    case State::kFence:
      add_fence(text, events);
      break;
    default:
      add_arguments(text, events);
  }
  return Channel::kTool;
}

void ReplyParser::start_call(const std::string& name, std::vector<ReplyEvent>& events) {
  const auto& names = options_.tool_names;
  if (std::find(names.begin(), names.end(), name) == names.end()) anomaly("unknown_tool");
  std::string whole;  // a name may hold bytes that are no text
  Utf8Stream stream;
  stream.push(name, whole);
  stream.flush(whole);
  events.push_back({ReplyEvent::Kind::kToolStart, std::move(whole), num_calls_});
  ++num_calls_;
  arguments_.clear();
  arguments_given_ = false;
  utf8_ = Utf8Stream();
}

void ReplyParser::add_fence(std::string_view text, std::vector<ReplyEvent>& events) {
  head_ += text;
  if (head_.starts_with(kOpeningFence)) {
    const std::string rest = std::exchange(head_, "").substr(kOpeningFence.size());
    state_ = State::kArgs;
    add_arguments(rest, events);
  } else if (!kOpeningFence.starts_with(head_)) {
    state_ = State::kArgs;
    add_arguments(std::exchange(head_, ""), events);
  }
}

// Holds back the longest end that could be the closing fence; at the very beginning the fence may
// come without its newline.
void ReplyParser::add_arguments(std::string_view text, std::vector<ReplyEvent>& events) {
  utf8_.push(text, arguments_);
  size_t keep = arguments_.size();
  const auto may_begin_at = [&](size_t at) {
    bool complete = false;
    const std::string_view rest = std::string_view(arguments_).substr(at);
    if (may_be_closing_fence(rest, &complete)) return true;
    return at == 0 && !arguments_given_ &&
           may_be_closing_fence("\n" + std::string(rest), &complete);
  };
  // A fence with white space behind it can be long; it begins with a newline or at the beginning.
  for (size_t at = 0; at < arguments_.size(); ++at) {
    if ((at == 0 || arguments_[at] == '\n') && may_begin_at(at)) {
      keep = at;
      break;
    }
  }
  std::string out = arguments_.substr(0, keep);
  arguments_.erase(0, keep);
  give_arguments(std::move(out), events);
}

void ReplyParser::give_arguments(std::string text, std::vector<ReplyEvent>& events) {
  if (text.empty()) return;
  arguments_given_ = true;
  events.push_back({ReplyEvent::Kind::kToolArguments, std::move(text), num_calls_ - 1});
}

void ReplyParser::end_arguments(std::vector<ReplyEvent>& events) {
  utf8_.flush(arguments_);
  std::string rest = std::exchange(arguments_, "");
  const auto is_fence = [](std::string_view text) {
    bool complete = false;
    return may_be_closing_fence(text, &complete) && complete;
  };
  if (is_fence(rest) || (!arguments_given_ && is_fence("\n" + rest))) rest.clear();
  if (!arguments_given_ && only_white(rest)) rest = "{}";
  give_arguments(std::move(rest), events);
  events.push_back({ReplyEvent::Kind::kToolEnd, "", num_calls_ - 1});
}

void ReplyParser::finish(bool by_length, std::vector<ReplyEvent>& events) {
  if (stopped_) return;
  switch (state_) {
    case State::kStart:
      if (!held_.empty()) give_content(std::exchange(held_, ""), true, events);
      if (!stopped_) leave_content(events);
      break;
    case State::kReasoning:
      if (!by_length) anomaly("unclosed");
      leave_reasoning(false, events);
      break;
    case State::kContent:
      leave_content(events);
      break;
    case State::kName:
      if (!by_length) anomaly("call_without_name");
      break;
    case State::kFence:
    case State::kArgs:
      if (by_length) {
        if (state_ == State::kFence) utf8_.push(head_, arguments_);
        give_arguments(std::exchange(arguments_, ""), events);
        break;
      }
      anomaly("unclosed_call");
      if (state_ == State::kFence) add_arguments(std::exchange(head_, ""), events);
      end_arguments(events);
      break;
    default:
      break;
  }
  stopped_ = true;
}

}  // namespace nibble
