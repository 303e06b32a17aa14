#include "nibble/llm.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <future>
#include <thread>

#include "tests/api/demo_llm.h"

namespace nibble {
namespace {

using testing::demo_llm;
using ::testing::HasSubstr;

TEST(Llm, AnswersOfABatchAreThoseOfTransformersInOrder) {
  std::vector<Prompt> prompts;
  const auto references = testing::greedy_prompts();
  prompts.reserve(references.size());
  for (const auto& reference : references) prompts.emplace_back(reference.ids);
  const auto outputs = demo_llm().generate(prompts, {.temperature = 0});
  ASSERT_TRUE(outputs.has_value()) << outputs.error().message;
  ASSERT_EQ(outputs->size(), references.size());
  for (size_t i = 0; i < references.size(); ++i) {
    EXPECT_EQ((*outputs)[i].outputs[0].token_ids, references[i].greedy);
    EXPECT_EQ((*outputs)[i].prompt_token_ids, references[i].ids);
    EXPECT_TRUE((*outputs)[i].finished);
  }
}

TEST(Llm, TheSampleOfTheModelCardWorks) {
  const auto outputs = demo_llm().generate({"Hello, my name is", "The capital of France is"},
                                           SamplingParams{.max_tokens = 32});
  ASSERT_TRUE(outputs.has_value()) << outputs.error().message;
  EXPECT_EQ((*outputs)[0].prompt, "Hello, my name is");
  EXPECT_EQ((*outputs)[1].outputs[0].text, " Paris.");
  EXPECT_EQ((*outputs)[1].text(), " Paris.");
  EXPECT_EQ((*outputs)[1].outputs[0].finish_reason, "stop");
  EXPECT_GT((*outputs)[1].metrics.time_to_first_token, 0);
  EXPECT_GE((*outputs)[1].metrics.end_to_end, (*outputs)[1].metrics.time_to_first_token);
}

TEST(Llm, SamplingDefaultsAreTheModels) {
  // generation_config.json says 0.6 and 0.95.
  const SamplingParams silent{.max_tokens = 12, .seed = 5};
  const SamplingParams spelled{.max_tokens = 12, .temperature = 0.6, .top_p = 0.95, .seed = 5};
  const SamplingParams hot{.max_tokens = 12, .temperature = 2, .top_p = 1.0, .seed = 5};
  const auto outputs = demo_llm().generate(Prompts{"My name is", "My name is", "My name is"},
                                           std::vector{silent, spelled, hot});
  ASSERT_TRUE(outputs.has_value()) << outputs.error().message;
  EXPECT_EQ((*outputs)[0].text(), (*outputs)[1].text());
  EXPECT_NE((*outputs)[0].text(), (*outputs)[2].text());
}

TEST(Llm, AReportedSeedGivesTheSameTextAgain) {
  const SamplingParams params{.max_tokens = 16, .temperature = 1.5};
  const auto first = demo_llm().generate("My name is", params);
  const auto second = demo_llm().generate("My name is", params);
  EXPECT_NE(first->seed, second->seed);
  SamplingParams again = params;
  again.seed = first->seed;
  EXPECT_EQ(demo_llm().generate("My name is", again)->text(), first->text());
}

TEST(Llm, TheBestOfSeveralAnswersComeBackBestFirst) {
  const SamplingParams params{.max_tokens = 8, .temperature = 1.5, .seed = 1, .n = 2, .best_of = 5};
  const auto output = demo_llm().generate("My name is", params);
  ASSERT_TRUE(output.has_value()) << output.error().message;
  ASSERT_EQ(output->outputs.size(), 2U);
  const auto mean = [](const CompletionOutput& o) {
    return *o.cumulative_logprob / static_cast<double>(o.token_ids.size());
  };
  EXPECT_GE(mean(output->outputs[0]), mean(output->outputs[1]));
  EXPECT_EQ(output->outputs[1].index, 1);
  EXPECT_TRUE(output->outputs[0].logprobs.empty());  // nobody asked to see them
  const auto waited = demo_llm().generate_async("My name is", params);
  ASSERT_TRUE(waited.has_value());  // waiting for the end is no streaming
  EXPECT_EQ(waited->result().text(), output->text());
  const auto streamed =
      demo_llm().generate_async("My name is", params, [](const RequestOutput&) {});
  ASSERT_FALSE(streamed.has_value());
  EXPECT_THAT(streamed.error().message, HasSubstr("best_of is 5 and n is 2"));
}

TEST(Llm, LogprobsComeWithEveryToken) {
  const auto output = demo_llm().generate("The capital of France is",
                                          {.temperature = 0, .logprobs = 2, .prompt_logprobs = 1});
  ASSERT_TRUE(output.has_value()) << output.error().message;
  const CompletionOutput& answer = output->outputs[0];
  ASSERT_EQ(answer.logprobs.size(), answer.token_ids.size());
  double sum = 0;
  for (size_t i = 0; i < answer.logprobs.size(); ++i) {
    EXPECT_EQ(answer.logprobs[i].chosen.token_id, answer.token_ids[i]);
    EXPECT_EQ(answer.logprobs[i].chosen.rank, 1);
    EXPECT_EQ(answer.logprobs[i].top.size(), 2U);
    sum += answer.logprobs[i].chosen.logprob;
  }
  EXPECT_DOUBLE_EQ(*answer.cumulative_logprob, sum);
  EXPECT_EQ(output->prompt_logprobs.size(), output->prompt_token_ids.size() - 1);
}

TEST(Llm, StreamedPiecesAddUpToTheAnswer) {
  const SamplingParams params{.max_tokens = 40, .temperature = 0};
  const auto whole = demo_llm().generate("Hello, my name is", params);
  auto handle = demo_llm().generate_async("Hello, my name is", params);
  ASSERT_TRUE(handle.has_value()) << handle.error().message;
  std::string text;
  std::vector<int32_t> ids;
  bool finished = false;
  for (const RequestOutput& output : *handle) {
    EXPECT_FALSE(finished);
    text += output.outputs[0].text_diff;
    const auto& more = output.outputs[0].token_ids_diff;
    ids.insert(ids.end(), more.begin(), more.end());
    EXPECT_EQ(output.outputs[0].text, text);
    finished = output.finished;
  }
  EXPECT_TRUE(finished);
  EXPECT_EQ(text, whole->text());
  EXPECT_EQ(ids, whole->outputs[0].token_ids);
  EXPECT_EQ(handle->next(), std::nullopt);
  EXPECT_EQ(handle->result().text(), text);
}

TEST(Llm, ACallbackSeesEveryPieceInOrder) {
  std::string text;
  // Shared: the waiter may be gone before set_value() returns.
  const auto done = std::make_shared<std::promise<void>>();
  const auto handle = demo_llm().generate_async("Hello, my name is", {.temperature = 0},
                                                [&text, done](const RequestOutput& output) {
                                                  text += output.outputs[0].text_diff;
                                                  if (output.finished) done->set_value();
                                                });
  ASSERT_TRUE(handle.has_value()) << handle.error().message;
  done->get_future().wait();
  EXPECT_EQ(text, handle->result().text());
}

TEST(Llm, AThrowingCallbackEndsItsOwnRequestAlone) {
  const auto handle = demo_llm().generate_async(
      "Hello, my name is", {.temperature = 0, .ignore_eos = true},
      [](const RequestOutput&) { throw std::runtime_error("the caller's own trouble"); });
  EXPECT_EQ(handle->result().outputs[0].finish_reason, "abort");
  EXPECT_EQ(demo_llm().generate("The capital of France is", {.temperature = 0})->text(), " Paris.");
}

TEST(Llm, AnythingMayBeThrownByACallback) {
  const SamplingParams endless{.temperature = 0, .ignore_eos = true};
  const auto handle =
      demo_llm().generate_async("Hello", endless, [](const RequestOutput&) { throw 7; });
  EXPECT_EQ(handle->result().outputs[0].finish_reason, "abort");
  // The first call, on this thread, must not throw: what it throws is this thread's.
  auto watched = demo_llm().generate_async("Hello", endless);
  watched->on_progress([caller = std::this_thread::get_id()] {
    if (std::this_thread::get_id() != caller) throw std::runtime_error("the caller's own trouble");
  });
  EXPECT_EQ(watched->result().outputs[0].finish_reason, "abort");
  EXPECT_EQ(demo_llm().generate("The capital of France is", {.temperature = 0})->text(), " Paris.");
}

TEST(Llm, CallbacksThatHoldTheirHandleAreFreedAtTheEnd) {
  std::weak_ptr<std::promise<RequestHandle>> seen;
  {
    const auto own = std::make_shared<std::promise<RequestHandle>>();
    seen = own;
    auto handle = demo_llm().generate_async("The capital of France is", {.temperature = 0},
                                            [own](const RequestOutput&) {});
    ASSERT_TRUE(handle.has_value()) << handle.error().message;
    own->set_value(*handle);  // the callback's own request
    handle->on_progress([own] {});
    (void)handle->result();
  }
  // A later answer: the engine's thread is through with the first.
  (void)demo_llm().generate("Hello", {.max_tokens = 2});
  EXPECT_TRUE(seen.expired());
}

TEST(Llm, AbortEndsARequestThatWouldGoOn) {
  auto handle = demo_llm().generate_async("Hello", {.temperature = 0, .ignore_eos = true});
  ASSERT_TRUE(handle.has_value());
  (void)handle->next();
  EXPECT_FALSE(handle->finished());
  handle->abort();
  const RequestOutput output = handle->result();
  EXPECT_EQ(output.outputs[0].finish_reason, "abort");
  EXPECT_LT(output.outputs[0].token_ids.size(), 4000U);
}

TEST(Llm, AllPromptsAreCheckedBeforeAnyRuns) {
  const int64_t before = demo_llm().get_stats().generation_tokens_total;
  const auto outputs = demo_llm().generate(Prompts{"good", std::vector<int32_t>{5, 4096}, "good"},
                                           {.max_tokens = 4});
  ASSERT_FALSE(outputs.has_value());
  EXPECT_EQ(outputs.error().code, ErrorCode::kInvalidArgument);
  EXPECT_THAT(outputs.error().message, HasSubstr("prompt 1: token 1 of the prompt is 4096"));
  EXPECT_EQ(demo_llm().get_stats().generation_tokens_total, before);
}

TEST(Llm, BadRequestsAreRefusedByName) {
  const auto message = [](const auto& result) {
    return result.has_value() ? std::string("no error") : result.error().message;
  };
  LLM& llm = demo_llm();
  EXPECT_THAT(message(llm.generate(Prompts(std::vector<Prompt>()))), HasSubstr("no prompts"));
  EXPECT_THAT(message(llm.generate(std::vector<int32_t>{})), HasSubstr("no tokens"));
  EXPECT_THAT(message(llm.generate(std::vector<int32_t>(4096, 7))), HasSubstr("4096 tokens"));
  EXPECT_THAT(message(llm.generate("x", {.max_tokens = 0})), HasSubstr("max_tokens is 0"));
  EXPECT_THAT(message(llm.generate("x", {.temperature = 3})), HasSubstr("temperature is 3"));
  EXPECT_THAT(message(llm.generate("x\xff")), HasSubstr("UTF-8"));
  EXPECT_THAT(message(llm.generate(Prompts{"a", "b"}, std::vector<SamplingParams>(3))),
              HasSubstr("3 sampling params for 2 prompts"));
  EXPECT_THAT(message(llm.generate(Prompts{"a", "b"}, std::vector<SamplingParams>(1))),
              HasSubstr("1 sampling params for 2 prompts"));
  EXPECT_THAT(message(llm.generate("x", {.guided = GuidedDecoding{}})), HasSubstr("exactly one"));
  EXPECT_THAT(message(llm.generate("x", {.timeout_seconds = 0})),
              HasSubstr("timeout_seconds is 0"));
  // Beyond the context is clipped.
  const auto clipped = llm.generate(std::vector<int32_t>(4093, 7),
                                    {.max_tokens = 100, .temperature = 0, .ignore_eos = true});
  ASSERT_TRUE(clipped.has_value()) << clipped.error().message;
  EXPECT_EQ(clipped->outputs[0].token_ids.size(), 3U);
  EXPECT_EQ(clipped->outputs[0].finish_reason, "length");
}

TEST(Llm, EightThreadsGetTheirOwnAnswers) {
  const auto references = testing::greedy_prompts();
  std::atomic<int> right{0};
  std::vector<std::thread> threads;
  for (size_t t = 0; t < 8; ++t) {
    threads.emplace_back([&, t] {
      for (size_t i = 0; i < 4; ++i) {
        const auto& reference = references[(t + i) % references.size()];
        const auto output = demo_llm().generate(reference.ids, {.temperature = 0});
        if (output && output->outputs[0].token_ids == reference.greedy) ++right;
        (void)demo_llm().get_stats();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(right, 32);
}

TEST(Llm, DraftsChangeNoTokenAndAreCounted) {
  LLM llm({.model = testing::demo_directory(),
           .speculative_config = SpeculativeConfig{.num_nextn_predict_layers = 3}});
  for (const auto& reference : testing::greedy_prompts()) {
    EXPECT_EQ(llm.generate(reference.ids, {.temperature = 0})->outputs[0].token_ids,
              reference.greedy);
  }
  const Stats stats = llm.get_stats();
  EXPECT_GT(stats.acceptance_length, 1.5);
  EXPECT_EQ(stats.spec_decode_num_accepted_tokens_per_pos_total.size(), 3U);
  EXPECT_GT(stats.spec_decode_num_draft_tokens_total, stats.spec_decode_num_accepted_tokens_total);
}

TEST(Llm, KvCacheLimitBoundsTheContext) {
  LLM llm({.model = testing::demo_directory(), .kv_cache_config = {.max_tokens = 100}});
  EXPECT_EQ(llm.get_stats().num_kv_blocks, 3);
  EXPECT_EQ(llm.max_seq_len(), 96);
}

TEST(Llm, HandlesOutliveTheirModelAndLaterCallsAreRefused) {
  std::optional<RequestHandle> handle;
  {
    LLM llm(testing::demo_directory());
    handle = llm.generate_async("Hello", {.temperature = 0, .ignore_eos = true}).value();
    llm.shutdown();
    const auto late = llm.generate("Hello");
    ASSERT_FALSE(late.has_value());
    EXPECT_EQ(late.error().code, ErrorCode::kUnavailable);
  }
  handle->abort();
  EXPECT_EQ(handle->result().outputs[0].finish_reason, "abort");
}

TEST(Llm, AChatPartsThinkingFromTheAnswer) {
  const std::string messages = R"([{"role": "user", "content": "What is 384 + 597?"}])";
  const SamplingParams greedy{.temperature = 0};
  const auto ids = demo_llm().apply_chat_template(messages);
  ASSERT_TRUE(ids.has_value()) << ids.error().message;
  const std::string raw = demo_llm().generate(*ids, greedy)->text();
  const auto chat = demo_llm().chat(messages, greedy);
  ASSERT_TRUE(chat.has_value()) << chat.error().message;
  const CompletionOutput& output = chat->outputs[0];
  EXPECT_EQ(raw, "<think>\n" + output.reasoning_content + "\n</think>\n\n" + output.text);
  EXPECT_THAT(output.text, HasSubstr("981"));

  // A stop string behind the thinking ends it early; the parts stay the same up to there.
  SamplingParams stopping = greedy;
  stopping.stop = {"981"};
  const auto stopped = demo_llm().chat(messages, stopping);
  EXPECT_EQ(stopped->outputs[0].stop_text, "981");
  EXPECT_TRUE(output.reasoning_content.starts_with(stopped->outputs[0].reasoning_content));
  EXPECT_THAT(demo_llm().chat("[]").error().message, HasSubstr("messages"));
}

TEST(Llm, TextGoesToIdsAndBack) {
  const auto ids = demo_llm().encode("The capital of France is");
  ASSERT_TRUE(ids.has_value());
  EXPECT_EQ(ids->front(), 0);  // BOS
  EXPECT_EQ(demo_llm().encode("The capital of France is", false)->size(), ids->size() - 1);
  EXPECT_EQ(demo_llm().decode(*ids), "The capital of France is");
  EXPECT_EQ(demo_llm().vocab_size(), 4096);
}

TEST(Llm, LoadingTellsWhatIsWrong) {
  const auto message = [](const LLMOptions& options) {
    const auto llm = LLM::load(options);
    return llm.has_value() ? std::string("no error") : llm.error().message;
  };
  const std::string demo = testing::demo_directory();
  EXPECT_THAT(message({.model = "/no/such/model"}), HasSubstr("/no/such/model"));
  EXPECT_THAT(message({.model = demo, .device = "cuda", .backend = "cpu"}),
              HasSubstr("device is 'cuda' and backend is 'cpu'"));
  // Without CUDA in the build, without a GPU, and with one.
  EXPECT_THAT(message({.model = demo, .device = "cuda"}),
              AnyOf(HasSubstr("which has cpu and reference"), HasSubstr("--backend cpu needs no"),
                    HasSubstr("no error")));
  EXPECT_THAT(message({.model = demo, .backend = "fast"}), HasSubstr("backend is 'fast'"));
  EXPECT_THAT(message({.model = demo, .tensor_parallel_size = 8}),
              HasSubstr("this checkpoint can be cut as (tp_size x ep_size) 1x1, 2x1"));
  EXPECT_THAT(message({.model = demo, .tensor_parallel_size = 0}),
              HasSubstr("tensor_parallel_size is 0, expected 1..1024"));
  EXPECT_THAT(message({.model = demo, .max_batch_size = 0}), HasSubstr("max_batch_size is 0"));
  EXPECT_THAT(message({.model = demo, .kv_cache_config = {.tokens_per_block = 0}}),
              HasSubstr("tokens_per_block is 0"));
  EXPECT_THAT(
      message({.model = demo, .speculative_config = SpeculativeConfig{.decoding_type = "Eagle3"}}),
      HasSubstr("Eagle3"));
  EXPECT_THROW(LLM("/no/such/model"), ResultError);
}

// As the model card has it, but for the number: attention data parallel on several ranks.
TEST(Llm, SeveralRanksGiveTheTextOfOne) {
  for (const bool attention_dp : {false, true}) {
    SCOPED_TRACE(attention_dp);
    const auto llm = LLM::load({.model = testing::demo_directory(),
                                .tensor_parallel_size = 2,
                                .enable_attention_dp = attention_dp});
    ASSERT_TRUE(llm.has_value()) << llm.error().message;
    EXPECT_EQ(llm->generate("The capital of France is", {.temperature = 0})->text(), " Paris.");
  }
}

TEST(Llm, AttentionDataParallelismOfOneRankIsAccepted) {
  const auto llm = LLM::load({.model = testing::demo_directory(), .enable_attention_dp = true});
  ASSERT_TRUE(llm.has_value()) << llm.error().message;
  EXPECT_EQ(llm->generate("The capital of France is", {.temperature = 0})->text(), " Paris.");
}

}  // namespace
}  // namespace nibble
