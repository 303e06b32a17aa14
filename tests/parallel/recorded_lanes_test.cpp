// Recorded steps of attention data parallel: all ranks must record and replay the same passes at
// the same time, as NCCL asks for. Here on CPU ranks whose StepGraphs write down what they are
// asked for.
#include <gtest/gtest.h>

#include <map>
#include <thread>

#include "nibble/comm/thread_communicator.h"
#include "nibble/engine/rank_passes.h"
#include "tests/parallel/ranks.h"
#include "tests/parallel/recording_kernels.h"

namespace nibble {
namespace {

using testing::RecordedRun;
using Log = testing::RecordedRuns;

std::unique_ptr<LoadedModel> make_model(const Shard& shard, Communicator& comm, Log& log,
                                        std::optional<double> left_to_host) {
  const std::filesystem::path directory = testing::demo_checkpoint();
  const auto source = SafetensorsSource::open(directory).value();
  ModelConfig config = load_config(directory).value();
  auto kernels = std::make_unique<testing::RecordingKernels>(comm, log, left_to_host);
  WeightsOptions options;
  options.shard = shard;
  options.comm = &comm;
  Weights weights = Weights::load(*source, config, options, *kernels).value();
  return LoadedModel::assemble({std::move(config), std::move(kernels), std::move(weights),
                                Tokenizer::load(directory).value(), 4096, &comm, nullptr});
}

struct LanesRun {
  testing::ParallelRun run;
  std::vector<Log> logs;  // by rank
};

LanesRun run_lanes(const Shard& shard, const EngineOptions& options,
                   const std::vector<Request>& requests, std::optional<double> left_to_host = {}) {
  auto comms = thread_communicators(shard.tp_size);
  LanesRun result;
  result.logs.resize(comms.size());
  std::vector<std::thread> others;
  for (size_t r = 1; r < comms.size(); ++r) {
    others.emplace_back([&, r] {
      Shard mine = shard;
      mine.rank = static_cast<int>(r);
      const auto model = make_model(mine, *comms[r], result.logs[r], left_to_host);
      EXPECT_TRUE(serve_rank(*model));
    });
  }
  {
    const auto model = make_model(shard, *comms[0], result.logs[0], left_to_host);
    const auto engine = Engine::create(*model, options).value();
    result.run = testing::run_requests(*engine, requests);
  }
  for (std::thread& thread : others) thread.join();
  return result;
}

EngineOptions engine_options(int64_t num_drafts) {
  EngineOptions options;
  options.max_batch_size = 4;
  options.max_num_tokens = 256;
  options.num_blocks = 256;
  options.num_drafts = num_drafts;
  return options;
}

// Unlike numbers of sequences on the ranks, and contexts that pass 1024 tokens on one of them
// first.
std::vector<Request> requests() {
  std::vector<Request> made;
  const auto prompts = testing::reference_prompts();
  for (size_t i = 0; i < 14; ++i) {
    Request request;
    request.prompt_token_ids = prompts[i % 7].ids;
    request.params.temperature = 0;
    request.params.max_tokens = static_cast<int64_t>(24 + 5 * i);
    request.params.ignore_eos = true;
    if (i == 3 || i == 10) {
      const auto& ids = prompts[0].ids;
      while (std::ssize(request.prompt_token_ids) < 1000) {
        request.prompt_token_ids.insert(request.prompt_token_ids.end(), ids.begin(), ids.end());
      }
      request.prompt_token_ids.resize(1000);
    }
    made.push_back(std::move(request));
  }
  return made;
}

// Collectives of a recorded pass, by its kind and number of tokens.
using Collectives = std::map<std::pair<int, int64_t>, uint64_t>;

// What is launched depends on kind and number of tokens alone: so do the collectives inside, which
// are held to those that `collectives` has.
void check_logs(const std::vector<Log>& logs, const testing::ParallelRun& run,
                Collectives* collectives) {
  int64_t filled_up = 0;
  for (size_t r = 0; r < logs.size(); ++r) {
    EXPECT_EQ(logs[r].runs, logs[0].runs) << "rank " << r << " records otherwise";
    filled_up += logs[r].num_filled_up;
  }
  EXPECT_GT(filled_up, 0) << "ranks never had unlike numbers of sequences";
  std::map<int64_t, int64_t> by_context;
  int64_t replayed = 0;
  int64_t main_passes = 0;
  for (const RecordedRun& entry : logs[0].runs) {
    const auto [place, is_new] =
        collectives->try_emplace({entry.kind, entry.num_tokens}, entry.num_collectives);
    EXPECT_EQ(place->second, entry.num_collectives) << entry.num_tokens << " tokens";
    ++by_context[entry.context];
    replayed += entry.way == RecordedRun::kReplayed ? 1 : 0;
    main_passes += entry.kind == 0 ? 1 : 0;
  }
  EXPECT_GT(replayed, 20);
  EXPECT_EQ(run.stats.graphs.num_replayed, replayed);
  EXPECT_GT(by_context[1024], 0);
  // Where contexts differ, or one rank has a prompt or nothing, passes are launched as they are.
  EXPECT_LT(main_passes, run.stats.num_steps);
}

TEST(RecordedLanes, AllRanksRecordAlike) {
  const auto want =
      testing::run_on_ranks(testing::ParallelFormat::kFp8, {}, engine_options(0), requests());
  Collectives collectives;  // all-to-all dispatch, which waits for the router, is never recorded
  for (const All2AllBackend backend :
       {All2AllBackend::kAllgatherReducescatter, All2AllBackend::kAlltoall}) {
    for (const int64_t num_drafts : {0, 2}) {
      SCOPED_TRACE(::testing::Message() << all2all_backend_name(backend) << ", " << num_drafts);
      const LanesRun got =
          run_lanes({0, 2, 2, true, backend}, engine_options(num_drafts), requests());
      EXPECT_EQ(got.run.token_ids, want.token_ids);
      check_logs(got.logs, got.run, &collectives);
    }
  }
}

// Drafts drawn on each rank's device, or on rank 0's for all, some of them judged by the host, for
// which it fetches their weights from the rank.
TEST(RecordedLanes, DrawnDraftsAreJudgedAsOnOneHost) {
  std::vector<Request> asked = requests();
  for (Request& request : asked) request.params.temperature = 0.9;
  EngineOptions options = engine_options(2);
  options.draft.draft_sampling = true;
  const auto want = testing::run_on_ranks(testing::ParallelFormat::kFp8, {}, options, asked);
  EXPECT_EQ(want.stats.num_device_drafts, 0);
  for (const bool attention_dp : {false, true}) {
    const LanesRun got = run_lanes({0, 2, 2, attention_dp}, options, asked, 0.3);
    EXPECT_GT(got.run.stats.num_device_drafts, 200);
    EXPECT_GT(got.run.stats.num_host_drafts, 50);
    EXPECT_GT(got.run.stats.num_host_windows, 50);
    EXPECT_EQ(got.run.token_ids, want.token_ids) << attention_dp;
  }
}

}  // namespace
}  // namespace nibble
