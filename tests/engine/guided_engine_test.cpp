// Requests with a grammar or a thinking budget, and drafts that are drawn, through the engine.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "nibble/engine/engine.h"
#include "tests/model/demo.h"

namespace nibble {
namespace {

LoadedModel& guided_model() {
  static const std::unique_ptr<LoadedModel> model =
      testing::load_model(testing::demo_checkpoint(), "cpu");
  return *model;
}

struct Answer {
  std::vector<int32_t> token_ids;
  std::string text;
  FinishReason finish_reason = FinishReason::kStop;
  std::optional<Error> error;
};

std::vector<Answer> answers(const EngineOptions& options, const std::vector<Request>& requests,
                            EngineStats* stats = nullptr) {
  auto engine = Engine::create(guided_model(), options).value();
  std::map<uint64_t, size_t> index;
  for (const Request& request : requests) index[engine->add(request).value()] = index.size();
  std::vector<Answer> result(requests.size());
  while (engine->has_work()) {
    for (const RequestUpdate& update : engine->step()) {
      Answer& answer = result[index.at(update.id)];
      answer.token_ids.insert(answer.token_ids.end(), update.token_ids.begin(),
                              update.token_ids.end());
      answer.text += update.text;
      answer.finish_reason = update.finish_reason;
      answer.error = update.error;
    }
  }
  if (stats != nullptr) *stats = engine->stats();
  return result;
}

EngineOptions with_drafts(int64_t num_drafts) {
  EngineOptions options;
  options.num_drafts = num_drafts;
  return options;
}

// A chat turn that goes on behind `behind`, parsed with its added tokens.
Request chat_request(const std::string& question, const std::string& behind) {
  EncodeOptions encode;
  encode.add_bos = true;
  Request request;
  request.prompt_token_ids =
      guided_model()
          .tokenizer.encode("<｜User｜>" + question + "<｜Assistant｜>" + behind, encode)
          .value();
  request.params.temperature = 0;
  request.params.max_tokens = 200;
  return request;
}

const char* const kPersonSchema = R"({"type": "object", "properties": {
  "name": {"type": "string", "maxLength": 20}, "age": {"type": "integer"},
  "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3}},
  "required": ["name", "age", "tags"], "additionalProperties": false})";

std::vector<Request> schema_requests(const std::string& behind) {
  std::vector<Request> requests;
  for (int i = 0; i < 12; ++i) {
    requests.push_back(chat_request(
        "Noah is " + std::to_string(20 + i) + " years old. What is 4+" + std::to_string(i) + "?",
        behind));
    SamplingParams& params = requests.back().params;
    params.guided = Guided{Guided::Kind::kJsonSchema, kPersonSchema, {}, true};
    params.temperature = i % 2 == 0 ? 0 : 1;
    params.seed = i;
  }
  return requests;
}

TEST(GuidedEngine, EveryReplyIsOfTheSchemaAndDraftsDontChangeIt) {
  const auto requests = schema_requests("");
  // Not behind a closed <think>, so a reply may think first; what follows is the document.
  const auto plain = answers({}, requests);
  for (const Answer& answer : plain) {
    ASSERT_FALSE(answer.error.has_value()) << answer.error->message;
    if (answer.finish_reason == FinishReason::kLength) continue;  // a valid prefix
    const size_t behind = answer.text.rfind("</think>");
    const auto document = nlohmann::json::parse(
        behind == std::string::npos ? answer.text : answer.text.substr(behind + 8));
    EXPECT_TRUE(document.at("age").is_number_integer());
    EXPECT_LE(document.at("tags").size(), 3u);
    EXPECT_EQ(document.size(), 3u);
  }
  for (const int64_t num_drafts : {1, 3, 6}) {
    const auto drafted = answers(with_drafts(num_drafts), requests);
    for (size_t i = 0; i < plain.size(); ++i) {
      EXPECT_EQ(drafted[i].token_ids, plain[i].token_ids) << "request " << i;
    }
  }
}

TEST(GuidedEngine, BehindAClosedThinkingTheDocumentBeginsAtOnce) {
  EngineStats stats;
  for (const Answer& answer :
       answers(with_drafts(3), schema_requests("<think>\n\n</think>\n\n"), &stats)) {
    ASSERT_EQ(answer.finish_reason, FinishReason::kStop) << answer.text;
    EXPECT_EQ(nlohmann::json::parse(answer.text).size(), 3u);
  }
  EXPECT_GT(stats.acceptance_length(), 1);
}

TEST(GuidedEngine, RelaxedAndDrawnDraftsNeverLeaveTheGrammar) {
  for (const bool relaxed : {false, true}) {
    EngineOptions options = with_drafts(3);
    options.draft.draft_sampling = !relaxed;
    if (relaxed) options.relaxed_thinking = {true, 4096, 1.0};
    int documents = 0;
    for (const Answer& answer : answers(options, schema_requests("<think>\n"))) {
      ASSERT_FALSE(answer.error.has_value());
      const size_t behind = answer.text.rfind("</think>");
      // Thinking is free, to its end or to an EOS; a document may be cut by max_tokens.
      if (answer.finish_reason == FinishReason::kLength || behind == std::string::npos) continue;
      EXPECT_EQ(nlohmann::json::parse(answer.text.substr(behind + 8)).size(), 3u);
      ++documents;
    }
    EXPECT_GE(documents, 4);
  }
}

TEST(GuidedEngine, AChoiceIsOneOfTheTexts) {
  Request request = chat_request("Yes or no?", "<think>\n\n</think>\n\n");
  request.params.guided = Guided{Guided::Kind::kChoice, "", {"certainly", "never"}, true};
  for (const int64_t num_drafts : {0, 2}) {
    const Answer answer = answers(with_drafts(num_drafts), {request}).front();
    EXPECT_TRUE(answer.text == "certainly" || answer.text == "never") << answer.text;
    EXPECT_EQ(answer.finish_reason, FinishReason::kStop);
  }
}

TEST(GuidedEngine, AGrammarThatCannotBeSatisfiedIsRefusedBeforeTheModelRuns) {
  auto engine = Engine::create(guided_model(), {}).value();
  Request request = chat_request("Hi", "");
  request.params.guided =
      Guided{Guided::Kind::kJsonSchema, R"({"type":"string","enum":[1]})", {}, true};
  const auto id = engine->add(request);
  ASSERT_FALSE(id.has_value());
  EXPECT_THAT(id.error().message, ::testing::HasSubstr("guided"));
  request.params.guided = Guided{Guided::Kind::kRegex, "a(", {}, true};
  EXPECT_FALSE(engine->add(request).has_value());
  EXPECT_FALSE(engine->has_work());
}

// Rows 17 of the parser's table: after the budget the tag comes, whatever the model wanted.
TEST(GuidedEngine, TheThinkingBudgetForcesTheTagAndCountsReasoningTokensOnly) {
  const auto end = *guided_model().tokenizer.token_id("</think>");
  for (const int64_t budget : {0, 1, 7}) {
    for (const int64_t num_drafts : {0, 3}) {
      Request request = chat_request("What is 48+79?", "<think>\n");
      request.params.thinking_budget = budget;
      request.params.max_tokens = 40;
      const Answer answer = answers(with_drafts(num_drafts), {request}).front();
      ASSERT_GT(static_cast<int64_t>(answer.token_ids.size()), budget);
      EXPECT_EQ(answer.token_ids[static_cast<size_t>(budget)], end);
    }
  }
  Request request = chat_request("What is 48+79?", "<think>\n");
  request.params.max_tokens = 40;
  const Answer unlimited = answers({}, {request}).front();
  request.params.thinking_budget = 1000;
  EXPECT_EQ(answers({}, {request}).front().token_ids, unlimited.token_ids);
}

// p-value 0.001, by the normal approximation of Wilson and Hilferty.
double chi_square_bound(double freedom) {
  const double z = 3.0902;
  const double a = 2 / (9 * freedom);
  return freedom * std::pow(1 - a + z * std::sqrt(a), 3);
}

// Two samples of one law: chi-square of the two-row table, rare ids together.
void expect_same_law(const std::map<std::vector<int32_t>, double>& a,
                     const std::map<std::vector<int32_t>, double>& b) {
  std::set<std::vector<int32_t>> keys;
  double total_a = 0;
  double total_b = 0;
  for (const auto& [key, count] : a) keys.insert(key), total_a += count;
  for (const auto& [key, count] : b) keys.insert(key), total_b += count;
  double rare_a = 0;
  double rare_b = 0;
  double statistic = 0;
  double freedom = -1;
  const auto add = [&](double x, double y) {
    const double share = (x + y) / (total_a + total_b);
    statistic += std::pow(x - share * total_a, 2) / (share * total_a);
    statistic += std::pow(y - share * total_b, 2) / (share * total_b);
    freedom += 1;
  };
  for (const auto& key : keys) {
    const double x = a.contains(key) ? a.at(key) : 0;
    const double y = b.contains(key) ? b.at(key) : 0;
    if (x + y < 20) {
      rare_a += x;
      rare_b += y;
    } else {
      add(x, y);
    }
  }
  if (rare_a + rare_b >= 20) add(rare_a, rare_b);
  ASSERT_GE(freedom, 2) << "too few different outcomes to compare";
  std::cout << "chi-square " << statistic << " with " << freedom << " degrees of freedom\n";
  EXPECT_LT(statistic, chi_square_bound(freedom));
}

// Sampled MTP against sampling without it, with other random numbers, on the first four tokens.
// NIBBLE_TEST_SAMPLES sets how many of each (20,000 were run by hand).
TEST(DrawnDrafts, FollowTheLawOfTheModelAlone) {
  const char* const asked = std::getenv("NIBBLE_TEST_SAMPLES");
  const int64_t samples = asked != nullptr ? std::atoll(asked) : 1000;
  for (const double temperature : {0.6, 1.0}) {
    std::map<std::vector<int32_t>, double> counts[3];
    for (int mode = 0; mode < 3; ++mode) {  // no drafts; argmax drafts; drawn drafts
      EngineOptions options = with_drafts(mode == 0 ? 0 : 3);
      options.draft.draft_sampling = mode == 2;
      options.max_batch_size = 64;
      EncodeOptions encode;
      encode.add_bos = true;
      const auto prompt = guided_model().tokenizer.encode("The capital of", encode).value();
      std::vector<Request> requests;
      for (int64_t i = 0; i < samples; ++i) {
        Request request;
        request.prompt_token_ids = prompt;
        request.params.temperature = temperature;
        request.params.seed = i + mode * 1'000'000;
        request.params.max_tokens = 4;
        request.params.ignore_eos = true;
        requests.push_back(std::move(request));
      }
      for (const Answer& answer : answers(options, requests)) {
        ASSERT_EQ(answer.token_ids.size(), 4u);
        ++counts[mode][answer.token_ids];
      }
    }
    expect_same_law(counts[0], counts[1]);
    expect_same_law(counts[0], counts[2]);
  }
}

}  // namespace
}  // namespace nibble
