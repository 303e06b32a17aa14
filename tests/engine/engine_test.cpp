// Requests together against requests one by one, on the demo checkpoint, cpu backend: equal tokens.
#include "nibble/engine/engine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <map>
#include <nlohmann/json.hpp>

#include "nibble/base/mapped_file.h"
#include "nibble/engine/generate.h"
#include "tests/model/demo.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;

LoadedModel& engine_model() {
  static const std::unique_ptr<LoadedModel> model =
      testing::load_model(testing::demo_checkpoint(), "cpu");
  return *model;
}

// The questions of perplexity.txt and the reference prompts: 200 of 9 to 900 tokens.
std::vector<std::vector<int32_t>> questions() {
  const LoadedModel& model = engine_model();
  const auto text = read_text_file(testing::golden("perplexity.txt"));
  const auto ids = model.tokenizer.encode(*text);
  const auto think = model.tokenizer.token_id("<think>");
  std::vector<std::vector<int32_t>> prompts;
  bool open = false;
  for (const int32_t id : *ids) {
    if (id == model.tokenizer.bos_id()) {
      prompts.emplace_back();
      open = true;
    }
    if (open) prompts.back().push_back(id);
    if (id == think) open = false;
  }
  for (const auto& prompt : testing::reference_prompts()) prompts.push_back(prompt.ids);
  return prompts;
}

// 200 mixed requests: greedy and sampled, short and long answers.
std::vector<Request> mixed_requests() {
  std::vector<Request> requests;
  for (const auto& prompt : questions()) {
    Request request;
    request.prompt_token_ids = prompt;
    const auto i = static_cast<int64_t>(requests.size());
    request.params.temperature = i % 3 == 2 ? 0.8 : 0;
    request.params.top_p = 0.95;
    request.params.seed = i;
    request.params.max_tokens = 8 + i * 7 % 40;
    requests.push_back(std::move(request));
  }
  return requests;
}

using Outputs = std::map<uint64_t, std::vector<int32_t>>;

struct EngineRun {
  std::vector<std::vector<int32_t>> outputs;  // in order of the requests
  EngineStats stats;
};

EngineRun run_engine(const EngineOptions& options, const std::vector<Request>& requests) {
  auto engine = Engine::create(engine_model(), options);
  if (!engine) throw std::runtime_error(engine.error().message);
  std::vector<uint64_t> ids;
  for (const Request& request : requests) ids.push_back((*engine)->add(request).value());
  Outputs outputs;
  std::map<uint64_t, int> finished;
  while ((*engine)->has_work()) {
    for (const RequestUpdate& update : (*engine)->step()) {
      auto& tokens = outputs[update.id];
      tokens.insert(tokens.end(), update.token_ids.begin(), update.token_ids.end());
      if (update.finished) ++finished[update.id];
      EXPECT_FALSE(update.error.has_value());
    }
  }
  EngineRun run;
  for (const uint64_t id : ids) {
    EXPECT_EQ(finished[id], 1);
    run.outputs.push_back(outputs[id]);
  }
  run.stats = (*engine)->stats();
  EXPECT_EQ(run.stats.num_used_blocks, 0) << "blocks did not come back";
  return run;
}

// Each request alone, with the plain loop of generate().
const std::vector<std::vector<int32_t>>& one_by_one() {
  static const std::vector<std::vector<int32_t>> outputs = [] {
    std::vector<std::vector<int32_t>> result;
    for (const Request& request : mixed_requests()) {
      Session session = testing::make_session(engine_model(), DType::kBf16);
      result.push_back(
          generate(session, engine_model(), request.prompt_token_ids, request.params, [](int32_t) {
            return true;
          })->token_ids);
    }
    return result;
  }();
  return outputs;
}

void expect_equal(const EngineRun& run) {
  ASSERT_EQ(run.outputs.size(), one_by_one().size());
  for (size_t i = 0; i < run.outputs.size(); ++i) {
    ASSERT_EQ(run.outputs[i], one_by_one()[i]) << "request " << i;
  }
}

TEST(Engine, BatchedRequestsGiveTheTokensOfSingleOnes) {
  const EngineRun run = run_engine({}, mixed_requests());
  expect_equal(run);
  EXPECT_EQ(run.stats.num_preemptions, 0);
}

TEST(Engine, ChunkedPromptsGiveTheSame) {
  EngineOptions options;
  options.max_num_tokens = 40;
  options.max_batch_size = 8;
  options.enable_block_reuse = false;
  expect_equal(run_engine(options, mixed_requests()));
}

// 40 blocks: one request of 940 tokens needs 30 of them.
TEST(Engine, PreemptedRequestsGiveTheSame) {
  EngineOptions options;
  options.num_blocks = 40;
  const EngineRun run = run_engine(options, mixed_requests());
  expect_equal(run);
  EXPECT_GT(run.stats.num_preemptions, 10);
}

TEST(Engine, RequestsBehindACachedPrefixGiveTheSame) {
  std::vector<Request> requests = mixed_requests();
  auto engine = Engine::create(engine_model(), {});
  ASSERT_TRUE(engine.has_value());
  for (int round = 0; round < 2; ++round) {
    std::vector<uint64_t> ids;
    for (const Request& request : requests) ids.push_back((*engine)->add(request).value());
    Outputs outputs;
    while ((*engine)->has_work()) {
      for (const RequestUpdate& update : (*engine)->step()) {
        auto& tokens = outputs[update.id];
        tokens.insert(tokens.end(), update.token_ids.begin(), update.token_ids.end());
      }
    }
    for (size_t i = 0; i < ids.size(); ++i) ASSERT_EQ(outputs[ids[i]], one_by_one()[i]) << i;
  }
  // All whole blocks of the second round were found.
  EXPECT_GT((*engine)->stats().num_cached_tokens, 2000);
}

TEST(Engine, DraftsGiveTheSameGreedyAndSampledAndSaveSteps) {
  EngineOptions options;
  options.num_drafts = 3;
  const EngineRun run = run_engine(options, mixed_requests());
  expect_equal(run);
  EXPECT_GT(run.stats.acceptance_length(), 2);
  EXPECT_LT(run.stats.num_steps, run_engine({}, mixed_requests()).stats.num_steps);
}

TEST(Engine, DraftsChunksPreemptionAndPrefixesTogetherGiveTheSame) {
  EngineOptions options;
  options.num_drafts = 2;
  options.num_blocks = 34;
  options.max_batch_size = 20;
  options.max_num_tokens = 80;
  const EngineRun run = run_engine(options, mixed_requests());
  expect_equal(run);
  EXPECT_GT(run.stats.num_preemptions, 0);
}

TEST(Engine, OtherBlockSizesGiveTheSame) {
  for (const int64_t block_size : {16, 64}) {
    EngineOptions options;
    options.block_size = block_size;
    options.num_drafts = 1;
    expect_equal(run_engine(options, mixed_requests()));
  }
}

// All updates of one request, alone on a new engine.
RequestUpdate run_one(const EngineOptions& options, Request request) {
  auto engine = Engine::create(engine_model(), options);
  if (!engine) throw std::runtime_error(engine.error().message);
  const auto id = (*engine)->add(std::move(request));
  if (!id) throw std::runtime_error(id.error().message);
  RequestUpdate whole;
  while ((*engine)->has_work()) {
    for (RequestUpdate& update : (*engine)->step()) {
      whole.token_ids.insert(whole.token_ids.end(), update.token_ids.begin(),
                             update.token_ids.end());
      whole.text += update.text;
      for (auto& entry : update.logprobs) whole.logprobs.push_back(std::move(entry));
      for (auto& entry : update.prompt_logprobs) whole.prompt_logprobs.push_back(std::move(entry));
      whole.finish_reason = update.finish_reason;
      whole.stop_text = update.stop_text;
    }
  }
  return whole;
}

Request sum_question() {
  Request request;
  request.prompt_token_ids = testing::reference_prompts()[4].ids;
  request.params.temperature = 0;
  return request;
}

// "4+7=11, digit 1, carry 1\n8+9+1=18, ...": the stop string crosses token borders.
TEST(Engine, AStopStringEndsTheTextBeforeItWithAndWithoutDrafts) {
  for (const int64_t num_drafts : {0, 3}) {
    EngineOptions options;
    options.num_drafts = num_drafts;
    Request request = sum_question();
    request.params.stop = {"carry 1\n8+", "never"};
    const RequestUpdate got = run_one(options, request);
    EXPECT_EQ(got.text, "4+7=11, digit 1, ");
    EXPECT_EQ(got.finish_reason, FinishReason::kStop);
    EXPECT_EQ(got.stop_text, "carry 1\n8+");
    request.params.include_stop_str_in_output = true;
    EXPECT_EQ(run_one(options, request).text, "4+7=11, digit 1, carry 1\n8+");
  }
}

TEST(Engine, PenaltiesBiasBadWordsAndMinTokensActTheSameWithDrafts) {
  Request request = sum_question();
  request.params.repetition_penalty = 1.3;
  request.params.frequency_penalty = 0.4;
  request.params.presence_penalty = 0.2;
  request.params.logit_bias = {{19, -3.0}};
  request.params.bad = {"carry"};
  request.params.min_tokens = 20;
  request.params.max_tokens = 60;
  const RequestUpdate plain = run_one({}, request);
  EngineOptions options;
  options.num_drafts = 4;
  EXPECT_EQ(run_one(options, request).token_ids, plain.token_ids);
  EXPECT_NE(plain.token_ids, run_one({}, sum_question()).token_ids);
  EXPECT_THAT(plain.text, ::testing::Not(HasSubstr("carry")));
  EXPECT_GE(plain.token_ids.size(), 20u);
}

TEST(Engine, LogprobsDescribeTheTokensWithAndWithoutDrafts) {
  Request request = sum_question();
  request.params.logprobs = 2;
  request.params.max_tokens = 12;
  const RequestUpdate plain = run_one({}, request);
  ASSERT_EQ(plain.logprobs.size(), plain.token_ids.size());
  for (size_t i = 0; i < plain.token_ids.size(); ++i) {
    EXPECT_EQ(plain.logprobs[i].chosen.id, plain.token_ids[i]);
    EXPECT_EQ(plain.logprobs[i].chosen.rank, 1);
    EXPECT_LE(plain.logprobs[i].chosen.logprob, 0);
    EXPECT_EQ(plain.logprobs[i].top.size(), 2u);
  }
  EngineOptions options;
  options.num_drafts = 3;
  const RequestUpdate drafted = run_one(options, request);
  ASSERT_EQ(drafted.logprobs.size(), plain.logprobs.size());
  for (size_t i = 0; i < plain.logprobs.size(); ++i) {
    EXPECT_EQ(drafted.logprobs[i].chosen.logprob, plain.logprobs[i].chosen.logprob) << i;
  }
}

// The target log-probabilities of transformers, from an FP32 cache.
TEST(Engine, PromptLogprobsAreTheOracles) {
  const auto source = SafetensorsSource::open(testing::golden("demo/reference.safetensors"));
  const auto expected = (*source)->read("prompt7.target_logprobs");
  Request request;
  request.prompt_token_ids = testing::reference_prompts()[7].ids;
  request.params.prompt_logprobs = 0;
  request.params.max_tokens = 0;
  EngineOptions options;
  options.kv_cache_dtype = DType::kF32;
  const RequestUpdate got = run_one(options, request);
  EXPECT_TRUE(got.token_ids.empty());
  ASSERT_EQ(static_cast<int64_t>(got.prompt_logprobs.size()), expected->shape.num_elements());
  for (size_t i = 0; i < got.prompt_logprobs.size(); ++i) {
    EXPECT_NEAR(got.prompt_logprobs[i].chosen.logprob, expected->data<float>()[i], 1e-4) << i;
  }
}

// 100 of the miniature MATH suite in its own prompt format: none of them was trained on.
std::vector<Request> held_out_questions() {
  std::ifstream file(testing::golden("math-500.jsonl"));
  std::vector<Request> requests;
  for (std::string line; requests.size() < 100 && std::getline(file, line);) {
    const std::string problem = nlohmann::json::parse(line).at("problem");
    EncodeOptions encode;
    encode.add_bos = true;
    Request request;
    request.prompt_token_ids =
        *engine_model().tokenizer.encode("<｜User｜>" + problem +
                                             " Please reason step by step, and put your final "
                                             "answer within \\boxed{}.<｜Assistant｜><think>\n",
                                         encode);
    request.params.temperature = 0;
    request.params.max_tokens = 300;
    requests.push_back(std::move(request));
  }
  return requests;
}

// A PyTorch run of the MTP layer accepted 99.7 % of the first drafts, then 68 % and 40 %
// cumulative, a length of 3.07.
TEST(Engine, TheMtpLayerDraftsWell) {
  EngineOptions options;
  options.num_drafts = 3;
  const EngineStats stats = run_engine(options, held_out_questions()).stats;
  std::cout << "acceptance length " << stats.acceptance_length() << "; accepted by place";
  for (const int64_t count : stats.accepted_at) {
    std::cout << " " << static_cast<double>(count) / static_cast<double>(stats.num_windows);
  }
  std::cout << " of " << stats.num_windows << " windows\n";
  EXPECT_GE(static_cast<double>(stats.accepted_at[0]),
            0.98 * static_cast<double>(stats.num_windows));
  EXPECT_GE(stats.acceptance_length(), 2.85);
}

// delta 1 over the whole vocabulary accepts every draft inside <think>...</think>.
TEST(Engine, RelaxedAcceptanceTakesMoreDraftsWhileThinking) {
  std::vector<Request> requests;
  for (const auto& prompt : questions()) {
    if (requests.size() == 40) break;
    Request request;
    request.prompt_token_ids = prompt;
    request.params.temperature = 0;
    request.params.max_tokens = 100;
    requests.push_back(std::move(request));
  }
  EngineOptions options;
  options.num_drafts = 3;
  const double strict = run_engine(options, requests).stats.acceptance_length();
  options.relaxed_thinking = {true, 4096, 1.0};
  EXPECT_GT(run_engine(options, requests).stats.acceptance_length(), strict + 0.3);
}

TEST(Engine, ARequestThatCannotRunIsRefusedAndTheOthersGoOn) {
  EngineOptions options;
  options.num_blocks = 4;
  auto engine = Engine::create(engine_model(), options);
  ASSERT_TRUE(engine.has_value());
  EXPECT_EQ((*engine)->max_seq_len(), 128);
  const auto refused = [&](std::vector<int32_t> ids, SamplingParams params, const char* message) {
    Request request;
    request.prompt_token_ids = std::move(ids);
    request.params = std::move(params);
    const auto id = (*engine)->add(std::move(request));
    ASSERT_FALSE(id.has_value()) << message;
    EXPECT_EQ(id.error().code, ErrorCode::kInvalidArgument);
    EXPECT_THAT(id.error().message, HasSubstr(message));
  };
  refused({}, {}, "no tokens");
  refused({0, 5000}, {}, "token 1 of the prompt is 5000");
  refused(std::vector<int32_t>(128, 3), {}, "128 tokens");
  SamplingParams params;
  params.max_tokens = 0;
  refused({0, 5}, params, "max_tokens is 0");
  params = {};
  params.temperature = 3;
  refused({0, 5}, params, "temperature is 3");
  EXPECT_FALSE((*engine)->has_work());

  Request good;
  good.prompt_token_ids = testing::reference_prompts()[2].ids;
  good.params.temperature = 0;
  ASSERT_TRUE((*engine)->add(good).has_value());
  std::vector<int32_t> tokens;
  while ((*engine)->has_work()) {
    for (const RequestUpdate& update : (*engine)->step()) {
      tokens.insert(tokens.end(), update.token_ids.begin(), update.token_ids.end());
    }
  }
  EXPECT_EQ(tokens, testing::reference_prompts()[2].greedy);
}

// Without chunked prefill a sequence that was preempted comes back longer than a step.
TEST(Engine, PreemptedRequestsComeBackWithoutChunkedPrefill) {
  std::vector<Request> requests;
  for (const auto& prompt : questions()) {
    if (requests.size() == 12) break;
    if (prompt.size() > 40) continue;
    Request request;
    request.prompt_token_ids = prompt;
    request.params.temperature = 0;
    request.params.ignore_eos = true;
    request.params.max_tokens = 60;
    requests.push_back(std::move(request));
  }
  EngineOptions options;
  options.enable_chunked_prefill = false;
  options.enable_block_reuse = false;
  options.max_num_tokens = 48;
  options.num_blocks = 8;
  const EngineRun run = run_engine(options, requests);
  EXPECT_GT(run.stats.num_preemptions, 0);
  EXPECT_EQ(run.outputs, run_engine({}, requests).outputs);
}

// A prompt that is preempted while it is scored tells each log-probability once.
TEST(Engine, PreemptionLosesNoPromptLogprobs) {
  EngineOptions options;
  options.max_num_tokens = 32;
  options.num_blocks = 12;
  auto engine = Engine::create(engine_model(), options).value();
  std::map<uint64_t, size_t> wanted;
  std::map<uint64_t, std::vector<int32_t>> told;
  std::map<uint64_t, std::vector<int32_t>> prompts;
  for (const auto& prompt : questions()) {
    if (wanted.size() == 6) break;
    Request request;
    request.prompt_token_ids = prompt;
    request.prompt_token_ids.resize(std::min<size_t>(prompt.size(), 90));
    request.params.prompt_logprobs = 0;
    request.params.ignore_eos = true;
    request.params.max_tokens = 60;
    const uint64_t id = engine->add(request).value();
    wanted[id] = request.prompt_token_ids.size() - 1;
    prompts[id] = request.prompt_token_ids;
  }
  while (engine->has_work()) {
    for (const RequestUpdate& update : engine->step()) {
      for (const auto& entry : update.prompt_logprobs) told[update.id].push_back(entry.chosen.id);
    }
  }
  EXPECT_GT(engine->stats().num_preemptions, 0);
  for (const auto& [id, count] : wanted) {
    const auto& prompt = prompts.at(id);
    EXPECT_EQ(told[id], std::vector<int32_t>(prompt.begin() + 1, prompt.end())) << count;
  }
}

TEST(Engine, AContextThatWasAskedForIsNotLoweredUnasked) {
  ModelOptions model_options;
  model_options.backend = "cpu";
  model_options.max_seq_len = 512;
  const auto model = LoadedModel::load(testing::demo_checkpoint(), model_options).value();
  EngineOptions options;
  options.num_blocks = 4;
  const auto refused = Engine::create(*model, options);
  ASSERT_FALSE(refused.has_value());
  EXPECT_THAT(refused.error().message, HasSubstr("max_seq_len is 512 tokens"));
  EXPECT_THAT(refused.error().message, HasSubstr("holds 128"));
}

TEST(Engine, CancelledAndExpiredRequestsEndWithAbortAndFreeTheirBlocks) {
  auto engine = Engine::create(engine_model(), {});
  ASSERT_TRUE(engine.has_value());
  Request request;
  request.prompt_token_ids = testing::reference_prompts()[4].ids;
  request.params.ignore_eos = true;
  const uint64_t cancelled = (*engine)->add(request).value();
  request.timeout_seconds = 0;
  const uint64_t expired = (*engine)->add(request).value();
  std::map<uint64_t, FinishReason> ended;
  for (int i = 0; (*engine)->has_work(); ++i) {
    ASSERT_LT(i, 10);
    if (i == 3) (*engine)->cancel(cancelled);
    for (const RequestUpdate& update : (*engine)->step()) {
      if (update.finished) ended[update.id] = update.finish_reason;
    }
  }
  EXPECT_EQ(ended.at(cancelled), FinishReason::kAbort);
  EXPECT_EQ(ended.at(expired), FinishReason::kAbort);
  EXPECT_EQ((*engine)->stats().num_used_blocks, 0);
}

TEST(Engine, HigherPriorityGoesFirstAndEqualOnesByArrival) {
  EngineOptions options;
  options.max_batch_size = 1;
  auto engine = Engine::create(engine_model(), options);
  ASSERT_TRUE(engine.has_value());
  Request request;
  request.prompt_token_ids = testing::reference_prompts()[2].ids;
  request.params.max_tokens = 2;
  std::vector<uint64_t> ids;
  for (const int priority : {0, 0, 5, -5}) {
    request.params.priority = priority;
    ids.push_back((*engine)->add(request).value());
  }
  std::vector<uint64_t> order;
  while ((*engine)->has_work()) {
    for (const RequestUpdate& update : (*engine)->step()) {
      if (update.finished) order.push_back(update.id);
    }
  }
  EXPECT_EQ(order, (std::vector<uint64_t>{ids[2], ids[0], ids[1], ids[3]}));
}

TEST(Engine, RefusesOptionsThatContradictEachOther) {
  const auto refused = [](EngineOptions options, const char* message) {
    const auto engine = Engine::create(engine_model(), options);
    ASSERT_FALSE(engine.has_value()) << message;
    EXPECT_THAT(engine.error().message, HasSubstr(message));
  };
  EngineOptions options;
  options.num_drafts = 9;
  refused(options, "num_drafts is 9, expected 0..8");
  options = {};
  options.relaxed_thinking = {true, 10, 6};
  refused(options, "relaxed_delta is 6, expected 0..1");
  options = {};
  options.max_num_tokens = 16;
  refused(options, "at least max_batch_size * (1 + drafts) = 32");
  options = {};
  options.kv_cache_free_gpu_memory_fraction = 1.5;
  refused(options, "kv_cache_free_gpu_memory_fraction is 1.5");
  options = {};
  options.max_batch_size = 0;
  refused(options, "max_batch_size is 0");
}

}  // namespace
}  // namespace nibble
