// The demo checkpoint on several ranks: the tokens of one rank.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <map>
#include <memory>
#include <numeric>

#include "tests/parallel/ranks.h"

namespace nibble {
namespace {

using testing::ParallelFormat;
using testing::ParallelRun;

std::string format_name(ParallelFormat format) {
  return format == ParallelFormat::kFp8     ? "Fp8"
         : format == ParallelFormat::kW4A16 ? "W4A16"
                                            : "W4A4";
}

// The reference prompts, and the same again behind each other, so that prompts span several chunks
// and blocks and the second half finds prefixes.
std::vector<Request> greedy_requests() {
  std::vector<Request> requests;
  std::vector<int32_t> all;
  const auto prompts = testing::reference_prompts();
  for (int round = 0; round < 2; ++round) {
    for (size_t i = 0; i < prompts.size() && i < 5; ++i) {
      if (round == 0) all.insert(all.end(), prompts[i].ids.begin(), prompts[i].ids.end());
      Request request;
      request.prompt_token_ids = i % 2 == 0 ? prompts[i].ids : all;
      request.params.temperature = 0;
      request.params.max_tokens = static_cast<int64_t>(12 + i);
      request.params.logprobs = 1;
      requests.push_back(std::move(request));
    }
  }
  return requests;
}

// Chunks of at most 48 tokens, blocks of 16, two drafts: every path of the engine.
EngineOptions engine_options(bool mtp, std::optional<DType> kv_cache_dtype = {}) {
  EngineOptions options;
  options.max_batch_size = 4;
  options.max_num_tokens = 48;
  options.block_size = 16;
  options.num_blocks = 80;
  options.num_drafts = mtp ? 2 : 0;
  options.kv_cache_dtype = kv_cache_dtype;
  return options;
}

const ParallelRun& on_one_rank(ParallelFormat format) {
  static std::map<ParallelFormat, ParallelRun> runs;
  const auto [place, is_new] = runs.try_emplace(format);
  if (is_new) {
    place->second = testing::run_on_ranks(format, {}, engine_options(false), greedy_requests());
  }
  return place->second;
}

struct TokensCase {
  ParallelFormat format;
  int tp_size;
  int ep_size;
  bool mtp;
  bool attention_dp = false;
  All2AllBackend all2all_backend = All2AllBackend::kAuto;
};

std::string case_name(const ::testing::TestParamInfo<TokensCase>& info) {
  const TokensCase& c = info.param;
  return format_name(c.format) + "Tp" + std::to_string(c.tp_size) + "Ep" +
         std::to_string(c.ep_size) + (c.attention_dp ? "AttentionDp" : "") +
         (c.all2all_backend == All2AllBackend::kAlltoall ? "Alltoall" : "") + (c.mtp ? "Mtp" : "");
}

class ParallelTokens : public ::testing::TestWithParam<TokensCase> {};

TEST_P(ParallelTokens, AreThoseOfOneRank) {
  const TokensCase& c = GetParam();
  const ParallelRun run =
      testing::run_on_ranks(c.format, {0, c.tp_size, c.ep_size, c.attention_dp, c.all2all_backend},
                            engine_options(c.mtp), greedy_requests());
  EXPECT_EQ(run.token_ids, on_one_rank(c.format).token_ids);
  EXPECT_EQ(run.stats.num_used_blocks, 0);
  EXPECT_GT(run.stats.num_cached_tokens, 0) << "no prefix was found";
  if (c.mtp) {
    EXPECT_GT(run.stats.acceptance_length(), 1.2);
  }
}

INSTANTIATE_TEST_SUITE_P(Shards, ParallelTokens,
                         ::testing::Values(TokensCase{ParallelFormat::kFp8, 2, 1, false},
                                           TokensCase{ParallelFormat::kFp8, 2, 2, true},
                                           TokensCase{ParallelFormat::kW4A16, 2, 1, true},
                                           TokensCase{ParallelFormat::kW4A16, 4, 1, false},
                                           TokensCase{ParallelFormat::kW4A16, 4, 2, true},
                                           TokensCase{ParallelFormat::kW4A16, 4, 4, false},
                                           TokensCase{ParallelFormat::kW4A4, 2, 2, false},
                                           TokensCase{ParallelFormat::kW4A4, 4, 2, true},
                                           TokensCase{ParallelFormat::kFp8, 2, 2, true, true},
                                           TokensCase{ParallelFormat::kFp8, 4, 4, false, true},
                                           TokensCase{ParallelFormat::kW4A16, 2, 1, false, true},
                                           TokensCase{ParallelFormat::kW4A16, 4, 4, true, true},
                                           TokensCase{ParallelFormat::kW4A4, 4, 2, true, true}),
                         case_name);
INSTANTIATE_TEST_SUITE_P(
    AlltoallDispatch, ParallelTokens,
    ::testing::Values(
        TokensCase{ParallelFormat::kFp8, 2, 2, true, true, All2AllBackend::kAlltoall},
        TokensCase{ParallelFormat::kW4A16, 2, 1, false, true, All2AllBackend::kAlltoall},
        TokensCase{ParallelFormat::kW4A16, 4, 4, true, true, All2AllBackend::kAlltoall},
        TokensCase{ParallelFormat::kW4A4, 4, 2, true, true, All2AllBackend::kAlltoall}),
    case_name);

// Sums have one order, so that not a bit differs between runs: log-probabilities of everything.
TEST(ParallelRuns, RepeatBitForBit) {
  const auto run = [&](const Shard& shard) {
    return testing::run_on_ranks(ParallelFormat::kW4A16, shard, engine_options(false),
                                 greedy_requests());
  };
  const Shard cut{0, 4, 2, false};
  const ParallelRun first = run(cut);
  EXPECT_GT(first.logprobs.size(), 100U);
  EXPECT_EQ(first.logprobs, run(cut).logprobs);
  // Nor between the ways of a token to its experts.
  const Shard gathered{0, 4, 4, true, All2AllBackend::kAllgatherReducescatter};
  const Shard sent{0, 4, 4, true, All2AllBackend::kAlltoall};
  const ParallelRun dispatched = run(sent);
  EXPECT_EQ(dispatched.logprobs, run(sent).logprobs);
  EXPECT_EQ(dispatched.logprobs, run(gathered).logprobs);
}

TEST(ParallelRuns, AnFp8CacheGivesTheTokensOfOneRankToo) {
  const auto run = [&](const Shard& shard) {
    return testing::run_on_ranks(ParallelFormat::kW4A16, shard,
                                 engine_options(true, DType::kF8E4m3), greedy_requests());
  };
  EXPECT_EQ(run({0, 2, 1, false}).token_ids, run({}).token_ids);
}

// Two requests at once go to two ranks; what continues the second one goes where that one was.
TEST(AttentionDataParallel, ARequestGoesToTheRankThatHasItsPrefix) {
  const auto request = [](int32_t first, int64_t count) {
    Request made;
    for (int64_t i = 0; i < count; ++i) {
      made.prompt_token_ids.push_back(first + static_cast<int32_t>(i));
    }
    made.params.temperature = 0;
    made.params.max_tokens = 2;
    made.params.ignore_eos = true;
    return made;
  };
  const EngineOptions options = engine_options(false);
  const std::filesystem::path directory = testing::demo_checkpoint();
  RankThreads ranks(directory, testing::rank_options(ParallelFormat::kFp8, {0, 2, 2, true}));
  const auto model = LoadedModel::load(directory, ranks.model_options()).value();
  const auto engine = Engine::create(*model, options).value();
  const auto cached_of = [&](const std::vector<Request>& requests) {
    std::vector<int64_t> cached;
    std::map<uint64_t, int64_t> of_id;
    std::vector<uint64_t> ids;
    cached.reserve(requests.size());
    ids.reserve(requests.size());
    for (const Request& r : requests) ids.push_back(engine->add(r).value());
    while (engine->has_work()) {
      for (const RequestUpdate& update : engine->step())
        of_id[update.id] = update.num_cached_tokens;
    }
    for (const uint64_t id : ids) cached.push_back(of_id.at(id));
    return cached;
  };
  EXPECT_THAT(cached_of({request(100, 40), request(1000, 40)}), ::testing::ElementsAre(0, 0));
  EXPECT_THAT(cached_of({request(1000, 45)}), ::testing::ElementsAre(32));
  EXPECT_THAT(cached_of({request(100, 45)}), ::testing::ElementsAre(32));
}

// Experts that lie elsewhere, the busiest of them twice: the same tokens, and the same bits in two
// runs. The load is made up; the layers without it stay in order.
TEST(ExpertPlacement, GivesTheTokensOfOneRank) {
  const ModelConfig config = load_config(testing::demo_checkpoint()).value();
  const testing::TemporaryFolder folder;
  ExpertLoad load;
  for (int layer = 0; layer < config.num_hidden_layers; ++layer) {
    if (!config.is_moe_layer(layer)) continue;
    for (int e = 0; e < config.n_routed_experts; ++e) {
      load[layer].push_back(static_cast<double>((e * 7 + layer) % config.n_routed_experts));
    }
  }
  struct Case {
    ParallelFormat format;
    Shard shard;
    int replicas;
    bool mtp;
  };
  for (const Case& c :
       {Case{ParallelFormat::kFp8, {0, 2, 2, false}, 0, true},
        Case{ParallelFormat::kW4A16, {0, 4, 2, false}, 4, true},
        Case{ParallelFormat::kW4A16, {0, 4, 4, true}, 4, false},
        Case{ParallelFormat::kW4A16, {0, 4, 4, true, All2AllBackend::kAlltoall}, 4, false}}) {
    SCOPED_TRACE(c.replicas);
    const auto placement =
        balance_experts(load, config.n_routed_experts, c.shard.ep_size, c.replicas).value();
    EXPECT_NE(placement.layers.begin()->second, placement.slots_of(-1)) << "nothing has moved";
    const std::filesystem::path path = std::filesystem::path(folder / "placed.txt");
    std::ofstream(path) << to_text(placement);
    const auto run = [&] {
      return testing::run_on_ranks(c.format, c.shard, engine_options(c.mtp), greedy_requests(),
                                   path);
    };
    const ParallelRun first = run();
    EXPECT_EQ(first.token_ids, on_one_rank(c.format).token_ids);
    if (c.replicas > 0 && !c.shard.enable_attention_dp) {
      EXPECT_EQ(run().logprobs, first.logprobs);
    }
  }
}

TEST(ExpertPlacement, OfAnotherNumberOfGroupsIsRefused) {
  const ModelConfig config = load_config(testing::demo_checkpoint()).value();
  const testing::TemporaryFolder folder;
  const std::filesystem::path path = std::filesystem::path(folder / "placed.txt");
  std::ofstream(path) << to_text(balance_experts({}, config.n_routed_experts, 4, 0).value());
  ModelOptions options = testing::rank_options(ParallelFormat::kFp8, {0, 2, 2, false});
  options.expert_placement = path;
  RankThreads ranks(testing::demo_checkpoint(), options);
  const auto model = LoadedModel::load(testing::demo_checkpoint(), ranks.model_options());
  ASSERT_FALSE(model.has_value());
  EXPECT_THAT(model.error().message, ::testing::HasSubstr("experts in 4 groups"));
}

// Requests with one common prefix that come one after another, while those before still run: no
// rank is drawn full. And a step of all ranks counts once, with the tokens of all.
TEST(AttentionDataParallel, RequestsAreSpreadAndStepsCountedOverTheRanks) {
  const EngineOptions options = engine_options(false);
  const std::filesystem::path directory = testing::demo_checkpoint();
  RankThreads ranks(directory, testing::rank_options(ParallelFormat::kFp8, {0, 2, 2, true}));
  const auto model = LoadedModel::load(directory, ranks.model_options()).value();
  const auto engine = Engine::create(*model, options).value();
  Request request;
  for (int32_t i = 0; i < 40; ++i) request.prompt_token_ids.push_back(100 + i);
  request.params.temperature = 0;
  request.params.max_tokens = 24;
  request.params.ignore_eos = true;
  std::vector<int64_t> on_rank(2);
  std::map<uint64_t, int64_t> cached;
  const auto step = [&] {
    for (const RequestUpdate& update : engine->step()) {
      cached[update.id] = update.num_cached_tokens;
    }
  };
  for (int i = 0; i < 8; ++i) {
    const uint64_t id = engine->add(request).value();
    ++on_rank[id % 2];  // ids of all ranks in one row
    step();
  }
  while (engine->has_work()) step();
  EXPECT_GE(on_rank[0], 3);
  EXPECT_GE(on_rank[1], 3);
  int64_t found = 0;
  for (const auto& [id, tokens] : cached) found += tokens > 0 ? 1 : 0;
  EXPECT_GE(found, 4) << "prefixes were hardly used";

  const EngineStats stats = engine->stats();
  int64_t steps = 0;
  int64_t tokens = 0;
  for (const StepCount* count : {&stats.prefill_steps, &stats.decode_steps, &stats.mixed_steps}) {
    steps += count->steps;
    tokens += count->tokens;
    const auto sum = [](const auto& buckets) {
      return std::accumulate(buckets.counts.begin(), buckets.counts.end(), int64_t{0});
    };
    EXPECT_EQ(sum(count->by_seconds), count->steps);
    EXPECT_EQ(sum(count->by_tokens), count->steps);
    EXPECT_EQ(sum(count->by_sequences), count->steps);
  }
  EXPECT_EQ(steps, stats.num_steps);
  // Each output token but a request's last one is computed, too.
  EXPECT_EQ(tokens, stats.num_prompt_tokens + stats.num_generated_tokens - 8);
  // Both ranks decode together for most of the time: a step of all has more than one rank's 4.
  const auto& by_sequences = stats.decode_steps.by_sequences.counts;
  EXPECT_GT(std::accumulate(by_sequences.begin() + 3, by_sequences.end(), int64_t{0}), 0);
}

}  // namespace
}  // namespace nibble
