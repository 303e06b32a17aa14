// n answers to one prompt, on the demo checkpoint.
#include "nibble/engine/answer_group.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <future>

#include "tests/model/demo.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;

LoadedModel& group_model() {
  static const std::unique_ptr<LoadedModel> kModel =
      testing::load_model(testing::demo_checkpoint(), "cpu");
  return *kModel;
}

std::unique_ptr<EngineThread> group_engine() {
  return std::make_unique<EngineThread>(*Engine::create(group_model(), EngineOptions{}));
}

Request sampled_request(int64_t n, std::optional<int64_t> best_of) {
  Request request;
  request.prompt_token_ids = *group_model().tokenizer.encode(
      "<｜User｜>What is 384 + 597? Please think about it step by step and tell me the result, "
      "and then what the capital of France is.<｜Assistant｜><think>\n");
  request.params.temperature = 1.5;
  request.params.seed = 3;
  request.params.max_tokens = 12;
  request.params.n = n;
  request.params.best_of = best_of;
  return request;
}

std::shared_ptr<AnswerGroup> complete_group(EngineThread& engine, Request request) {
  // Shared: the waiter may be gone before set_value() returns.
  const auto done = std::make_shared<std::promise<void>>();
  auto group = AnswerGroup::submit(engine, std::move(request),
                                   [done](const AnswerGroup& g, int, const RequestUpdate& update) {
                                     if (update.finished && g.finished()) done->set_value();
                                   });
  EXPECT_TRUE(group.has_value()) << group.error().message;
  done->get_future().wait();
  return *group;
}

std::vector<int32_t> tokens_alone(EngineThread& engine, Request request, int choice) {
  request.choice = choice;
  request.params.n = 1;
  request.params.best_of.reset();
  const auto done = std::make_shared<std::promise<std::vector<int32_t>>>();
  std::vector<int32_t> tokens;
  (void)engine.submit(std::move(request), [&tokens, done](const RequestUpdate& update) {
    tokens.insert(tokens.end(), update.token_ids.begin(), update.token_ids.end());
    if (update.finished) done->set_value(tokens);
  });
  return done->get_future().get();
}

TEST(AnswerGroup, EachChoiceIsWhatItWouldBeAlone) {
  const auto engine = group_engine();
  const auto group = complete_group(*engine, sampled_request(4, std::nullopt));
  const auto best = group->best();
  ASSERT_EQ(best.size(), 4U);
  for (int choice = 0; choice < 4; ++choice) {
    const Answer& answer = *best[static_cast<size_t>(choice)];
    EXPECT_EQ(answer.choice, choice);
    EXPECT_EQ(answer.token_ids, tokens_alone(*engine, sampled_request(1, std::nullopt), choice));
    EXPECT_TRUE(answer.logprobs.empty());
  }
  EXPECT_NE(best[0]->token_ids, best[1]->token_ids);
}

TEST(AnswerGroup, ThePromptIsComputedOnce) {
  const auto engine = group_engine();
  const Request request = sampled_request(5, std::nullopt);
  const auto prompt = static_cast<int64_t>(request.prompt_token_ids.size());
  const int64_t whole_blocks = (prompt - 1) / 32 * 32;
  ASSERT_GT(whole_blocks, 0);
  (void)complete_group(*engine, request);
  EXPECT_EQ(engine->stats().num_cached_tokens, 4 * whole_blocks);
}

TEST(AnswerGroup, TheBestByMeanLogprobAreKept) {
  const auto engine = group_engine();
  const auto group = complete_group(*engine, sampled_request(2, 6));
  ASSERT_EQ(group->answers().size(), 6U);
  std::vector<double> means;
  for (const Answer& answer : group->answers()) {
    EXPECT_EQ(answer.logprobs.size(), answer.token_ids.size());
    means.push_back(answer.mean_logprob());
    EXPECT_LT(means.back(), 0);
  }
  std::sort(means.rbegin(), means.rend());
  ASSERT_GT(means[1], means[2]);  // otherwise the order below shows nothing
  const auto best = group->best();
  ASSERT_EQ(best.size(), 2U);
  EXPECT_EQ(best[0]->mean_logprob(), means[0]);
  EXPECT_EQ(best[1]->mean_logprob(), means[1]);
}

TEST(AnswerGroup, ChoicesThatNeverRanComeBehindAFinishedOne) {
  EngineOptions options;
  options.max_batch_size = 1;
  const auto engine = std::make_unique<EngineThread>(*Engine::create(group_model(), options));
  const auto itself = std::make_shared<std::promise<std::shared_ptr<AnswerGroup>>>();
  const auto done = std::make_shared<std::promise<void>>();
  const auto group = AnswerGroup::submit(
      *engine, sampled_request(1, 3),
      [itself, done](const AnswerGroup& g, int choice, const RequestUpdate& update) {
        // The others wait for the one place, and never get it.
        if (choice == 0 && update.finished) itself->get_future().get()->cancel();
        if (update.finished && g.finished()) done->set_value();
      });
  ASSERT_TRUE(group.has_value()) << group.error().message;
  itself->set_value(*group);
  done->get_future().wait();
  EXPECT_TRUE((*group)->answers()[1].token_ids.empty());
  EXPECT_EQ((*group)->answers()[1].finish_reason, FinishReason::kAbort);
  EXPECT_LT((*group)->answers()[0].mean_logprob(), 0);
  ASSERT_EQ((*group)->best().size(), 1U);
  EXPECT_EQ((*group)->best()[0]->choice, 0);
}

TEST(AnswerGroup, ABadPromptFailsEveryChoiceAndLeavesTheEngineAlone) {
  const auto engine = group_engine();
  Request bad = sampled_request(3, std::nullopt);
  bad.prompt_token_ids = {1 << 20};
  const auto group = complete_group(*engine, bad);
  for (const Answer& answer : group->answers()) {
    EXPECT_EQ(answer.finish_reason, FinishReason::kError);
    ASSERT_TRUE(answer.error.has_value());
    EXPECT_THAT(answer.error->message, HasSubstr("outside the vocabulary"));
  }
  EXPECT_EQ(complete_group(*engine, sampled_request(1, std::nullopt))->answers().size(), 1U);
}

TEST(AnswerGroup, CancellingEndsAllChoicesAndStartsNoMore) {
  const auto engine = group_engine();
  Request request = sampled_request(8, std::nullopt);
  request.params.ignore_eos = true;
  request.params.max_tokens.reset();
  const auto begun = std::make_shared<std::promise<void>>();
  const auto done = std::make_shared<std::promise<void>>();
  std::atomic<bool> first{true};
  const auto group = AnswerGroup::submit(
      *engine, request, [&first, begun, done](const AnswerGroup& g, int, const RequestUpdate& u) {
        if (first.exchange(false)) begun->set_value();
        if (u.finished && g.finished()) done->set_value();
      });
  begun->get_future().wait();
  (*group)->cancel();
  done->get_future().wait();
  for (const Answer& answer : (*group)->answers()) {
    EXPECT_EQ(answer.finish_reason, FinishReason::kAbort);
  }
}

TEST(AnswerGroup, RankedAnswersAreNotStreamed) {
  SamplingParams params;
  params.n = 2;
  EXPECT_TRUE(check_streaming(params).has_value());
  params.best_of = 2;
  EXPECT_TRUE(check_streaming(params).has_value());
  params.best_of = 3;
  const Status status = check_streaming(params);
  ASSERT_FALSE(status.has_value());
  EXPECT_THAT(status.error().message, HasSubstr("best_of is 3 and n is 2"));
}

}  // namespace
}  // namespace nibble
