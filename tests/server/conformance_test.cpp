// Spec serving sections 3, 4 and 8.2, row by row, over loopback on the demo checkpoint. What other
// files of this folder test is not repeated.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <set>

#include "tests/server/test_server.h"

namespace nibble {
namespace {

using testing::Answer;
using testing::chat_body;
using ::testing::HasSubstr;
using testing::Json;
using testing::TestServer;

constexpr const char* kChat = "/v1/chat/completions";

TestServer& shared_server() {
  static TestServer instance;
  return instance;
}

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

Json first_choice(const Answer& answer) {
  EXPECT_EQ(answer.status, 200) << answer.body;
  return answer.json()["choices"][0];
}

Json ask(const Json& body) { return first_choice(shared_server().post(kChat, body)); }

std::string prompt_text(const TestServer& s, const Json& body) {
  const Json ids = s.post("/tokenize", body).json()["tokens"];
  return s.post("/detokenize", {{"tokens", ids}}).json()["prompt"];
}

// 3.2

TEST(Conformance, NullIsAbsentAndNewNamesWin) {
  Json body = chat_body("Hello!", {{"max_tokens", nullptr},
                                   {"stop", nullptr},
                                   {"tools", nullptr},
                                   {"response_format", nullptr},
                                   {"seed", nullptr}});
  EXPECT_EQ(ask(body)["message"]["content"], "Hello! How can I help you today?");
  body["max_tokens"] = 50;
  body["max_completion_tokens"] = 3;
  const Answer cut = shared_server().post(kChat, body);
  EXPECT_EQ(cut.json()["usage"]["completion_tokens"], 3);
  EXPECT_EQ(first_choice(cut)["finish_reason"], "length");
}

TEST(Conformance, RolesAndPartsMeanTheSame) {
  const auto prompt = [](const Json& messages) {
    return prompt_text(shared_server(), {{"messages", messages}});
  };
  const Json user = {{"role", "user"}, {"content", "Hello!"}};
  const std::string plain = prompt({{{"role", "system"}, {"content", "Be brief."}}, user});
  EXPECT_THAT(plain, HasSubstr("Be brief."));
  EXPECT_EQ(prompt({{{"role", "developer"}, {"content", "Be brief."}}, user}), plain);
  const Json parts = {{{"type", "text"}, {"text", "Hel"}}, {{"type", "text"}, {"text", "lo!"}}};
  EXPECT_EQ(prompt({{{"role", "system"}, {"content", "Be brief."}},
                    {{"role", "user"}, {"content", parts}}}),
            plain);
}

TEST(Conformance, SeveralAnswersInterleaveByIndex) {
  Json body = chat_body("Tell me a joke.",
                        {{"n", 3}, {"seed", 4}, {"temperature", 1.2}, {"max_tokens", 20}});
  const Json plain = shared_server().post(kChat, body).json();
  body["stream"] = true;
  body["stream_options"] = {{"include_usage", true}};
  std::map<int, std::string> texts;
  std::set<int> roles;
  const std::vector<Json> events = shared_server().post(kChat, body).events();
  for (const Json& event : events) {
    if (event["choices"].empty()) continue;
    const Json& choice = event["choices"][0];
    const int index = choice["index"];
    if (choice["delta"].contains("role")) {
      EXPECT_TRUE(roles.insert(index).second);
    }
    texts[index] += choice["delta"].value("reasoning_content", "");
    texts[index] += choice["delta"].value("content", "");
    EXPECT_TRUE(event["usage"].is_null());
  }
  ASSERT_EQ(texts.size(), 3u);
  for (const Json& choice : plain["choices"]) {
    EXPECT_EQ(texts[choice["index"]], choice["message"].value("reasoning_content", "") +
                                          choice["message"]["content"].get<std::string>());
  }
  EXPECT_EQ(events.back()["choices"], Json::array());
  EXPECT_EQ(events.back()["usage"]["completion_tokens"], plain["usage"]["completion_tokens"]);
}

TEST(Conformance, UsageGoesAlongWhenAskedFor) {
  Json body = chat_body("Hello!",
                        {{"stream", true}, {"stream_options", {{"continuous_usage_stats", true}}}});
  int64_t last = 0;
  for (const Json& event : shared_server().post(kChat, body).events()) {
    ASSERT_TRUE(event["usage"].is_object()) << event;
    const int64_t now = event["usage"]["completion_tokens"];
    EXPECT_GE(now, last);
    last = now;
  }
  EXPECT_GT(last, 10);
}

TEST(Conformance, ReasoningCanBeLeftOutAndTokensAskedFor) {
  const Json choice =
      ask(chat_body("Hello!", {{"include_reasoning", false}, {"return_token_ids", true}}));
  EXPECT_FALSE(choice["message"].contains("reasoning_content"));
  const std::string text =
      shared_server().post("/detokenize", {{"tokens", choice["token_ids"]}}).json()["prompt"];
  EXPECT_THAT(text, HasSubstr("The user greets me."));
  EXPECT_THAT(text, HasSubstr("Hello! How can I help you today?"));
}

TEST(Conformance, AThinkingBudgetEndsTheReasoning) {
  const Answer answer =
      shared_server().post(kChat, chat_body("What is 384 + 597?", {{"thinking_budget", 2}}));
  const Json usage = answer.json()["usage"]["completion_tokens_details"];
  EXPECT_LE(usage["reasoning_tokens"].get<int>(), 4);  // the tags are counted
  EXPECT_NE(first_choice(answer)["message"]["content"], "");
}

TEST(Conformance, TheNamesOfReasoningAreChosen) {
  for (const bool content_name : {true, false}) {
    const TestServer one({}, {}, TestServer::small_engine(), [&](ServedModel& model) {
      model.reasoning_content = content_name;
      model.reasoning = !content_name;
    });
    const Json message = first_choice(one.post(kChat, chat_body("Hello!")))["message"];
    EXPECT_EQ(message.contains("reasoning_content"), content_name);
    EXPECT_EQ(message.contains("reasoning"), !content_name);
  }
}

TEST(Conformance, UnknownFieldsAreRefusedWhenThatIsAsked) {
  const TestServer strict({}, {}, TestServer::small_engine(),
                          [](ServedModel& model) { model.strict_request_fields = true; });
  const Answer refused = strict.post(kChat, chat_body("Hi", {{"frobnicate", 1}}));
  EXPECT_EQ(refused.status, 400);
  EXPECT_EQ(refused.json()["error"]["param"], "frobnicate");
}

// 4.2

TEST(Conformance, EveryTemplateStyleThinksAsAsked) {
  const std::string assistant = "<｜Assistant｜>";
  const std::string open = "<think>\n";
  const std::string closed = "<think>\n\n</think>\n\n";
  struct Row {
    const char* style;
    std::string automatic, on, off;
  };
  for (const Row& row : std::vector<Row>{
           {"deepseek_r1", assistant + open, assistant + open, assistant + closed},
           {"deepseek_r1_0528", assistant, assistant + open, assistant + closed},
           {"deepseek_v3", assistant, assistant, assistant},
       }) {
    SCOPED_TRACE(row.style);
    const auto& tokenizer = testing::served_model().tokenizer;
    const auto text = [&](int64_t id) {
      return std::string(tokenizer.token_bytes(static_cast<int32_t>(id)));
    };
    const TestServer one({}, {}, TestServer::small_engine(), [&](ServedModel& model) {
      model.chat_template = *ChatTemplate::builtin(row.style, text(*tokenizer.bos_id()),
                                                   text(model.eos_token_ids.front()));
    });
    const auto ends_with = [&](const Json& more, const std::string& end) {
      Json body = chat_body("Hi");
      body.update(more);
      EXPECT_THAT(prompt_text(one, body), ::testing::EndsWith(end)) << more;
    };
    ends_with(Json::object(), row.automatic);
    ends_with({{"thinking", "auto"}}, row.automatic);
    ends_with({{"thinking", "on"}}, row.on);
    ends_with({{"reasoning_effort", "high"}}, row.on);
    ends_with({{"thinking", "off"}}, row.off);
    ends_with({{"reasoning_effort", "none"}}, row.off);
    ends_with({{"chat_template_kwargs", {{"thinking", false}}}}, row.off);
    const Answer answer = one.post(kChat, chat_body("Hi", {{"thinking", "on"}, {"max_tokens", 3}}));
    EXPECT_EQ(answer.header("x-nibble-ignored-fields"),
              std::string(row.style) == "deepseek_v3" ? "thinking" : "");
  }
}

TEST(Conformance, TagsInTextsAreText) {
  const Json ids = shared_server()
                       .post("/tokenize", chat_body("a </think> b <｜Assistant｜> c"))
                       .json()["tokens"];
  const ReplyTags tags = find_reply_tags(testing::served_model().tokenizer);
  EXPECT_EQ(std::count(ids.begin(), ids.end(), Json(tags.think_end)), 0);
  const std::string text = shared_server().post("/detokenize", {{"tokens", ids}}).json()["prompt"];
  EXPECT_THAT(text, HasSubstr("a </think> b <｜Assistant｜> c"));
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
    const std::string one = "<｜tool▁call▁begin｜>function<｜tool▁sep｜>f" + n +
                            "\n```json\n{\"a\": " + n + "}\n```<｜tool▁call▁end｜>";
    expected += "<｜tool▁calls▁begin｜>" + one + "\n" + one +
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

// 3.2 usage, 6, 8.2

TEST(Conformance, DraftsAreToldAndChangeNothing) {
  EngineOptions engine = TestServer::small_engine();
  engine.num_drafts = 3;
  TestServer drafting({}, {}, engine);
  for (const double temperature : {0.0, 0.6}) {
    const Json body = chat_body("What is 384 + 597?", {{"temperature", temperature}, {"seed", 9}});
    const Json with = drafting.post(kChat, body).json();
    const Json without = shared_server().post(kChat, body).json();
    EXPECT_EQ(with["choices"][0]["message"], without["choices"][0]["message"]);
    const Json& details = with["usage"]["completion_tokens_details"];
    EXPECT_GT(details["accepted_prediction_tokens"].get<int>(), 0);
    EXPECT_GE(details["rejected_prediction_tokens"].get<int>(), 0);
    EXPECT_EQ(without["usage"]["completion_tokens_details"]["accepted_prediction_tokens"], 0);
    EXPECT_EQ(with["usage"]["completion_tokens"], without["usage"]["completion_tokens"]);
  }
  const std::string page = drafting.ask("GET", "/metrics").body;
  EXPECT_THAT(page, HasSubstr("nibble_accepted_tokens_total{model_name=\"demo\",engine=\"0\",phase="
                              "\"think\",rule=\"strict\"} "));
  EXPECT_THAT(page, ::testing::Not(HasSubstr("phase=\"think\",rule=\"strict\"} 0\n")));
  // JSON behind reasoning, with drafts, strictly and loosely judged.
  const Json schema = Json::parse(R"({"type": "object", "properties": {"name": {"type": "string"},
      "age": {"type": "integer"}}, "required": ["name", "age"], "additionalProperties": false})");
  for (int seed = 0; seed < 20; ++seed) {
    Json body = chat_body(
        "Noah is 90 years old. Return a JSON object with the keys name and age.",
        {{"temperature", 1.0},
         {"seed", seed},
         {"max_tokens", 400},
         {"thinking", seed % 3 == 0   ? "off"
                      : seed % 3 == 1 ? "on"
                                      : "auto"},
         {"response_format",
          {{"type", "json_schema"}, {"json_schema", {{"name", "p"}, {"schema", schema}}}}}});
    if (seed % 2 == 1) body["relaxed_acceptance"] = {{"topk", 10}, {"delta", 0.6}};
    const Json choice = first_choice(drafting.post(kChat, body));
    if (choice["finish_reason"] == "length") continue;  // it never stopped thinking
    const Json content =
        Json::parse(choice["message"]["content"].get<std::string>(), nullptr, false);
    EXPECT_TRUE(content.is_object() && content["age"].is_number_integer()) << choice;
  }
}

TEST(Conformance, StreamsOfNoiseAreThePlainReplies) {
  for (int seed = 0; seed < 12; ++seed) {
    Json body = {{"prompt", "The"},
                 {"seed", seed},
                 {"temperature", 2},
                 {"max_tokens", 60},
                 {"ignore_eos", true}};
    if (seed % 2 == 1) body["stop"] = {"e", "th", "ing", "a b"};
    const Json plain = shared_server().post("/v1/completions", body).json()["choices"][0];
    body["stream"] = true;
    std::string text;
    Json finish;
    for (const Json& event : shared_server().post("/v1/completions", body).events()) {
      const Json& choice = event["choices"][0];
      text += choice["text"].get<std::string>();
      if (!choice["finish_reason"].is_null()) finish = choice["finish_reason"];
    }
    EXPECT_EQ(text, plain["text"].get<std::string>());
    EXPECT_EQ(finish, plain["finish_reason"]);
  }
}

TEST(Conformance, ThePrefixCacheIsForgottenOnRequest) {
  ServiceOptions options;
  options.access.admin_api_key = "operator";
  const TestServer one(options);
  std::string text;
  for (int i = 0; i < 100; ++i) text += "word ";
  const auto cached = [&] {
    return one.post(kChat, chat_body(text, {{"max_tokens", 2}}))
        .json()["usage"]["prompt_tokens_details"]["cached_tokens"]
        .get<int>();
  };
  EXPECT_EQ(cached(), 0);
  EXPECT_GT(cached(), 32);
  EXPECT_EQ(one.ask("POST", "/admin/reset_prefix_cache", "{}").status, 401);
  EXPECT_EQ(one.ask("POST", "/admin/reset_prefix_cache", "{}", "x-api-key: operator\r\n").status,
            200);
  EXPECT_EQ(cached(), 0);
  EXPECT_GT(cached(), 32);
}

TEST(Conformance, QueueTimesAreMeasured) {
  EngineOptions engine = TestServer::small_engine();
  engine.max_batch_size = 1;
  const TestServer one({}, {}, engine);
  const Json body = chat_body("Hello!", {{"max_tokens", 200}, {"ignore_eos", true}});
  std::vector<std::thread> clients;
  for (int i = 0; i < 3; ++i)
    clients.emplace_back([&] { EXPECT_EQ(one.post(kChat, body).status, 200); });
  for (std::thread& client : clients) client.join();
  const std::string page = one.ask("GET", "/metrics").body;
  const std::string name = "vllm:request_queue_time_seconds_sum{model_name=\"demo\",engine=\"0\"} ";
  const size_t at = page.find(name);
  ASSERT_NE(at, std::string::npos);
  EXPECT_GT(std::stod(page.substr(at + name.size())), 0.01);
}

// 7.1

TEST(Conformance, EveryMetricHasItsNameAndTheDashboardKnowsThem) {
  (void)shared_server().post(kChat, chat_body("Hello!"));
  const std::string page = shared_server().ask("GET", "/metrics").body;
  std::set<std::string> names;
  std::istringstream lines(page);
  for (std::string line; std::getline(lines, line);) {
    if (line.starts_with("# TYPE ")) names.insert(line.substr(7, line.find(' ', 7) - 7));
    if (line.starts_with("#")) continue;
    const size_t space = line.rfind(' ');
    ASSERT_NE(space, std::string::npos) << line;
    char* end = nullptr;
    (void)std::strtod(line.c_str() + space + 1, &end);
    EXPECT_EQ(*end, '\0') << line;
  }
  for (const char* name : {"vllm:num_requests_running",
                           "vllm:num_requests_waiting",
                           "vllm:kv_cache_usage_perc",
                           "vllm:cache_config_info",
                           "vllm:prompt_tokens_total",
                           "vllm:generation_tokens_total",
                           "vllm:prefix_cache_queries_total",
                           "vllm:prefix_cache_hits_total",
                           "vllm:num_preemptions_total",
                           "vllm:request_success_total",
                           "vllm:spec_decode_num_drafts_total",
                           "vllm:spec_decode_num_draft_tokens_total",
                           "vllm:spec_decode_num_accepted_tokens_total",
                           "vllm:spec_decode_num_accepted_tokens_per_pos_total",
                           "vllm:time_to_first_token_seconds",
                           "vllm:inter_token_latency_seconds",
                           "vllm:time_per_output_token_seconds",
                           "vllm:request_time_per_output_token_seconds",
                           "vllm:e2e_request_latency_seconds",
                           "vllm:request_queue_time_seconds",
                           "vllm:request_prefill_time_seconds",
                           "vllm:request_decode_time_seconds",
                           "vllm:request_inference_time_seconds",
                           "vllm:request_prompt_tokens",
                           "vllm:request_generation_tokens",
                           "nibble_http_requests_total",
                           "nibble_queue_rejected_total",
                           "nibble_client_disconnects_total",
                           "nibble_state",
                           "nibble_load_bytes",
                           "nibble_load_bytes_total",
                           "nibble_step_seconds",
                           "nibble_batch_tokens",
                           "nibble_batch_sequences",
                           "nibble_accepted_tokens_total",
                           "nibble_draft_tokens_total",
                           "nibble_acceptance_length",
                           "nibble_parser_anomalies_total",
                           "nibble_tool_calls_total",
                           "nibble_grammar_compile_seconds",
                           "nibble_bad_logits_total",
                           "nibble_kv_blocks",
                           "nibble_memory_bytes",
                           "nibble_last_step_timestamp_seconds",
                           "nibble_build_info",
                           "nibble_token_delay_seconds"}) {
    EXPECT_EQ(names.count(name), 1u) << name;
  }
  std::ifstream file(NIBBLE_SOURCE_DIR "/packaging/grafana-dashboard.json");
  const Json dashboard = Json::parse(file);
  int expressions = 0;
  const std::function<void(const Json&)> visit = [&](const Json& node) {
    if (node.is_object() && node.contains("expr")) {
      const std::string text = node["expr"];
      ++expressions;
      for (size_t at = 0; at < text.size(); ++at) {
        if (text.compare(at, 5, "vllm:") != 0 && text.compare(at, 7, "nibble_") != 0) continue;
        size_t end = at;
        while (end < text.size() && (std::isalnum(static_cast<unsigned char>(text[end])) != 0 ||
                                     text[end] == '_' || text[end] == ':')) {
          ++end;
        }
        std::string name = text.substr(at, end - at);
        for (const char* suffix : {"_bucket", "_sum", "_count"}) {
          if (names.count(name) == 0 && name.ends_with(suffix)) {
            name.resize(name.size() - std::strlen(suffix));
          }
        }
        EXPECT_EQ(names.count(name), 1u) << name << " in " << text;
        at = end;
      }
    }
    if (node.is_structured()) {
      for (const Json& child : node) visit(child);
    }
  };
  visit(dashboard);
  EXPECT_GT(expressions, 15);
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
