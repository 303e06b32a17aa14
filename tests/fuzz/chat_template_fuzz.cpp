// Any bytes as a chat template, or as a conversation: refused with an error, or rendered to UTF-8
// within the limits, the same each time.
//
// The input is a template; what follows a zero byte is a conversation in JSON.
#include <cstdint>
#include <string>
#include <string_view>

#include "nibble/base/check.h"
#include "nibble/base/text.h"
#include "nibble/tokenizer/chat_marker.h"
#include "nibble/tokenizer/chat_messages.h"
#include "nibble/tokenizer/chat_template.h"
#include "nibble/tokenizer/jinja_json.h"
#include "nibble/tokenizer/jinja_template.h"

namespace {

constexpr std::string_view kConversation = R"({"messages": [
  {"role": "system", "content": "Be brief."}, {"role": "user", "content": " Wörld <think> "},
  {"role": "assistant", "content": "<think>\nx\n</think>\n\nyes", "tool_calls": [
    {"id": "1", "function": {"name": "f", "arguments": "{\"a\": 1}"}}]},
  {"role": "tool", "content": "20", "tool_call_id": "1"}],
  "tools": [{"type": "function", "function": {"name": "f", "parameters": {"x": [1, 2.5, null]}}}],
  "n": 7, "f": -2.5, "list": [3, "a", [true]]})";

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace nibble;
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const size_t zero = input.find('\0');
  const std::string_view source = input.substr(0, zero);
  const std::string_view json =
      zero == std::string_view::npos ? kConversation : input.substr(zero + 1);

  // The bare interpreter, with limits that keep a run short.
  const auto program = jinja::Template::parse(source);
  const auto variables = jinja::parse_json(json);
  if (program && variables && variables->is(jinja::Kind::kDict)) {
    jinja::RenderOptions options;
    options.limits = {.max_steps = 20'000, .max_bytes = 1 << 20, .max_output_bytes = 1 << 16};
    options.now = 0;
    const auto text = program->render(variables->as_dict(), options);
    if (text) {
      NIBBLE_CHECK(text->size() <= options.limits.max_output_bytes);
      NIBBLE_CHECK(is_valid_utf8(*text));
      NIBBLE_CHECK(program->render(variables->as_dict(), options).value() == *text);
    }
  }
  if (variables) {
    jinja::Budget budget{jinja::Limits{}};
    const auto text = jinja::to_json(*variables, {}, budget);
    NIBBLE_CHECK(text.has_value());
    NIBBLE_CHECK(jinja::to_json(jinja::parse_json(*text).value(), {}, budget).value() == *text);
  }

  // A conversation: what is read is written and read back, and every built-in takes it.
  const auto request = parse_chat_request(json);
  if (!request) return 0;
  const std::string written = chat_messages_to_json(request->messages);
  const auto read = parse_chat_messages(written);
  NIBBLE_CHECK(read.has_value());
  NIBBLE_CHECK(chat_messages_to_json(*read) == written);
  const auto chat = ChatTemplate::builtin("deepseek_r1", "<s>", "</s>");
  NIBBLE_CHECK(chat.has_value());
  const auto prompt = chat->render(*request);
  NIBBLE_CHECK(!prompt || is_valid_utf8(*prompt));

  // Marks go into any text and come out again, and no spelling is left unmarked.
  const std::vector<AddedToken> tokens = {{0, "<think>", false, false}, {1, "a", false, false}};
  const AddedTokenMatcher matcher(tokens);
  jinja::Dict content;
  content.set("x", variables ? *variables : jinja::Value());
  const auto marker = ChatMarker::choose(matcher, content, source);
  if (!marker) return 0;
  const std::string marked = marker->mark(json);
  NIBBLE_CHECK(marker->unmark(marked) == json);
  NIBBLE_CHECK(marked.find("<think>") == std::string::npos);
  return 0;
}
