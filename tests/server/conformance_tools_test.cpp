// Spec serving section 4.4 over HTTP, and the demo's tool and JSON questions.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "tests/server/conformance.h"

namespace nibble {
namespace {

using testing::Answer;
using testing::ask;
using testing::chat_body;
using testing::first_choice;
using ::testing::HasSubstr;
using testing::Json;
using testing::kChat;
using testing::prompt_text;
using testing::shared_server;
using testing::TestServer;

Json tool(const std::string& name, const std::string& field, bool strict = false) {
  Json function = {{"name", name},
                   {"parameters",
                    {{"type", "object"},
                     {"properties", {{field, {{"type", "string"}}}}},
                     {"required", {field}},
                     {"additionalProperties", false}}}};
  if (strict) function["strict"] = true;
  return {{"type", "function"}, {"function", function}};
}
// 4.4

TEST(Conformance, ARequiredCallComesBehindTheReasoning) {
  Json body = chat_body("What is the weather in Sofia?",
                        {{"tools", {tool("get_weather", "city"), tool("send_mail", "to")}},
                         {"tool_choice", "required"}});
  const Answer answer = shared_server().post(kChat, body);
  const Json plain = first_choice(answer);
  EXPECT_EQ(plain["message"]["reasoning_content"], "I should call get_weather with city Sofia.");
  EXPECT_TRUE(plain["message"]["content"].is_null());
  ASSERT_EQ(plain["message"]["tool_calls"].size(), 1u);
  const Json call = plain["message"]["tool_calls"][0]["function"];
  EXPECT_EQ(call, (Json{{"name", "get_weather"}, {"arguments", "{\"city\": \"Sofia\"}"}}));
  EXPECT_EQ(plain["finish_reason"], "tool_calls");
  EXPECT_GT(answer.json()["usage"]["completion_tokens_details"]["reasoning_tokens"].get<int>(), 5);

  body["stream"] = true;
  std::string reasoning;
  std::string name;
  std::string arguments;
  for (const Json& event : shared_server().post(kChat, body).events()) {
    const Json& delta = event["choices"][0]["delta"];
    reasoning += delta.value("reasoning_content", "");
    if (!delta.contains("tool_calls")) continue;
    name += delta["tool_calls"][0]["function"].value("name", "");
    arguments += delta["tool_calls"][0]["function"]["arguments"].get<std::string>();
  }
  EXPECT_EQ(reasoning, "I should call get_weather with city Sofia.");
  EXPECT_EQ(name, "get_weather");
  EXPECT_EQ(arguments, "{\"city\": \"Sofia\"}");

  // By name, and without thinking.
  body["stream"] = false;
  body["tool_choice"] = {{"type", "function"}, {"function", {{"name", "send_mail"}}}};
  EXPECT_EQ(ask(body)["message"]["tool_calls"][0]["function"]["name"], "send_mail");
  body["thinking"] = "off";
  const Json fast = ask(body);
  EXPECT_FALSE(fast["message"].contains("reasoning_content"));
  EXPECT_EQ(fast["message"]["tool_calls"][0]["function"]["name"], "send_mail");
  // Nothing to say but the call: a text that asks for none still gets one.
  body =
      chat_body("Hello!", {{"tools", {tool("get_weather", "city")}}, {"tool_choice", "required"}});
  const Json forced = ask(body);
  ASSERT_EQ(forced["message"]["tool_calls"].size(), 1u);
  EXPECT_TRUE(
      Json::parse(
          forced["message"]["tool_calls"][0]["function"]["arguments"].get<std::string>())["city"]
          .is_string());
  body["max_tokens"] = 2;
  EXPECT_EQ(ask(body)["finish_reason"], "length");
}

TEST(Conformance, AStrictToolsArgumentsAreOfItsSchema) {
  // The model would write the key "city"; the schema wants another one.
  Json body =
      chat_body("What is the weather in Sofia?", {{"tools", {tool("get_weather", "place", true)}}});
  const Json message = ask(body)["message"];
  ASSERT_TRUE(message.contains("tool_calls")) << message;
  const Json arguments =
      Json::parse(message["tool_calls"][0]["function"]["arguments"].get<std::string>());
  EXPECT_TRUE(arguments.contains("place"));
  EXPECT_EQ(arguments.size(), 1u);
  EXPECT_NE(message["reasoning_content"], "");
  // Beside one that is not strict, which is left as it was.
  body["tools"] = {tool("send_mail", "to", true), tool("get_weather", "city")};
  const Json call = ask(body)["message"]["tool_calls"][0]["function"];
  EXPECT_EQ(call, (Json{{"name", "get_weather"}, {"arguments", "{\"city\": \"Sofia\"}"}}));
  // Text without a call stays text.
  EXPECT_EQ(ask(chat_body("Hello!",
                          {{"tools", {tool("get_weather", "place", true)}}}))["message"]["content"],
            "Hello! How can I help you today?");
  Json odd = tool("f", "x", true);
  odd["function"]["parameters"]["not"] = Json::object();
  const Answer refused = shared_server().post(kChat, chat_body("Hi", {{"tools", {odd}}}));
  EXPECT_EQ(refused.status, 400);
  EXPECT_EQ(refused.json()["error"]["code"], "unsupported_schema");
  EXPECT_EQ(refused.json()["error"]["param"], "tools[0].function.parameters");
}

TEST(Conformance, ThreeRoundsOfToolsRenderCanonically) {
  Json messages = {{{"role", "user"}, {"content", "Q"}}};
  std::string expected = "<｜User｜>Q<｜Assistant｜>";
  for (int round = 0; round < 3; ++round) {
    const std::string id = "call_" + std::to_string(round);
    const std::string n = std::to_string(round);
    const auto call = [&](const std::string& suffix) {
      return Json{{"id", id + suffix},
                  {"type", "function"},
                  {"function", {{"name", "f" + n}, {"arguments", "{\"a\": " + n + "}"}}}};
    };
    messages.push_back(
        {{"role", "assistant"}, {"content", nullptr}, {"tool_calls", {call("x"), call("y")}}});
    messages.push_back({{"role", "tool"}, {"tool_call_id", id + "x"}, {"content", "one"}});
    messages.push_back({{"role", "tool"}, {"tool_call_id", id + "y"}, {"content", "two"}});
    const std::string one = fmt::format(
        "<｜tool▁call▁begin｜>function<｜tool▁sep｜>f{0}\n```json\n{{\"a\": "
        "{0}}}\n```<｜tool▁call▁end｜>",
        n);
    expected += fmt::format("<｜tool▁calls▁begin｜>{0}\n{0}", one);
    expected +=
        "<｜tool▁calls▁end｜><｜end▁of▁sentence｜><｜tool▁outputs▁begin｜>"
        "<｜tool▁output▁begin｜>one<｜tool▁output▁end｜>\n"
        "<｜tool▁output▁begin｜>two<｜tool▁output▁end｜><｜tool▁outputs▁end｜>";
  }
  for (const char* style : {"deepseek_r1", "deepseek_r1_0528", "deepseek_v3"}) {
    SCOPED_TRACE(style);
    const auto& tokenizer = testing::served_model().tokenizer;
    const TestServer one({}, {}, TestServer::small_engine(), [&](ServedModel& model) {
      model.chat_template = *ChatTemplate::builtin(
          style, tokenizer.token_bytes(*tokenizer.bos_id()),
          tokenizer.token_bytes(static_cast<int32_t>(model.eos_token_ids.front())));
    });
    const std::string text = prompt_text(one, {{"messages", messages}});
    EXPECT_EQ(text, "<｜begin▁of▁sentence｜>" + expected);
  }
}

TEST(Conformance, ACallThatComesBackIsTheTokensItWas) {
  // Drawn at a high temperature, so that the tokens are not those of the tokenizer.
  const Json tools = {tool("get_weather", "city")};
  for (int seed = 1; seed <= 5; ++seed) {
    Json body = chat_body(
        "What is the weather in Sofia?",
        {{"tools", tools}, {"return_token_ids", true}, {"temperature", 1.0}, {"seed", seed}});
    const Json reply = shared_server().post(kChat, body).json();
    const Json& choice = reply["choices"][0];
    if (!choice["message"].contains("tool_calls")) continue;
    const Json& call = choice["message"]["tool_calls"][0];
    std::vector<int32_t> ids = choice["token_ids"].get<std::vector<int32_t>>();
    const ReplyTags tags = find_reply_tags(testing::served_model().tokenizer);
    const std::vector<int32_t> sampled(std::find(ids.begin(), ids.end(), tags.call_begin),
                                       std::find(ids.begin(), ids.end(), tags.call_end) + 1);
    Json history = body["messages"];
    history.push_back(choice["message"]);
    history.push_back({{"role", "tool"}, {"tool_call_id", call["id"]}, {"content", "20 degrees"}});
    const std::vector<int32_t> prompt =
        shared_server()
            .post("/tokenize", {{"messages", history}, {"tools", tools}})
            .json()["tokens"];
    EXPECT_NE(std::search(prompt.begin(), prompt.end(), sampled.begin(), sampled.end()),
              prompt.end());
    // With other arguments it is another call.
    history[1]["tool_calls"][0]["function"]["arguments"] = R"({"city": "Oslo"})";
    const std::string text =
        prompt_text(shared_server(), {{"messages", history}, {"tools", tools}});
    EXPECT_THAT(text, HasSubstr(R"({"city": "Oslo"})"));
  }
}

// The demo's suites: at least 95 % right.

std::vector<Json> suite(const std::string& name) {
  std::ifstream file(NIBBLE_SOURCE_DIR "/tests/server/data/" + name);
  std::vector<Json> rows;
  for (std::string line; std::getline(file, line);) rows.push_back(Json::parse(line));
  return rows;
}

TEST(Conformance, TheDemosToolSuite) {
  for (const char* choice : {"auto", "required"}) {
    int right = 0;
    const std::vector<Json> rows = suite("tools.jsonl");
    for (const Json& row : rows) {
      const Json message = ask({{"messages", row["messages"]},
                                {"tools", row["tools"]},
                                {"tool_choice", choice},
                                {"temperature", 0}})["message"];
      if (!message.contains("tool_calls") || message["tool_calls"].size() != 1) continue;
      const Json& call = message["tool_calls"][0]["function"];
      right += call["name"] == row["expect"]["name"] &&
               Json::parse(call["arguments"].get<std::string>()) == row["expect"]["arguments"];
    }
    EXPECT_EQ(rows.size(), 30u);
    EXPECT_GE(right, 29) << choice;
    RecordProperty(std::string("right_") + choice, right);
  }
}

TEST(Conformance, TheDemosJsonSuite) {
  for (const char* kind : {"json_schema", "json_object"}) {
    int right = 0;
    const std::vector<Json> rows = suite("json.jsonl");
    for (const Json& row : rows) {
      Json format = {{"type", kind}};
      if (format["type"] == "json_schema") {
        format["json_schema"] = {{"name", "answer"}, {"strict", true}, {"schema", row["schema"]}};
      }
      const Json message = ask({{"messages", row["messages"]},
                                {"response_format", format},
                                {"temperature", 0}})["message"];
      right += Json::parse(message["content"].get<std::string>(), nullptr, false) == row["expect"];
    }
    EXPECT_EQ(rows.size(), 30u);
    EXPECT_GE(right, 29) << kind;
    RecordProperty(std::string("right_") + kind, right);
  }
}

}  // namespace
}  // namespace nibble
