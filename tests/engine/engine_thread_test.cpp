#include "nibble/engine/engine_thread.h"

#include <gtest/gtest.h>

#include <atomic>
#include <future>
#include <thread>

#include "tests/model/demo.h"

namespace nibble {
namespace {

LoadedModel& thread_model() {
  static const std::unique_ptr<LoadedModel> model =
      testing::load_model(testing::demo_checkpoint(), "cpu");
  return *model;
}

std::unique_ptr<EngineThread> start_engine(int64_t num_drafts = 0) {
  EngineOptions options;
  options.num_drafts = num_drafts;
  return std::make_unique<EngineThread>(*Engine::create(thread_model(), options));
}

Request greedy_request(size_t prompt) {
  Request request;
  request.prompt_token_ids = testing::reference_prompts()[prompt].ids;
  request.params.temperature = 0;
  return request;
}

// Waits for the end of a request.
RequestUpdate complete(EngineThread& engine, Request request) {
  std::promise<RequestUpdate> done;
  std::vector<int32_t> tokens;
  const auto ticket = engine.submit(std::move(request), [&](const RequestUpdate& update) {
    tokens.insert(tokens.end(), update.token_ids.begin(), update.token_ids.end());
    if (!update.finished) return;
    RequestUpdate last = update;
    last.token_ids = tokens;
    done.set_value(std::move(last));
  });
  EXPECT_TRUE(ticket.has_value());
  return done.get_future().get();
}

TEST(EngineThread, EightClientsGetTheirOwnAnswers) {
  const auto engine = start_engine(2);
  const auto prompts = testing::reference_prompts();
  std::atomic<int> right{0};
  std::vector<std::thread> clients;
  for (int c = 0; c < 8; ++c) {
    clients.emplace_back([&, c] {
      for (int i = 0; i < 6; ++i) {
        const auto which = static_cast<size_t>((c + i) % 7);
        if (complete(*engine, greedy_request(which)).token_ids == prompts[which].greedy) ++right;
        (void)engine->stats();
      }
    });
  }
  for (std::thread& client : clients) client.join();
  EXPECT_EQ(right, 48);
  EXPECT_EQ(engine->stats().num_used_blocks, 0);
}

TEST(EngineThread, ABadRequestFailsAlone) {
  const auto engine = start_engine();
  const RequestUpdate bad = complete(*engine, Request{});
  EXPECT_EQ(bad.finish_reason, FinishReason::kError);
  ASSERT_TRUE(bad.error.has_value());
  EXPECT_EQ(bad.error->code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(complete(*engine, greedy_request(2)).token_ids, testing::reference_prompts()[2].greedy);
}

TEST(EngineThread, CancellingEndsARequestThatWouldGoOn) {
  const auto engine = start_engine();
  Request request = greedy_request(0);
  request.params.ignore_eos = true;
  std::promise<FinishReason> ended;
  std::promise<void> begun;
  std::atomic<bool> first{true};
  const auto ticket = engine->submit(std::move(request), [&](const RequestUpdate& update) {
    if (first.exchange(false)) begun.set_value();
    if (update.finished) ended.set_value(update.finish_reason);
  });
  begun.get_future().wait();
  engine->cancel(*ticket);
  EXPECT_EQ(ended.get_future().get(), FinishReason::kAbort);
}

TEST(EngineThread, ShutdownEndsWhatRunsAndRefusesWhatComes) {
  const auto engine = start_engine();
  std::atomic<int> aborted{0};
  for (int i = 0; i < 5; ++i) {
    Request request = greedy_request(0);
    request.params.ignore_eos = true;
    (void)engine->submit(std::move(request), [&](const RequestUpdate& update) {
      if (update.finished && update.finish_reason == FinishReason::kAbort) ++aborted;
    });
  }
  engine->shutdown();
  EXPECT_EQ(aborted, 5);
  const auto late = engine->submit(greedy_request(0), [](const RequestUpdate&) {});
  ASSERT_FALSE(late.has_value());
  EXPECT_EQ(late.error().code, ErrorCode::kUnavailable);
  engine->shutdown();
}

}  // namespace
}  // namespace nibble
