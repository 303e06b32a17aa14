// The APIs over loopback sockets: fields, streams, errors.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <fstream>

#include "nibble/checkpoint/safetensors_source.h"
#include "tests/server/test_server.h"

namespace nibble {
namespace {

using testing::Answer;
using testing::chat_body;
using ::testing::HasSubstr;
using testing::Json;
using testing::TestServer;

TestServer& server() {
  static TestServer instance;
  return instance;
}

Json weather_tool() {
  return Json::parse(R"({"type": "function", "function": {"name": "get_weather", "parameters":
    {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"],
     "additionalProperties": false}}})");
}

TEST(Api, ChatSplitsReasoningFromContent) {
  const Json reply = server().post("/v1/chat/completions", chat_body("What is 384 + 597?")).json();
  const Json& message = reply["choices"][0]["message"];
  EXPECT_EQ(message["content"], "The answer is \\boxed{981}.");
  EXPECT_THAT(message["reasoning_content"].get<std::string>(), HasSubstr("so 384+597=981"));
  EXPECT_EQ(message["reasoning_content"], message["reasoning"]);
  EXPECT_FALSE(message.contains("tool_calls"));
  EXPECT_EQ(reply["choices"][0]["finish_reason"], "stop");
  EXPECT_EQ(reply["object"], "chat.completion");
  EXPECT_EQ(reply["model"], "demo");
  const Json& usage = reply["usage"];
  EXPECT_EQ(usage["total_tokens"].get<int>(),
            usage["prompt_tokens"].get<int>() + usage["completion_tokens"].get<int>());
  EXPECT_GT(usage["completion_tokens_details"]["reasoning_tokens"].get<int>(), 10);
}

// The library's values move without throwing, which clang-tidy can't see through their checks.
struct Streamed {  // NOLINT(bugprone-exception-escape)
  std::string reasoning;
  std::string content;
  std::string finish;
  std::vector<Json> calls;
  bool ordered = true;
  Json usage;
};

Streamed collect(const Answer& answer) {
  Streamed out;
  int stage = 0;  // role, reasoning, content, tools, finish
  const auto reach = [&](int next) {
    if (next < stage) out.ordered = false;
    stage = std::max(stage, next);
  };
  for (const Json& event : answer.events()) {
    if (event.contains("usage") && !event["usage"].is_null()) out.usage = event["usage"];
    if (event["choices"].empty()) continue;
    const Json& choice = event["choices"][0];
    const Json& delta = choice["delta"];
    const int channels = static_cast<int>(delta.contains("reasoning_content")) +
                         static_cast<int>(delta.contains("tool_calls")) +
                         static_cast<int>(delta.contains("content"));
    EXPECT_LE(channels, 1) << event;
    if (delta.contains("role")) continue;
    if (delta.contains("reasoning_content")) {
      reach(1);
      out.reasoning += delta["reasoning_content"].get<std::string>();
    }
    if (delta.contains("content")) {
      reach(2);
      out.content += delta["content"].get<std::string>();
    }
    if (delta.contains("tool_calls")) {
      reach(3);
      const Json& call = delta["tool_calls"][0];
      if (call.contains("id")) {
        out.calls.push_back(call["function"]);
      } else {
        out.calls.back()["arguments"] = out.calls.back()["arguments"].get<std::string>() +
                                        call["function"]["arguments"].get<std::string>();
      }
    }
    if (!choice["finish_reason"].is_null()) {
      reach(4);
      EXPECT_TRUE(delta.empty());
      out.finish = choice["finish_reason"];
    }
  }
  EXPECT_TRUE(answer.body.ends_with("data: [DONE]\n\n"));
  return out;
}

TEST(Api, AStreamsDeltasAreThePlainReply) {
  for (Json body : {chat_body("What is 384 + 597?"), chat_body("Hello!", {{"stop", {"help"}}}),
                    chat_body("Tell me a joke.", {{"max_tokens", 9}}),
                    chat_body("What is the weather in Sofia?", {{"tools", {weather_tool()}}})}) {
    SCOPED_TRACE(body.dump());
    const Json plain = server().post("/v1/chat/completions", body).json()["choices"][0];
    body["stream"] = true;
    body["stream_options"] = {{"include_usage", true}};
    const Answer answer = server().post("/v1/chat/completions", body);
    EXPECT_EQ(answer.header("Content-Type"), "text/event-stream");
    const Streamed streamed = collect(answer);
    EXPECT_TRUE(streamed.ordered);
    EXPECT_EQ(streamed.reasoning, plain["message"].value("reasoning_content", ""));
    const Json& content = plain["message"]["content"];
    EXPECT_EQ(streamed.content, content.is_null() ? "" : content.get<std::string>());
    EXPECT_EQ(streamed.finish, plain["finish_reason"].get<std::string>());
    EXPECT_FALSE(streamed.usage.is_null());
    if (!plain["message"].contains("tool_calls")) continue;
    ASSERT_EQ(streamed.calls.size(), plain["message"]["tool_calls"].size());
    EXPECT_EQ(streamed.calls[0], plain["message"]["tool_calls"][0]["function"]);
  }
}

TEST(Api, ToolsAreCalled) {
  Json body = chat_body("What is the weather in Sofia?", {{"tools", {weather_tool()}}});
  for (const char* choice : {"auto", "required"}) {
    SCOPED_TRACE(choice);
    body["tool_choice"] = choice;
    const Json reply = server().post("/v1/chat/completions", body).json()["choices"][0];
    EXPECT_EQ(reply["finish_reason"], "tool_calls");
    EXPECT_TRUE(reply["message"]["content"].is_null());
    const Json& call = reply["message"]["tool_calls"][0];
    EXPECT_TRUE(call["id"].get<std::string>().starts_with("call_"));
    EXPECT_EQ(call["function"]["name"], "get_weather");
    EXPECT_EQ(Json::parse(call["function"]["arguments"].get<std::string>()),
              (Json{{"city", "Sofia"}}));
  }
  body["tool_choice"] = "none";
  const Json reply = server().post("/v1/chat/completions", body).json()["choices"][0];
  EXPECT_FALSE(reply["message"].contains("tool_calls"));
  // Of several functions one is chosen.
  Json other = weather_tool();
  other["function"]["name"] = "send_mail";
  body["tools"] = {other, weather_tool()};
  body["tool_choice"] = "required";
  const Json chosen = server().post("/v1/chat/completions", body).json()["choices"][0];
  ASSERT_TRUE(chosen["message"].contains("tool_calls")) << chosen;
  const std::string name = chosen["message"]["tool_calls"][0]["function"]["name"];
  EXPECT_TRUE(name == "get_weather" || name == "send_mail");
}

TEST(Api, StructuredOutputIsOfItsSchema) {
  const Json schema = Json::parse(
      R"({"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer"},
          "city": {"type": "string"}}, "required": ["name", "age", "city"],
          "additionalProperties": false})");
  const Json format = {{"type", "json_schema"},
                       {"json_schema", {{"name", "x"}, {"schema", schema}}}};
  for (const char* effort : {"none", "low"}) {
    Json body = chat_body(
        "Noah is 90 years old and lives in Bucharest. Return a JSON object with "
        "the keys name, age and city.",
        {{"response_format", format}, {"reasoning_effort", effort}});
    const Json reply = server().post("/v1/chat/completions", body).json()["choices"][0];
    const Json content = Json::parse(reply["message"]["content"].get<std::string>());
    EXPECT_EQ(content["age"], 90);
    EXPECT_EQ(content.size(), 3u);
  }
  const Json bad = {{"type", "json_schema"},
                    {"json_schema", {{"name", "x"}, {"schema", {{"not", Json::object()}}}}}};
  const Answer refused =
      server().post("/v1/chat/completions", chat_body("x", {{"response_format", bad}}));
  EXPECT_EQ(refused.status, 400);
  EXPECT_EQ(refused.json()["error"]["code"], "unsupported_schema") << refused.body;
}

TEST(Api, AGrammarIsFollowedBehindTheReasoning) {
  const std::string grammar = "root ::= \"Sum: \" digit+ \".\"  # and no more\ndigit ::= [0-9]\n";
  const auto follows = [](const std::string& text) {
    return text.starts_with("Sum: ") && text.size() > 6 && text.back() == '.' &&
           text.find_first_not_of("0123456789", 5) == text.size() - 1;
  };
  for (const Json& extra : std::vector<Json>{
           {{"guided_grammar", grammar}},
           {{"structured_outputs", {{"grammar", grammar}}}, {"reasoning_effort", "none"}},
           {{"response_format", {{"type", "grammar"}, {"grammar", grammar}}}}}) {
    const Json reply =
        server().post("/v1/chat/completions", chat_body("What is 3 + 4?", extra)).json();
    const Json& message = reply["choices"][0]["message"];
    EXPECT_TRUE(follows(message["content"].get<std::string>())) << reply;
    EXPECT_EQ(message.contains("reasoning_content"), !extra.contains("reasoning_effort"));
  }
}

TEST(Api, LogprobsDescribeExactlyTheContent) {
  Json body = chat_body("Hello!", {{"logprobs", true}, {"top_logprobs", 3}});
  const Json reply = server().post("/v1/chat/completions", body).json()["choices"][0];
  std::string content;
  for (const Json& token : reply["logprobs"]["content"]) {
    content += token["token"].get<std::string>();
    EXPECT_GE(token["top_logprobs"].size(), 3u);
    EXPECT_EQ(token["top_logprobs"][0]["token"], token["token"]);  // greedy
    EXPECT_LE(token["logprob"].get<double>(), 0);
  }
  EXPECT_EQ(content, reply["message"]["content"].get<std::string>());
  body["stream"] = true;
  std::string streamed;
  for (const Json& event : server().post("/v1/chat/completions", body).events()) {
    const Json& choice = event["choices"][0];
    std::string of_chunk;
    if (!choice["logprobs"].is_null()) {
      for (const Json& token : choice["logprobs"]["content"]) {
        of_chunk += token["token"].get<std::string>();
      }
    }
    if (!choice["delta"].contains("role")) {
      EXPECT_EQ(of_chunk, choice["delta"].value("content", ""));
    }
    streamed += of_chunk;
  }
  EXPECT_EQ(streamed, content);
}

TEST(Api, CompletionsEchoScoreAndCount) {
  Json body = {{"prompt", "The capital of France is"},
               {"temperature", 0},
               {"max_tokens", 1},
               {"echo", true},
               {"logprobs", 1}};
  Json choice = server().post("/v1/completions", body).json()["choices"][0];
  EXPECT_EQ(choice["text"], "The capital of France is Paris");
  const Json& logprobs = choice["logprobs"];
  EXPECT_EQ(logprobs["tokens"].size(), 7u);  // BOS, five words, one more
  EXPECT_TRUE(logprobs["token_logprobs"][0].is_null());
  EXPECT_GT(logprobs["token_logprobs"][6].get<double>(), -0.1);
  EXPECT_EQ(logprobs["text_offset"][6], 24);
  body["max_tokens"] = 0;
  choice = server().post("/v1/completions", body).json()["choices"][0];
  EXPECT_EQ(choice["logprobs"]["tokens"].size(), 6u);
  EXPECT_EQ(choice["finish_reason"], "length");

  const Json ids = server().post("/tokenize", {{"prompt", "The capital of France is"}}).json();
  Json several = {
      {"prompt", {ids["tokens"], ids["tokens"]}}, {"n", 2}, {"temperature", 0}, {"max_tokens", 3}};
  const Json reply = server().post("/v1/completions", several).json();
  ASSERT_EQ(reply["choices"].size(), 4u);
  for (int i = 0; i < 4; ++i) {
    EXPECT_EQ(reply["choices"][i]["index"], i);
    EXPECT_EQ(reply["choices"][i]["text"], " Paris.");
  }
  EXPECT_EQ(reply["usage"]["completion_tokens"], 12);
  Json best = {
      {"prompt", "The capital of"}, {"best_of", 4}, {"n", 2}, {"seed", 5}, {"max_tokens", 4}};
  EXPECT_EQ(server().post("/v1/completions", best).json()["choices"].size(), 2u);
}

// Token by token, the values and which token is the likeliest: what lm-eval's local-completions
// reads. transformers computed in FP32, the server keeps activations and cache in BF16.
TEST(Api, CompletionsScoreAsTransformersDoes) {
  constexpr double kTolerance = 0.1;
  const auto oracle = SafetensorsSource::open(testing::golden("demo/reference.safetensors"));
  ASSERT_TRUE(oracle.has_value());
  const Json prompts = Json::parse(std::ifstream(testing::golden("demo/reference.json")));
  for (size_t p = 0; p < 7; ++p) {
    SCOPED_TRACE(prompts[p]["text"]);
    const std::vector<int32_t> ids = prompts[p]["ids"];
    const auto tensor = (*oracle)->read("prompt" + std::to_string(p) + ".logits");
    ASSERT_TRUE(tensor.has_value());
    const auto vocab_size = static_cast<size_t>(tensor->shape[1]);
    const float* logits = tensor->data<float>();
    const Json logprobs = server()
                              .post("/v1/completions", {{"prompt", ids},
                                                        {"temperature", 0},
                                                        {"max_tokens", 1},
                                                        {"echo", true},
                                                        {"logprobs", 1}})
                              .json()["choices"][0]["logprobs"];
    ASSERT_EQ(logprobs["token_logprobs"].size(), ids.size() + 1);
    for (size_t i = 1; i < ids.size(); ++i) {
      const std::vector<double> row(logits + (i - 1) * vocab_size, logits + i * vocab_size);
      double sum = 0;
      for (const double logit : row) sum += std::exp(logit);
      const double told = logprobs["token_logprobs"][i];
      const auto id = static_cast<size_t>(ids[i]);
      EXPECT_NEAR(told, row[id] - std::log(sum), kTolerance) << i;
      // "Is greedy": the chosen token's value is the highest one that is told.
      std::vector<double> sorted = row;
      std::nth_element(sorted.begin(), sorted.begin() + 1, sorted.end(), std::greater<>());
      const double best = std::max(sorted[0], sorted[1]);
      if (best - std::min(sorted[0], sorted[1]) < kTolerance) continue;
      double highest = -1e9;
      for (const auto& entry : logprobs["top_logprobs"][i].items()) {
        highest = std::max(highest, entry.value().get<double>());
      }
      EXPECT_EQ(told == highest, row[id] == best) << i;
    }
  }
}

TEST(Api, ASeedDecides) {
  const Json body = {{"prompt", "The"}, {"seed", 7}, {"temperature", 1.5}, {"max_tokens", 12}};
  const Json one = server().post("/v1/completions", body).json()["choices"][0]["text"];
  EXPECT_EQ(one, server().post("/v1/completions", body).json()["choices"][0]["text"]);
}

TEST(Api, StopsAreTold) {
  Json choice = server()
                    .post("/v1/chat/completions", chat_body("Hello!", {{"stop", "help"}}))
                    .json()["choices"][0];
  EXPECT_EQ(choice["message"]["content"], "Hello! How can I ");
  EXPECT_EQ(choice["stop_reason"], "help");
  EXPECT_EQ(choice["finish_reason"], "stop");
  const Json ids = server()
                       .post("/tokenize", {{"prompt", " can"}, {"add_special_tokens", false}})
                       .json()["tokens"];
  ASSERT_EQ(ids.size(), 1u);
  choice = server()
               .post("/v1/chat/completions", chat_body("Hello!", {{"stop_token_ids", ids}}))
               .json()["choices"][0];
  EXPECT_EQ(choice["message"]["content"], "Hello! How");
  EXPECT_EQ(choice["stop_reason"], ids[0]);
}

TEST(Api, AnAssistantsTextIsContinued) {
  Json body = chat_body("Hello!", {{"continue_final_message", true}});
  body["messages"].push_back({{"role", "assistant"}, {"content", "Hello! How"}});
  const Json reply = server().post("/v1/chat/completions", body).json()["choices"][0];
  EXPECT_EQ(reply["message"]["content"], " can I help you today?");
}

TEST(Api, MessagesOfAnthropicsForm) {
  Json body = {{"max_tokens", 60},
               {"temperature", 0},
               {"messages", {{{"role", "user"}, {"content", "Hello!"}}}}};
  const Json reply = server().post("/v1/messages", body).json();
  EXPECT_EQ(reply["content"][0]["type"], "thinking");
  EXPECT_EQ(reply["content"][1]["text"], "Hello! How can I help you today?");
  EXPECT_EQ(reply["stop_reason"], "end_turn");
  body["stream"] = true;
  std::vector<std::string> types;
  std::string text;
  for (const Json& event : server().post("/v1/messages", body).events()) {
    const std::string type = event["type"];
    if (types.empty() || types.back() != type) types.push_back(type);
    if (type == "content_block_delta") text += event["delta"].value("text", "");
  }
  EXPECT_EQ(text, "Hello! How can I help you today?");
  EXPECT_EQ(types, (std::vector<std::string>{
                       "message_start", "content_block_start", "content_block_delta",
                       "content_block_stop", "content_block_start", "content_block_delta",
                       "content_block_stop", "message_delta", "message_stop"}));
  body["stream"] = false;
  body["messages"][0]["content"] = "What is the weather in Sofia?";
  body["tools"] = {
      {{"name", "get_weather"}, {"input_schema", weather_tool()["function"]["parameters"]}}};
  const Json called = server().post("/v1/messages", body).json();
  EXPECT_EQ(called["stop_reason"], "tool_use");
  EXPECT_EQ(called["content"].back()["input"], (Json{{"city", "Sofia"}}));
  const Json count =
      server()
          .post("/v1/messages/count_tokens", {{"messages", body["messages"]}, {"model", "demo"}})
          .json();
  EXPECT_GT(count["input_tokens"].get<int>(), 5);
  const Answer bad = server().post("/v1/messages", {{"messages", body["messages"]}});
  EXPECT_EQ(bad.status, 400);
  EXPECT_EQ(bad.json()["error"]["type"], "invalid_request_error");
  EXPECT_EQ(bad.json()["type"], "error");
}

TEST(Api, ResponsesOfTheNewForm) {
  Json body = {{"input", "Hello!"}, {"temperature", 0}, {"instructions", nullptr}};
  const Json reply = server().post("/v1/responses", body).json();
  EXPECT_EQ(reply["status"], "completed");
  EXPECT_EQ(reply["output"][0]["type"], "reasoning");
  EXPECT_EQ(reply["output"][1]["content"][0]["text"], "Hello! How can I help you today?");
  body["stream"] = true;
  int sequence = 0;
  std::string text;
  Json last;
  for (const Json& event : server().post("/v1/responses", body).events()) {
    EXPECT_EQ(event["sequence_number"], sequence++);
    if (event["type"] == "response.output_text.delta") text += event["delta"].get<std::string>();
    last = event;
  }
  EXPECT_EQ(text, "Hello! How can I help you today?");
  EXPECT_EQ(last["type"], "response.completed");
  EXPECT_EQ(last["response"]["output"][1]["content"][0]["text"], text);
  body["stream"] = false;
  body["max_output_tokens"] = 3;
  const Json cut = server().post("/v1/responses", body).json();
  EXPECT_EQ(cut["status"], "incomplete");
  EXPECT_EQ(cut["incomplete_details"]["reason"], "max_output_tokens");
  EXPECT_EQ(server().post("/v1/responses", {{"input", "x"}, {"background", true}}).status, 400);
}

struct Refusal {
  const char* method;
  const char* path;
  std::string body;
  int status;
  const char* code;  // "" : not looked at
  const char* param = "";
};

TEST(Api, EveryRefusalHasItsStatusAndCode) {
  const std::string chat = "/v1/chat/completions";
  const auto with = [](const std::string& fields) {
    return R"({"messages": [{"role": "user", "content": "Hi"}], )" + fields + "}";
  };
  std::string deep = "{\"a\":";
  for (int i = 0; i < 200; ++i) deep += "[";
  for (const Refusal& r : std::vector<Refusal>{
           {"GET", "/nowhere", "", 404, "unknown_route"},
           {"GET", "/v1/chat/completions", "", 405, ""},
           {"POST", "/v1/models", "{}", 405, ""},
           {"GET", "/v1/models/nope", "", 404, "model_not_found", "model"},
           {"GET", "/v1/responses/resp_1", "", 404, ""},
           {"POST", chat.c_str(), "{\"a\": 1", 400, "invalid_json"},
           {"POST", chat.c_str(), "[1]", 400, "invalid_json"},
           {"POST", chat.c_str(), "{\"a\": NaN}", 400, "invalid_json"},
           {"POST", chat.c_str(), "{\"a\": 1, \"a\": 2}", 400, "invalid_json"},
           {"POST", chat.c_str(), "{\"a\": \"\xff\"}", 400, "invalid_json"},
           {"POST", chat.c_str(), "{\"a\": \"\\ud800\"}", 400, "invalid_json"},
           {"POST", chat.c_str(), deep, 400, "invalid_json"},
           {"POST", chat.c_str(), "{\"x\": 1}", 400, "missing_field", "messages"},
           {"POST", chat.c_str(), "{\"messages\": []}", 400, "", "messages"},
           {"POST", chat.c_str(), with("\"model\": \"nope\""), 404, "model_not_found", "model"},
           {"POST", chat.c_str(), with("\"temperature\": 2.5"), 400, "out_of_range", "temperature"},
           {"POST", chat.c_str(), with("\"temperature\": \"hot\""), 400, "invalid_type",
            "temperature"},
           {"POST", chat.c_str(), with("\"top_p\": 0"), 400, "out_of_range", "top_p"},
           {"POST", chat.c_str(), with("\"n\": 129"), 400, "out_of_range", "n"},
           {"POST", chat.c_str(), with("\"max_tokens\": 0"), 400, "out_of_range", "max_tokens"},
           {"POST", chat.c_str(), with("\"stream_options\": {}"), 400, "", "stream_options"},
           {"POST", chat.c_str(), with("\"top_logprobs\": 3"), 400, "", "top_logprobs"},
           {"POST", chat.c_str(), with("\"logprobs\": true, \"top_logprobs\": 21"), 400,
            "out_of_range", "top_logprobs"},
           {"POST", chat.c_str(), with("\"tool_choice\": \"required\""), 400, "", "tool_choice"},
           {"POST", chat.c_str(), with("\"tools\": [{\"type\": \"retrieval\"}]"), 400, "",
            "tools[0]"},
           {"POST", chat.c_str(), with("\"response_format\": {\"type\": \"xml\"}"), 400, "",
            "response_format.type"},
           {"POST", chat.c_str(), with("\"reasoning_effort\": \"much\""), 400, "out_of_range",
            "reasoning_effort"},
           {"POST", chat.c_str(), with("\"logit_bias\": {\"x\": 1}"), 400, "", "logit_bias"},
           {"POST", chat.c_str(), with("\"logit_bias\": {\"9999\": 1}"), 400, ""},
           {"POST", chat.c_str(),
            R"({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]})", 400,
            "not_supported", "messages"},
           {"POST", chat.c_str(), R"({"messages": [{"role": "king", "content": "x"}]})", 400,
            "invalid_value", "messages"},
           {"POST", chat.c_str(), R"({"messages": [{"role": "tool", "content": "x"}]})", 400,
            "missing_field", "messages"},
           {"POST", chat.c_str(),
            with(
                R"("stop": ["a","b","c","d","e","f","g","h","i","j","k","l","m","n","o","p","q"])"),
            400, "out_of_range", "stop"},
           {"POST", chat.c_str(), with(R"("guided_grammar": "root ::= a")"), 400, ""},
           {"POST", chat.c_str(),
            with(R"("response_format": {"type": "grammar", "grammar": "root := \"a\""})"), 400, ""},
           {"POST", chat.c_str(), with(R"("guided_grammar": "root ::= <think>")"), 501,
            "not_supported"},
           {"POST", "/v1/completions", "{}", 400, "missing_field", "prompt"},
           {"POST", "/v1/completions", R"({"prompt": []})", 400, "", "prompt"},
           {"POST", "/v1/completions", R"({"prompt": [1, "a"]})", 400, "", "prompt"},
           {"POST", "/v1/completions", R"({"prompt": [999999]})", 400, "out_of_range", "prompt"},
           {"POST", "/v1/completions", R"({"prompt": "x", "suffix": "y"})", 400, "", "suffix"},
           {"POST", "/v1/completions", R"({"prompt": "x", "best_of": 2, "stream": true})", 400, "",
            "best_of"},
           {"POST", "/v1/messages", R"({"messages": 5, "max_tokens": 3})", 400, ""},
           {"POST", "/v1/messages",
            R"({"messages": [{"role": 5, "content": "x"}], "max_tokens": 3})", 400, ""},
           {"POST", "/v1/responses", R"({"previous_response_id": "x", "input": "y"})", 400, "",
            "previous_response_id"},
           {"POST", "/tokenize", "{}", 400, "missing_field"},
           {"POST", "/detokenize", R"({"tokens": [-1]})", 400, "out_of_range"},
           {"POST", "/admin/abort", "{}", 404, ""},
       }) {
    SCOPED_TRACE(std::string(r.method) + " " + r.path + " " + r.body.substr(0, 100));
    const Answer answer = server().ask(r.method, r.path, r.body);
    EXPECT_EQ(answer.status, r.status) << answer.body;
    EXPECT_TRUE(answer.header("x-request-id").starts_with("req-"));
    const Json error = answer.json()["error"];
    ASSERT_TRUE(error.is_object()) << answer.body;
    EXPECT_TRUE(error["message"].is_string());
    if (*r.code != '\0') {
      EXPECT_EQ(error["code"], r.code) << answer.body;
    }
    if (*r.param != '\0') {
      EXPECT_EQ(error["param"], r.param) << answer.body;
    }
  }
}

TEST(Api, APromptBeyondTheContextSaysHowLongItIs) {
  std::string text;
  for (int i = 0; i < 6000; ++i) text += " word";
  const Answer answer = server().post("/v1/chat/completions", chat_body(text));
  EXPECT_EQ(answer.status, 400);
  const Json error = answer.json()["error"];
  EXPECT_EQ(error["code"], "context_length_exceeded");
  EXPECT_GT(error["n_prompt_tokens"].get<int>(), error["max_model_len"].get<int>());
}

TEST(Api, UnknownFieldsAreNamed) {
  const Answer answer = server().post("/v1/chat/completions",
                                      chat_body("Hello!", {{"max_tokens", 2}, {"frobnicate", 1}}));
  EXPECT_EQ(answer.status, 200);
  EXPECT_EQ(answer.header("x-nibble-ignored-fields"), "frobnicate");
}

TEST(Api, TokenizeAndBack) {
  const Json json =
      server().post("/tokenize", {{"prompt", "Hello world"}, {"return_token_strs", true}}).json();
  EXPECT_EQ(json["count"].get<size_t>(), json["tokens"].size());
  EXPECT_EQ(json["tokens"].size(), json["token_strs"].size());
  EXPECT_GT(json["max_model_len"].get<int>(), 1000);
  const Json text =
      server()
          .post("/detokenize", {{"tokens", json["tokens"]}, {"skip_special_tokens", true}})
          .json();
  EXPECT_EQ(text["prompt"], "Hello world");
}

TEST(Api, MetricsHaveTheKnownNames) {
  (void)server().post("/v1/chat/completions", chat_body("Hello!"));
  const Answer answer = server().ask("GET", "/metrics");
  for (const char* name :
       {"vllm:num_requests_running{model_name=\"demo\",engine=\"0\"} ",
        "vllm:time_to_first_token_seconds_bucket{model_name=\"demo\",engine=\"0\",le=\"+Inf\"} ",
        "vllm:request_success_total{model_name=\"demo\",engine=\"0\",finished_reason=\"stop\"} ",
        "nibble_http_requests_total{", "# TYPE vllm:e2e_request_latency_seconds histogram"}) {
    EXPECT_THAT(answer.body, HasSubstr(name));
  }
}

// Every route of the document answers, and in the way that it says; every field of a request that
// is described is one that the server knows.
TEST(Api, TheOpenApiDocumentIsTrue) {
  const Json document = server().ask("GET", "/openapi.json").json();
  ASSERT_TRUE(document.contains("paths"));
  for (const char* path : {"/v1/chat/completions", "/v1/completions", "/v1/messages",
                           "/v1/messages/count_tokens", "/v1/responses", "/v1/models", "/tokenize",
                           "/detokenize", "/health", "/ready", "/live", "/version", "/metrics"}) {
    EXPECT_TRUE(document["paths"].contains(path)) << path;
  }
  for (const auto& [path, methods] : document["paths"].items()) {
    for (const auto& [method, operation] : methods.items()) {
      SCOPED_TRACE(std::string(method).append(" ").append(path));
      std::string concrete = path;
      const size_t brace = concrete.find("{model}");
      if (brace != std::string::npos) concrete.replace(brace, 7, "demo");
      if (method == "get") {
        EXPECT_EQ(server().ask("GET", concrete).status, 200);
        continue;
      }
      const Json& content = operation["requestBody"]["content"]["application/json"];
      ASSERT_TRUE(content.contains("example"));
      const Answer answer = server().post(concrete, content["example"]);
      EXPECT_EQ(answer.status, 200) << answer.body;
      EXPECT_EQ(answer.header("x-nibble-ignored-fields"), "");
      const std::string name = content["schema"]["$ref"].get<std::string>().substr(21);
      const Json& properties = document["components"]["schemas"][name]["properties"];
      Json all = content["example"];
      for (const auto& [field, schema] : properties.items()) {
        if (!all.contains(field)) all[field] = nullptr;
      }
      const Answer full = server().post(concrete, all);
      EXPECT_EQ(full.status, 200) << full.body;
      EXPECT_EQ(full.header("x-nibble-ignored-fields"), "");
    }
  }
}

}  // namespace
}  // namespace nibble
