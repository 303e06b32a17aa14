// The demo checkpoint on several ranks: the tokens of one rank.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <memory>

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
};

std::string case_name(const ::testing::TestParamInfo<TokensCase>& info) {
  const TokensCase& c = info.param;
  return format_name(c.format) + "Tp" + std::to_string(c.tp_size) + "Ep" +
         std::to_string(c.ep_size) + (c.attention_dp ? "AttentionDp" : "") + (c.mtp ? "Mtp" : "");
}

class ParallelTokens : public ::testing::TestWithParam<TokensCase> {};

TEST_P(ParallelTokens, AreThoseOfOneRank) {
  const TokensCase& c = GetParam();
  const ParallelRun run = testing::run_on_ranks(c.format, {0, c.tp_size, c.ep_size, c.attention_dp},
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

// Sums have one order, so that not a bit differs between runs: log-probabilities of everything.
TEST(ParallelRuns, RepeatBitForBit) {
  const Shard shard{0, 4, 2, false};
  const auto run = [&] {
    return testing::run_on_ranks(ParallelFormat::kW4A16, shard, engine_options(false),
                                 greedy_requests());
  };
  const ParallelRun first = run();
  const ParallelRun second = run();
  EXPECT_GT(first.logprobs.size(), 100U);
  EXPECT_EQ(first.logprobs, second.logprobs);
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

}  // namespace
}  // namespace nibble
