// A request's result on the GPU is a function of its prompt, parameters and seed: the same bits
// alone, in batches, in chunks, after a preemption, from the cache, with drafts, and from recorded
// steps. And what a failing device does to requests.
#include <gtest/gtest.h>

#include <set>

#include "nibble/device/cuda/bf16_copies.h"
#include "nibble/device/cuda/cuda_stream.h"
#include "nibble/engine/engine_thread.h"
#include "tests/model/demo.h"
#include "tests/model/forwarding_kernels.h"

namespace nibble {
namespace {

std::unique_ptr<LoadedModel> load_batch_invariant() {
  ModelOptions options;
  options.backend = "cuda";
  options.cuda.batch_invariant = true;
  return LoadedModel::load(testing::demo_checkpoint(), options).value();
}

// Sampling is the host's: rows of logits come back.
class HostSampledKernels final : public testing::ForwardingKernels {
 public:
  using ForwardingKernels::ForwardingKernels;
  Result<std::unique_ptr<DeviceSampler>> make_sampler(int64_t /*vocab_size*/) override {
    return std::unique_ptr<DeviceSampler>();
  }
};

struct Answer {
  std::vector<int32_t> token_ids;
  std::vector<double> logprobs;  // of those, as doubles: equal only for equal bits of all logits
  bool operator==(const Answer&) const = default;
};

// Some greedy, some drawn, some penalised, some with log-probabilities; two share their beginning.
std::vector<Request> requests(int64_t max_tokens) {
  const auto prompts = testing::reference_prompts();
  std::vector<Request> all;
  for (size_t i = 0; i < 10; ++i) {
    Request request;
    request.prompt_token_ids = prompts[i % prompts.size()].ids;
    if (i == 8) {  // longer than a small step
      for (int repeat = 0; repeat < 3; ++repeat) {
        const auto& more = prompts[static_cast<size_t>(repeat)].ids;
        request.prompt_token_ids.insert(request.prompt_token_ids.end(), more.begin(), more.end());
      }
    }
    if (i == 9) request.prompt_token_ids = all[8].prompt_token_ids;
    request.params.max_tokens = max_tokens;
    request.params.seed = static_cast<int64_t>(100 + i);
    request.params.temperature = i % 3 == 0 ? 0 : 0.9;
    request.params.ignore_eos = true;
    if (i % 3 == 1) request.params.top_p = 0.9;
    if (i % 4 == 2) request.params.repetition_penalty = 1.2;
    if (i % 2 == 1) request.params.logprobs = 2;
    all.push_back(std::move(request));
  }
  return all;
}

std::vector<Answer> run(Engine& engine, const std::vector<Request>& asked) {
  std::vector<uint64_t> ids;
  ids.reserve(asked.size());
  for (const Request& request : asked) ids.push_back(engine.add(request).value());
  std::vector<Answer> answers(asked.size());
  while (engine.has_work()) {
    for (const RequestUpdate& update : engine.step()) {
      EXPECT_FALSE(update.error.has_value()) << update.error->message;
      for (size_t i = 0; i < ids.size(); ++i) {
        if (ids[i] != update.id) continue;
        Answer& answer = answers[i];
        answer.token_ids.insert(answer.token_ids.end(), update.token_ids.begin(),
                                update.token_ids.end());
        for (const auto& entry : update.logprobs) answer.logprobs.push_back(entry.chosen.logprob);
      }
    }
  }
  return answers;
}

EngineOptions base_options() {
  EngineOptions options;
  options.max_batch_size = 10;
  options.max_num_tokens = 512;
  options.num_blocks = 256;
  options.kv_cache_dtype = DType::kBf16;
  options.cuda_graphs = false;
  options.enable_block_reuse = false;
  return options;
}

TEST(EngineOnCuda, EveryWayOfRunningGivesTheSameBits) {
  const auto model = load_batch_invariant();
  const std::vector<Request> asked = requests(48);
  std::vector<Answer> want;
  {
    EngineOptions alone = base_options();
    alone.max_batch_size = 1;
    auto engine = Engine::create(*model, alone).value();
    for (const Request& request : asked) want.push_back(run(*engine, {request}).front());
  }
  std::set<std::vector<int32_t>> different;
  for (const Answer& answer : want) different.insert(answer.token_ids);
  ASSERT_GE(different.size(), 6U);

  struct Way {
    const char* name;
    EngineOptions options;
    int rounds = 1;
  };
  std::vector<Way> ways;
  ways.push_back({"in a batch", base_options()});
  ways.push_back({"recorded", base_options()});
  ways.back().options.cuda_graphs = true;
  ways.push_back({"recorded beforehand", base_options()});
  ways.back().options.cuda_graphs = true;
  ways.back().options.cuda_graph_batch_sizes = {4, 10};
  ways.push_back({"in chunks", base_options()});
  ways.back().options.max_num_tokens = 32;
  ways.push_back({"preempted", base_options()});
  // The ten prompts, one of 900 tokens, take 39 blocks of 32; with their answers they take 52.
  ways.back().options.num_blocks = 40;
  ways.back().options.cuda_graphs = true;
  ways.push_back({"from the cache", base_options(), 2});
  ways.back().options.enable_block_reuse = true;
  ways.back().options.cuda_graphs = true;
  for (const int64_t drafts : {1, 3}) {
    for (const bool graphs : {false, true}) {
      ways.push_back({graphs ? "recorded, with drafts" : "with drafts", base_options()});
      ways.back().options.num_drafts = drafts;
      ways.back().options.cuda_graphs = graphs;
    }
  }
  for (const Way& way : ways) {
    SCOPED_TRACE(way.name);
    auto engine = Engine::create(*model, way.options);
    ASSERT_TRUE(engine.has_value()) << engine.error().message;
    for (int round = 0; round < way.rounds; ++round) {
      const std::vector<Answer> got = run(**engine, asked);
      for (size_t i = 0; i < got.size(); ++i) {
        EXPECT_EQ(got[i].token_ids, want[i].token_ids) << "request " << i;
        EXPECT_EQ(got[i].logprobs, want[i].logprobs) << "request " << i;
      }
    }
    const EngineStats stats = (*engine)->stats();
    std::cout << way.name << ": " << stats.num_steps << " steps, " << stats.graphs.num_recorded
              << " recorded, " << stats.graphs.num_replayed << " replayed, "
              << stats.num_device_windows << " windows on the device, " << stats.num_host_windows
              << " left to the host, " << stats.num_preemptions << " preemptions, "
              << stats.num_cached_tokens << " tokens found\n";
    EXPECT_EQ(stats.graphs.num_replayed > 0, way.options.cuda_graphs);
    EXPECT_EQ(stats.num_preemptions > 0, way.options.num_blocks < base_options().num_blocks);
    EXPECT_EQ(stats.num_cached_tokens > 0, way.rounds > 1);
    EXPECT_EQ(stats.num_windows > 0, way.options.num_drafts > 0);
    EXPECT_GT(stats.num_device_windows, stats.num_host_windows);
  }
}

// Drafts that are drawn on the device: the tokens of an engine whose host draws and judges them.
TEST(EngineOnCuda, DrawnDraftsGiveTheTokensOfAHostThatSamples) {
  const auto model = load_batch_invariant();
  const auto of_host = load_batch_invariant();
  of_host->kernels = std::make_unique<HostSampledKernels>(std::move(of_host->kernels));
  const std::vector<Request> asked = requests(48);
  for (const int64_t drafts : {1, 3}) {
    EngineOptions options = base_options();
    options.num_drafts = drafts;
    options.draft.draft_sampling = true;
    std::vector<Answer> want;
    {
      auto engine = Engine::create(*of_host, options).value();
      want = run(*engine, asked);
      EXPECT_EQ(engine->stats().num_device_windows, 0);
      EXPECT_GT(engine->stats().acceptance_length(), 1.1);
    }
    struct Way {
      const char* name;
      int64_t batch = 10;
      bool graphs = false;
    };
    for (const Way& way : {Way{"alone", 1}, Way{"in a batch"}, Way{"recorded", 10, true},
                           Way{"recorded, in batches of four", 4, true}}) {
      SCOPED_TRACE(way.name);
      options.cuda_graphs = way.graphs;
      options.max_batch_size = way.batch;
      auto engine = Engine::create(*model, options).value();
      const std::vector<Answer> got = run(*engine, asked);
      for (size_t i = 0; i < got.size(); ++i) {
        EXPECT_EQ(got[i].token_ids, want[i].token_ids) << "request " << i;
        ASSERT_EQ(got[i].logprobs.size(), want[i].logprobs.size());
        for (size_t at = 0; at < want[i].logprobs.size(); ++at) {
          EXPECT_NEAR(got[i].logprobs[at], want[i].logprobs[at], 1e-11);
        }
      }
      const EngineStats stats = engine->stats();
      std::cout << drafts << " drawn drafts, " << way.name << ": " << stats.num_device_drafts
                << " drafts on the device, " << stats.num_host_drafts << " left to the host; "
                << stats.num_device_windows << " windows, " << stats.num_host_windows
                << " left; acceptance length " << stats.acceptance_length() << "\n";
      EXPECT_GT(stats.num_device_drafts, 100);
      EXPECT_LE(stats.num_host_drafts, 2);
      EXPECT_LE(stats.num_host_windows, 2);
    }
  }
}

// What drafts are drawn from has its room before the cache takes the rest.
TEST(EngineOnCuda, TheRowsOfDrawnDraftsAreWorkspace) {
  const auto model = load_batch_invariant();
  EngineOptions options = base_options();
  options.num_drafts = 3;
  const auto workspace = [&] {
    return Engine::create(*model, options).value()->memory().value().uses.at(2);
  };
  const auto without = workspace();
  EXPECT_EQ(without.first, "workspace");
  options.draft.draft_sampling = true;
  const uint64_t rows = 3 * 10 * static_cast<uint64_t>(model->config.vocab_size) * sizeof(float);
  EXPECT_GE(workspace().second, without.second + rows);
}

// What writers leave in BF16 beside their results (nibble/device/cuda/bf16_copies.h), read where
// products would round: recorded and not, with tokens in all kernels' ranges.
TEST(EngineOnCuda, CopiesInBf16ChangeNoBit) {
  const std::vector<Request> asked = requests(24);
  for (const bool graphs : {false, true}) {
    std::vector<std::vector<Answer>> answers;
    for (const char* const copies : {"1", "0"}) {
      ASSERT_EQ(::setenv("NIBBLE_CUDA_BF16_COPIES", copies, 1), 0);
      const auto model = testing::load_model(testing::demo_checkpoint(), "cuda");
      ASSERT_EQ(::unsetenv("NIBBLE_CUDA_BF16_COPIES"), 0);
      EngineOptions options = base_options();
      options.cuda_graphs = graphs;
      if (graphs) options.cuda_graph_batch_sizes = {10};
      options.num_drafts = 1;
      auto engine = Engine::create(*model, options).value();
      answers.push_back(run(*engine, asked));
      // Both ways were taken.
      const int64_t found = bf16_copies(model->kernels->device()).num_found();
      EXPECT_EQ(found > 0, copies[0] == '1') << found;
    }
    EXPECT_TRUE(answers[0] == answers[1]) << (graphs ? "recorded" : "not recorded");
  }
}

TEST(EngineOnCuda, AFailingDeviceEndsItsRequestsWithItsWords) {
  const auto model = load_batch_invariant();
  auto engine = Engine::create(*model, base_options()).value();
  for (const Request& request : requests(8)) ASSERT_TRUE(engine->add(request).has_value());
  (void)engine->step();
  keep_cuda_error(model->kernels->device(), {ErrorCode::kUnavailable, "a made-up failure"});
  size_t ended = 0;
  for (const RequestUpdate& update : engine->step()) {
    EXPECT_TRUE(update.finished);
    ASSERT_TRUE(update.error.has_value());
    EXPECT_NE(update.error->message.find("a made-up failure"), std::string::npos);
    ++ended;
  }
  EXPECT_EQ(ended, 10U);
  EXPECT_FALSE(engine->has_work());
  const auto refused = engine->add(requests(8).front());
  ASSERT_FALSE(refused.has_value());
  EXPECT_NE(refused.error().message.find("a made-up failure"), std::string::npos);
}

TEST(EngineOnCuda, WithoutMemoryForAStepItsRequestsEndAndOthersCome) {
  const auto model = load_batch_invariant();
  auto engine = Engine::create(*model, base_options()).value();
  ASSERT_TRUE(engine->add(requests(8).front()).has_value());
  keep_cuda_error(model->kernels->device(), {ErrorCode::kOutOfMemory, "made up: no memory"});
  const auto updates = engine->step();
  ASSERT_EQ(updates.size(), 1U);
  EXPECT_EQ(updates.front().error.value().code, ErrorCode::kOutOfMemory);
  EXPECT_EQ(run(*engine, {requests(8).front()}).front().token_ids.size(), 8U);
}

TEST(EngineOnCuda, AThreadOutlivesItsDevice) {
  const auto model = load_batch_invariant();
  EngineThread thread(Engine::create(*model, base_options()).value());
  std::mutex mutex;
  std::condition_variable wake;
  std::optional<Error> error;
  bool done = false;
  keep_cuda_error(model->kernels->device(), {ErrorCode::kUnavailable, "a made-up failure"});
  ASSERT_TRUE(thread.submit(requests(8).front(), [&](const RequestUpdate& update) {
    const std::lock_guard lock(mutex);
    if (!update.finished) return;
    error = update.error;
    done = true;
    wake.notify_one();
  }));
  std::unique_lock lock(mutex);
  ASSERT_TRUE(wake.wait_for(lock, std::chrono::seconds(20), [&] { return done; }));
  ASSERT_TRUE(error.has_value());
  EXPECT_NE(error->message.find("a made-up failure"), std::string::npos);
}

TEST(EngineOnCuda, TheMemoryReportAddsUp) {
  const auto model = load_batch_invariant();
  EngineOptions options = base_options();
  options.num_blocks = 0;
  options.kv_cache_free_gpu_memory_fraction = 0.05;
  options.cuda_graphs = true;
  options.num_drafts = 1;
  auto engine = Engine::create(*model, options).value();
  (void)run(*engine, requests(8));
  const MemoryReport report = engine->memory().value();
  std::cout << to_text(report) << "\n";
  uint64_t sum = report.free_bytes;
  for (const auto& [name, bytes] : report.uses) sum += bytes;
  EXPECT_EQ(sum, report.total_bytes);
  EXPECT_EQ(report.uses.at(0).first, "weights");
  EXPECT_GE(report.uses.at(0).second, model->weights.device_bytes);
  EXPECT_GT(report.uses.at(1).second, 0U);
  EXPECT_GT(report.uses.at(2).second, 0U);
}

}  // namespace
}  // namespace nibble
