#include "nibble/tokenizer/chat_messages.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

namespace nibble {
namespace {

using ::testing::HasSubstr;

std::string chat_parse_error(const std::string& json) {
  const auto request = parse_chat_request(json);
  return request ? "no error" : request.error().message;
}

TEST(ChatMessages, ReadsAConversationInOpenAisForm) {
  const auto request = parse_chat_request(R"({"model": "ignored", "messages": [
    {"role": "developer", "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]},
    {"role": "user", "content": "Weather?", "name": "ann"},
    {"role": "assistant", "content": null, "reasoning_content": "Hm", "refusal": null, "tool_calls": [
      {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{\"a\":1}"}},
      {"function": {"name": "g", "arguments": {"b": [1.0, "é"], "a": null}}}]},
    {"role": "tool", "content": "20", "tool_call_id": "call_1"}],
    "tools": [{"type": "function", "function": {"name": "f"}}],
    "thinking": "off", "chat_template_kwargs": {"x": true}})");
  ASSERT_TRUE(request) << request.error().message;
  ASSERT_EQ(request->messages.size(), 4u);
  EXPECT_EQ(request->messages[0].role, "developer");
  EXPECT_EQ(request->messages[0].content, "Be brief.");
  EXPECT_EQ(request->messages[1].name, "ann");
  const ChatMessage& assistant = request->messages[2];
  EXPECT_FALSE(assistant.content.has_value());
  EXPECT_EQ(assistant.reasoning_content, "Hm");
  ASSERT_EQ(assistant.tool_calls.size(), 2u);
  EXPECT_EQ(assistant.tool_calls[0].id, "call_1");
  EXPECT_EQ(assistant.tool_calls[0].arguments, "{\"a\":1}");
  EXPECT_EQ(assistant.tool_calls[1].arguments, "{\"b\": [1.0, \"é\"], \"a\": null}");
  EXPECT_EQ(request->messages[3].tool_call_id, "call_1");
  EXPECT_EQ(request->tools,
            std::vector<std::string>{"{\"type\": \"function\", \"function\": {\"name\": \"f\"}}"});
  EXPECT_EQ(request->thinking, ChatThinking::kOff);
  EXPECT_EQ(request->chat_template_kwargs, "{\"x\": true}");
  EXPECT_TRUE(request->add_generation_prompt);
  EXPECT_FALSE(request->allow_special_in_content);
}

TEST(ChatMessages, AnArrayIsAConversationToo) {
  const auto request = parse_chat_request(R"([{"role": "user", "content": "Hi"}])");
  ASSERT_TRUE(request) << request.error().message;
  EXPECT_EQ(request->messages.at(0).content, "Hi");
}

TEST(ChatMessages, WhatIsWrittenIsReadBack) {
  std::vector<ChatMessage> messages(3);
  messages[0].role = "user";
  messages[0].content = "\"quoted\"\n\t\x01 \U0001f600 \\";
  messages[0].name = "ann";
  messages[1].role = "assistant";
  messages[1].reasoning_content = "";
  messages[1].tool_calls = {{"1", "f", "{}"}, {"", "g", "not { JSON"}};
  messages[2].role = "tool";
  messages[2].content = "";
  messages[2].tool_call_id = "1";
  const auto read = parse_chat_messages(chat_messages_to_json(messages));
  ASSERT_TRUE(read) << read.error().message;
  ASSERT_EQ(read->size(), 3u);
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_EQ((*read)[i].role, messages[i].role);
    EXPECT_EQ((*read)[i].content, messages[i].content);
    EXPECT_EQ((*read)[i].reasoning_content, messages[i].reasoning_content);
    EXPECT_EQ((*read)[i].name, messages[i].name);
    EXPECT_EQ((*read)[i].tool_call_id, messages[i].tool_call_id);
  }
  ASSERT_EQ((*read)[1].tool_calls.size(), 2u);
  EXPECT_EQ((*read)[1].tool_calls[1].name, "g");
  EXPECT_EQ((*read)[1].tool_calls[1].arguments, "not { JSON");
}

TEST(ChatMessages, RefusalsNameThePlace) {
  const std::pair<const char*, const char*> kCases[] = {
      {"", "malformed JSON at byte"},
      {"{]", "malformed JSON at byte 2"},
      {"\"text\"", "the conversation is a string, expected an array of messages or an object"},
      {"{}", "messages is missing"},
      {"[]", "messages is empty"},
      {R"({"messages": {}})", "messages is an object, expected an array"},
      {"[1]", "messages[0] is a number, expected an object"},
      {R"([{"role": "user", "content": "x"}, {"role": "narrator", "content": "x"}])",
       "messages[1].role is 'narrator', expected one of system, developer, user"},
      {R"([{"content": "x"}])", "messages[0].role is '', expected one of"},
      {R"([{"role": 1, "content": "x"}])", "messages[0].role is a number, expected a string"},
      {R"([{"role": "user"}])", "messages[0].content is missing; only an assistant with"},
      {R"([{"role": "assistant", "content": null}])", "messages[0].content is missing"},
      {R"([{"role": "user", "content": 5}])", "messages[0].content is a number, expected"},
      {R"([{"role": "user", "content": [{"type": "image_url"}]}])",
       "messages[0].content[0].type is 'image_url'; only 'text' is supported"},
      {R"([{"role": "user", "content": [{"type": "text"}]}])",
       "messages[0].content[0].text is missing"},
      {R"([{"role": "user", "content": "x", "tool_calls": [{"function": {"name": "f"}}]}])",
       "messages[0].tool_calls belongs to the role assistant, not user"},
      {R"([{"role": "assistant", "tool_calls": [{"function": {}}]}])",
       "messages[0].tool_calls[0].function.name is missing or empty"},
      {R"([{"role": "assistant", "tool_calls": [{"id": "x"}]}])",
       "messages[0].tool_calls[0].function is no object"},
      {R"([{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": [1]}}]}])",
       "messages[0].tool_calls[0].function.arguments is an array, expected a string or an object"},
      {R"([{"role": "assistant", "content": "", "function_call": {"name": "f"}}])",
       "messages[0].function_call is not supported; use tool_calls"},
      {R"({"messages": [{"role": "user", "content": "x"}], "tools": ["f"]})",
       "tools[0] is a string, expected an object"},
      {R"({"messages": [{"role": "user", "content": "x"}], "thinking": "maybe"})",
       "thinking is 'maybe', expected auto, on or off"},
      {R"({"messages": [{"role": "user", "content": "x"}], "add_generation_prompt": 1})",
       "add_generation_prompt is a number, expected true or false"},
      {"[{\"role\": \"user\", \"content\": \"\xff\"}]", "malformed UTF-8 at byte 30"},
      {R"([{"role": "user", "content": "\ud800"}])", "malformed JSON at byte"},
      {R"({"messages": [{"role": "user", "content": "x"}], "tools": [{"n": 18446744073709551616}]})",
       "the integer 18446744073709551616 is beyond 64 bits"},
      {R"({"messages": [{"role": "user", "content": "x"}], "tools": [{"n": 9223372036854775808}]})",
       "the integer 9223372036854775808 is beyond 64 bits"},
  };
  for (const auto& [json, message] : kCases) {
    EXPECT_THAT(chat_parse_error(json), HasSubstr(message)) << json;
  }
}

TEST(ChatMessages, DeepNestingEndsInAnError) {
  const std::string brackets(1'000'000, '[');
  EXPECT_THAT(chat_parse_error(brackets), HasSubstr("nests deeper than 50"));
  std::string objects;
  for (int i = 0; i < 100'000; ++i) objects += "{\"a\":";
  EXPECT_THAT(chat_parse_error(objects), HasSubstr("nests deeper than 50"));
}

}  // namespace
}  // namespace nibble
