// Conversations: what a chat template turns into a prompt, and their JSON form (OpenAI's
// `messages`).
#pragma once

#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/base/result.h"

namespace nibble {

// A function that the assistant calls.
struct ChatToolCall {
  std::string id;
  std::string name;
  std::string arguments;  // usually JSON, as the model wrote it
};

struct ChatMessage {
  // "system", "user", "assistant" or "tool"; "developer" means system and "function" tool.
  std::string role;
  std::optional<std::string> content;            // only an assistant with tool_calls may lack it
  std::optional<std::string> reasoning_content;  // of an assistant; most templates drop it
  std::vector<ChatToolCall> tool_calls;          // of an assistant
  std::string tool_call_id;                      // of a tool: which call this answers, or ""
  std::string name;                              // or ""
};

enum class ChatThinking {
  kAuto,  // as the template has it
  kOn,    // the prompt ends in an open <think>
  kOff,   // the prompt ends in an empty <think></think>
};

struct ChatRequest {
  std::vector<ChatMessage> messages;
  std::vector<std::string> tools;  // each a JSON object {"type": "function", "function": {...}}
  bool add_generation_prompt = true;
  ChatThinking thinking = ChatThinking::kAuto;
  // A JSON object of further template variables, or "". With thinking kAuto its `thinking` or
  // `enable_thinking`, true or false, counts as kOn or kOff.
  std::string chat_template_kwargs;
  // Whether "<｜User｜>" in a message's text is the token; otherwise it is encoded as plain text.
  bool allow_special_in_content = false;
};

// A conversation from JSON: an array of messages, or an object with `messages` and, each optional,
// `tools`, `add_generation_prompt`, `thinking` ("auto", "on", "off"), `chat_template_kwargs` and
// `allow_special_in_content`. Other fields are left to others, and null is as good as absent.
//
// `content` may be a list of {"type": "text", "text": ...} parts, which are joined. `arguments` may
// be an object, which becomes JSON text.
//
// Errors: kInvalidArgument naming the place ("messages[2].role is 'x', expected ...") for
// malformed JSON and for what an OpenAI server would refuse; kUnsupported for parts other than text
// and for the outdated function_call.
Result<ChatRequest> parse_chat_request(std::string_view json);

// The messages alone, from a JSON array.
Result<std::vector<ChatMessage>> parse_chat_messages(std::string_view json);

// Whether every message could be sent to a template: known roles, content where it must be, UTF-8.
// Errors: kInvalidArgument naming the message.
Status check_chat_messages(std::span<const ChatMessage> messages);

// The array that parse_chat_messages reads back. The strings are UTF-8.
std::string chat_messages_to_json(std::span<const ChatMessage> messages);

}  // namespace nibble
