// A generated reply in the words of each API: as one body, or as a stream of events.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/engine/logprobs.h"
#include "nibble/server/call_memory.h"
#include "nibble/server/generation_request.h"
#include "nibble/server/reply_parser.h"

namespace nibble {

// One answer, as far as it is there.
struct Choice {
  int index = 0;
  std::vector<int32_t> token_ids;
  std::string reasoning;
  std::string content;  // of completions: the text, without the echoed prompt
  std::vector<NamedCall> calls;
  std::vector<PositionLogprobs> content_logprobs;  // chat: of content; completions: of all tokens
  std::vector<PositionLogprobs> reasoning_logprobs;
  std::vector<PositionLogprobs> prompt_logprobs;  // from the second prompt token on
  std::string finish_reason;                      // "" until it ended
  std::optional<std::string> stop_text;           // what ended it: a text, or
  std::optional<int32_t> stop_token_id;           // a token of stop_token_ids
  int64_t num_reasoning_tokens = 0;
  double cumulative_logprob = 0;
  size_t text_offset = 0;  // completions: characters before the next token
};

struct Usage {
  int64_t prompt_tokens = 0;
  int64_t completion_tokens = 0;
  int64_t cached_tokens = 0;
  int64_t reasoning_tokens = 0;
  int64_t draft_tokens = 0;  // judged, of those accepted
  int64_t accepted_tokens = 0;
};

// What one step brought to one answer.
struct ReplyDelta {
  Choice* choice = nullptr;
  std::vector<ReplyEvent> events;  // neighbours of one kind are joined
  std::vector<PositionLogprobs> content_logprobs;
  std::vector<PositionLogprobs> reasoning_logprobs;
  std::vector<int32_t> token_ids;
  bool first = false;
  bool finished = false;
};

// What every part of a reply names.
struct ReplyContext {
  const GenerationRequest* request = nullptr;
  const ServedModel* model = nullptr;
  std::string id;       // "chatcmpl-..."
  int64_t created = 0;  // seconds since 1970
  std::string fingerprint;
};

class ReplyWriter {
 public:
  virtual ~ReplyWriter() = default;

  // Server-sent events, "" for none.
  virtual std::string begin(const Usage&) { return ""; }
  virtual std::string step(const ReplyDelta& delta, const Usage& usage) = 0;
  virtual std::string end(const Usage& usage) = 0;
  virtual std::string error(const ApiError& error) = 0;
  virtual std::string keep_alive() { return ": keep-alive\n\n"; }

  // The whole reply as JSON.
  virtual std::string body(const std::vector<const Choice*>& choices, const Usage& usage) = 0;
};

// `context` outlives the writer.
std::unique_ptr<ReplyWriter> make_chat_writer(const ReplyContext& context);
std::unique_ptr<ReplyWriter> make_completion_writer(const ReplyContext& context);
std::unique_ptr<ReplyWriter> make_messages_writer(const ReplyContext& context);
std::unique_ptr<ReplyWriter> make_responses_writer(const ReplyContext& context);
std::unique_ptr<ReplyWriter> make_reply_writer(const ReplyContext& context);

// "call_" and 24 random letters and digits; other prefixes likewise.
std::string random_id(std::string_view prefix);

// A JSON text with its quotes.
std::string json_text(std::string_view text);

// A choice of a stream that goes on, without log-probabilities. `text_member` is JSON:
// "\"text\":\"...\"" or "\"delta\":{...}". A JSON library takes several times as long.
std::string plain_choice(int index, std::string_view text_member);

// The usage object of chat and completions.
std::string usage_json(const Usage& usage);

// Log-probabilities as JSON numbers: -inf is -9999.0.
double finite_logprob(double value);

// The text of one token, U+FFFD for what is no whole character.
std::string token_text(const Tokenizer& tokenizer, int32_t id);

// vLLM's prompt_logprobs: null, then an object by token id for each further prompt token.
std::string prompt_logprobs_json(const Choice& choice, const Tokenizer& tokenizer);

}  // namespace nibble
