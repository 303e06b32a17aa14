// A chat reply as it is generated: reasoning, content and tool calls told apart by token id.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/engine/finish_reason.h"
#include "nibble/engine/stop_matcher.h"
#include "nibble/tokenizer/tokenizer.h"
#include "nibble/tokenizer/utf8_stream.h"

namespace nibble {

// Ids of DeepSeek's markers; -1: the vocabulary has none.
struct ReplyTags {
  int32_t think_begin = -1;
  int32_t think_end = -1;
  int32_t calls_begin = -1;
  int32_t calls_end = -1;
  int32_t call_begin = -1;
  int32_t call_end = -1;
  int32_t call_separator = -1;
};

ReplyTags find_reply_tags(const Tokenizer& tokenizer);

// What a step brought, in order. Texts are whole UTF-8.
struct ReplyEvent {
  enum class Kind {
    kReasoning,
    kContent,
    kContentWasReasoning,  // </think> came without <think>: a whole reply moves its content so far
    kToolStart,            // text: the function's name
    kToolArguments,        // text: more of the arguments
    kToolEnd,
  };
  Kind kind = Kind::kContent;
  std::string text;
  int call = 0;  // of tool events, from 0

  bool operator==(const ReplyEvent&) const = default;
};

struct ReplyParserOptions {
  enum class Start { kUndecided, kReasoning, kContent };

  ReplyTags tags;
  // The text that a token adds; "" for those that are to be left out.
  std::function<std::string_view(int32_t)> token_text;
  Start start = Start::kUndecided;
  bool parse_reasoning = true;  // otherwise think tags are text
  bool parse_tools = false;     // otherwise tool markers are dropped
  bool parallel_tool_calls = true;
  std::vector<std::string> tool_names;  // for the count of unknown ones
  std::vector<std::string> stop;        // matched in content alone
  bool include_stop = false;
  bool stop_in_reasoning = false;
};

// The state behind a prompt: what stands before its trailing newline tokens decides.
ReplyParserOptions::Start reply_start(const ReplyTags& tags, const Tokenizer& tokenizer,
                                      const std::vector<int32_t>& prompt);

// Spec serving sections 4.3 and 4.4. Tags are recognised by id alone: a spelled "</think>" is text.
// Takes accepted tokens, never drafts. One for each choice; not thread-safe.
class ReplyParser {
 public:
  enum class Channel { kNone, kHeld, kReasoning, kContent, kTool };

  explicit ReplyParser(ReplyParserOptions options);

  // Appends what the token brings to `events`; nothing after stopped(). Returns where its text
  // belongs. kHeld: white space that will be content if content follows, and nothing otherwise.
  // `matching` false: stop strings are not looked for (before min_tokens).
  Channel push(int32_t token_id, std::vector<ReplyEvent>& events, bool matching = true);

  // A call whose head was not generated but given: what comes next are its arguments, from behind
  // the opening fence on. close_call() ends them. Nothing after stopped().
  void open_call(const std::string& name, std::vector<ReplyEvent>& events);
  void close_call(std::vector<ReplyEvent>& events);

  // The end: gives out what was held back. `by_length`: the tokens were cut off.
  void finish(bool by_length, std::vector<ReplyEvent>& events);

  // A stop string matched or the calls ended: nothing that follows counts.
  bool stopped() const { return stopped_; }
  const std::optional<std::string>& stop_text() const { return stop_text_; }
  int num_calls() const { return num_calls_; }
  int64_t num_reasoning_tokens() const { return num_reasoning_tokens_; }
  bool is_reasoning() const { return state_ == State::kReasoning; }

  // Names of what a well-behaved model does not do, for a metric: "unclosed_call", ...
  const std::vector<std::string>& anomalies() const { return anomalies_; }

 private:
  enum class State { kStart, kReasoning, kAfter, kContent, kCalls, kHead, kName, kFence, kArgs };

  Channel push_tool(int32_t id, std::string_view text, std::vector<ReplyEvent>& events);
  void begin_calls(std::vector<ReplyEvent>& events);
  void add_reasoning(std::string_view bytes, std::vector<ReplyEvent>& events);
  void add_content(std::string_view bytes, bool matching, std::vector<ReplyEvent>& events);
  void give_content(const std::string& text, bool matching, std::vector<ReplyEvent>& events);
  void leave_reasoning(bool keep_newlines, std::vector<ReplyEvent>& events);
  void leave_content(std::vector<ReplyEvent>& events);
  void start_call(const std::string& name, std::vector<ReplyEvent>& events);
  void add_fence(std::string_view text, std::vector<ReplyEvent>& events);
  void add_arguments(std::string_view text, std::vector<ReplyEvent>& events);
  void end_arguments(std::vector<ReplyEvent>& events);
  void give_arguments(std::string text, std::vector<ReplyEvent>& events);
  void anomaly(std::string_view kind) { anomalies_.emplace_back(kind); }

  ReplyParserOptions options_;
  State state_;
  Utf8Stream utf8_;  // of the channel in use
  StopMatcher stop_matcher_;
  StopMatcher reasoning_stop_matcher_;

  std::string held_;               // kStart: white space so far; kReasoning: trailing newlines
  bool reasoned_ = false;          // a reasoning part was closed, here or in the prompt
  bool reasoning_began_ = false;   // leading newlines are over
  bool content_has_text_ = false;  // beyond white space

  std::string head_;       // kHead, kName, kFence: text so far
  std::string arguments_;  // held back: could be the closing fence
  bool arguments_given_ = false;
  int num_calls_ = 0;

  bool stopped_ = false;
  std::optional<std::string> stop_text_;
  int64_t num_reasoning_tokens_ = 0;
  std::vector<std::string> anomalies_;
};

}  // namespace nibble
