// Spec serving sections 3, 4 and 8.2, row by row, over loopback on the demo checkpoint: fields,
// templates, drafts. What other files of this folder test is not repeated.
#include "tests/server/conformance.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

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

}  // namespace
}  // namespace nibble
