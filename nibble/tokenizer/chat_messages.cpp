#include "nibble/tokenizer/chat_messages.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "nibble/base/error.h"
#include "nibble/base/text.h"
#include "nibble/tokenizer/jinja_json.h"

namespace nibble {
namespace {

using jinja::Dict;
using jinja::Kind;
using jinja::Value;

constexpr std::array<std::string_view, 6> kRoles = {"system",    "developer", "user",
                                                    "assistant", "tool",      "function"};

Result<std::string> to_json_text(const Value& value) {
  jinja::Budget budget{jinja::Limits{}};
  return jinja::to_json(value, {}, budget);
}

std::string_view json_type(const Value& value) {
  switch (value.kind()) {
    case Kind::kNone:
      return "null";
    case Kind::kBool:
      return "a boolean";
    case Kind::kString:
      return "a string";
    case Kind::kList:
      return "an array";
    case Kind::kDict:
      return "an object";
    default:
      return "a number";
  }
}

tl::unexpected<Error> wrong_type(std::string_view where, std::string_view wanted,
                                 const Value& found) {
  return invalid_argument(fmt::format("{} is {}, expected {}", where, json_type(found), wanted));
}

// object[key], or null when it is absent or null.
const Value* present(const Dict& object, std::string_view key) {
  const Value* value = object.find(key);
  return value == nullptr || value->is(Kind::kNone) ? nullptr : value;
}

Result<std::string> string_or_empty(const Dict& object, std::string_view key,
                                    std::string_view where) {
  const Value* value = present(object, key);
  if (value == nullptr) return std::string();
  if (!value->is(Kind::kString)) {
    return wrong_type(fmt::format("{}.{}", where, key), "a string", *value);
  }
  return value->as_string();
}

Result<bool> bool_or(const Dict& object, std::string_view key, bool otherwise) {
  const Value* value = present(object, key);
  if (value == nullptr) return otherwise;
  if (!value->is(Kind::kBool)) return wrong_type(key, "true or false", *value);
  return value->as_bool();
}

// A text, or the texts of a list of parts.
Result<std::string> parse_content(const Value& content, const std::string& where) {
  if (content.is(Kind::kString)) return content.as_string();
  if (!content.is(Kind::kList)) return wrong_type(where, "a string or an array of parts", content);
  std::string text;
  const auto& parts = content.as_sequence().items;
  for (size_t i = 0; i < parts.size(); ++i) {
    const std::string place = fmt::format("{}[{}]", where, i);
    if (!parts[i].is(Kind::kDict)) return wrong_type(place, "an object", parts[i]);
    const Dict& part = parts[i].as_dict();
    const std::string type = NIBBLE_TRY(string_or_empty(part, "type", place));
    if (type != "text") {
      return unsupported(fmt::format("{}.type is '{}'; only 'text' is supported", place, type));
    }
    if (present(part, "text") == nullptr) {
      return invalid_argument(fmt::format("{}.text is missing", place));
    }
    text += NIBBLE_TRY(string_or_empty(part, "text", place));
  }
  return text;
}

Result<ChatToolCall> parse_tool_call(const Value& value, const std::string& where) {
  if (!value.is(Kind::kDict)) return wrong_type(where, "an object", value);
  const Dict& object = value.as_dict();
  const std::string type = NIBBLE_TRY(string_or_empty(object, "type", where));
  if (!type.empty() && type != "function") {
    return unsupported(fmt::format("{}.type is '{}'; only 'function' is supported", where, type));
  }
  const Value* function = present(object, "function");
  if (function == nullptr || !function->is(Kind::kDict)) {
    return invalid_argument(fmt::format("{}.function is no object with a name", where));
  }
  const std::string place = where + ".function";
  ChatToolCall call;
  call.id = NIBBLE_TRY(string_or_empty(object, "id", where));
  call.name = NIBBLE_TRY(string_or_empty(function->as_dict(), "name", place));
  if (call.name.empty()) return invalid_argument(place + ".name is missing or empty");
  if (const Value* arguments = present(function->as_dict(), "arguments")) {
    if (arguments->is(Kind::kString)) {
      call.arguments = arguments->as_string();
    } else if (arguments->is(Kind::kDict)) {
      call.arguments = NIBBLE_TRY(to_json_text(*arguments));
    } else {
      return wrong_type(place + ".arguments", "a string or an object", *arguments);
    }
  }
  return call;
}

Result<ChatMessage> parse_message(const Value& value, const std::string& where) {
  if (!value.is(Kind::kDict)) return wrong_type(where, "an object", value);
  const Dict& object = value.as_dict();
  ChatMessage message;
  message.role = NIBBLE_TRY(string_or_empty(object, "role", where));
  message.name = NIBBLE_TRY(string_or_empty(object, "name", where));
  message.tool_call_id = NIBBLE_TRY(string_or_empty(object, "tool_call_id", where));
  if (const Value* content = present(object, "content")) {
    message.content = NIBBLE_TRY(parse_content(*content, where + ".content"));
  }
  if (present(object, "reasoning_content") != nullptr) {
    message.reasoning_content = NIBBLE_TRY(string_or_empty(object, "reasoning_content", where));
  }
  if (present(object, "function_call") != nullptr) {
    return unsupported(where + ".function_call is not supported; use tool_calls");
  }
  if (const Value* calls = present(object, "tool_calls")) {
    if (!calls->is(Kind::kList)) return wrong_type(where + ".tool_calls", "an array", *calls);
    const auto& items = calls->as_sequence().items;
    for (size_t i = 0; i < items.size(); ++i) {
      message.tool_calls.push_back(
          NIBBLE_TRY(parse_tool_call(items[i], fmt::format("{}.tool_calls[{}]", where, i))));
    }
  }
  return message;
}

Result<std::vector<ChatMessage>> messages_of(const Value& value) {
  if (!value.is(Kind::kList)) return wrong_type("messages", "an array", value);
  std::vector<ChatMessage> messages;
  const auto& items = value.as_sequence().items;
  for (size_t i = 0; i < items.size(); ++i) {
    messages.push_back(NIBBLE_TRY(parse_message(items[i], fmt::format("messages[{}]", i))));
  }
  NIBBLE_TRY(check_chat_messages(messages));
  return messages;
}

Result<std::vector<std::string>> tools_of(const Value& value) {
  if (!value.is(Kind::kList)) return wrong_type("tools", "an array", value);
  std::vector<std::string> tools;
  const auto& items = value.as_sequence().items;
  for (size_t i = 0; i < items.size(); ++i) {
    if (!items[i].is(Kind::kDict)) {
      return wrong_type(fmt::format("tools[{}]", i), "an object", items[i]);
    }
    tools.push_back(NIBBLE_TRY(to_json_text(items[i])));
  }
  return tools;
}

Result<ChatThinking> thinking_of(const Dict& object) {
  const std::string mode = NIBBLE_TRY(string_or_empty(object, "thinking", "the conversation"));
  if (mode.empty() || mode == "auto") return ChatThinking::kAuto;
  if (mode == "on") return ChatThinking::kOn;
  if (mode == "off") return ChatThinking::kOff;
  return invalid_argument(fmt::format("thinking is '{}', expected auto, on or off", mode));
}

void append_field(std::string_view key, std::string_view text, std::string& out) {
  out += fmt::format(", \"{}\": {}", key, jinja::json_quoted(text));
}

}  // namespace

Result<ChatRequest> parse_chat_request(std::string_view json) {
  const Value value = NIBBLE_TRY(jinja::parse_json(json));
  ChatRequest request;
  if (value.is(Kind::kList)) {
    request.messages = NIBBLE_TRY(messages_of(value));
    return request;
  }
  if (!value.is(Kind::kDict)) {
    return wrong_type("the conversation", "an array of messages or an object", value);
  }
  const Dict& object = value.as_dict();
  const Value* messages = present(object, "messages");
  if (messages == nullptr) return invalid_argument("messages is missing");
  request.messages = NIBBLE_TRY(messages_of(*messages));
  if (const Value* tools = present(object, "tools")) request.tools = NIBBLE_TRY(tools_of(*tools));
  request.add_generation_prompt = NIBBLE_TRY(bool_or(object, "add_generation_prompt", true));
  request.thinking = NIBBLE_TRY(thinking_of(object));
  request.allow_special_in_content = NIBBLE_TRY(bool_or(object, "allow_special_in_content", false));
  if (const Value* kwargs = present(object, "chat_template_kwargs")) {
    if (!kwargs->is(Kind::kDict)) return wrong_type("chat_template_kwargs", "an object", *kwargs);
    request.chat_template_kwargs = NIBBLE_TRY(to_json_text(*kwargs));
  }
  return request;
}

Result<std::vector<ChatMessage>> parse_chat_messages(std::string_view json) {
  return messages_of(NIBBLE_TRY(jinja::parse_json(json)));
}

Status check_chat_messages(std::span<const ChatMessage> messages) {
  if (messages.empty()) return invalid_argument("messages is empty");
  for (size_t i = 0; i < messages.size(); ++i) {
    const ChatMessage& message = messages[i];
    const std::string where = fmt::format("messages[{}]", i);
    std::vector<std::string_view> texts = {message.role, message.name, message.tool_call_id};
    if (message.content) texts.push_back(*message.content);
    if (message.reasoning_content) texts.push_back(*message.reasoning_content);
    for (const ChatToolCall& call : message.tool_calls) {
      texts.insert(texts.end(), {call.id, call.name, call.arguments});
    }
    for (const std::string_view text : texts) {
      if (!is_valid_utf8(text)) return invalid_argument(where + " is not UTF-8");
    }
    if (std::find(kRoles.begin(), kRoles.end(), message.role) == kRoles.end()) {
      return invalid_argument(fmt::format("{}.role is '{}', expected one of {}", where,
                                          message.role, fmt::join(kRoles, ", ")));
    }
    if (message.role != "assistant" && !message.tool_calls.empty()) {
      return invalid_argument(
          fmt::format("{}.tool_calls belongs to the role assistant, not {}", where, message.role));
    }
    if (!message.content && message.tool_calls.empty()) {
      return invalid_argument(fmt::format(
          "{}.content is missing; only an assistant with tool_calls may go without", where));
    }
  }
  return {};
}

std::string chat_messages_to_json(std::span<const ChatMessage> messages) {
  std::string out = "[";
  for (size_t i = 0; i < messages.size(); ++i) {
    const ChatMessage& message = messages[i];
    out += i == 0 ? "" : ", ";
    out += fmt::format("{{\"role\": {}", jinja::json_quoted(message.role));
    if (message.content) {
      append_field("content", *message.content, out);
    } else {
      out += ", \"content\": null";
    }
    if (message.reasoning_content) {
      append_field("reasoning_content", *message.reasoning_content, out);
    }
    if (!message.name.empty()) append_field("name", message.name, out);
    if (!message.tool_call_id.empty()) append_field("tool_call_id", message.tool_call_id, out);
    if (!message.tool_calls.empty()) {
      out += ", \"tool_calls\": [";
      bool first = true;
      for (const ChatToolCall& call : message.tool_calls) {
        if (!std::exchange(first, false)) out += ", ";
        out += fmt::format(
            "{{\"id\": {}, \"type\": \"function\", \"function\": {{\"name\": {}, \"arguments\": "
            "{}}}}}",
            jinja::json_quoted(call.id), jinja::json_quoted(call.name),
            jinja::json_quoted(call.arguments));
      }
      out += "]";
    }
    out += "}";
  }
  return out + "]";
}

}  // namespace nibble
