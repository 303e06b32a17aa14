// The model in parts, on threads as ranks, against the whole of it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>
#include <thread>

#include "nibble/comm/thread_communicator.h"
#include "nibble/kernels/registry.h"
#include "nibble/model/forward.h"
#include "tests/model/demo.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;

constexpr int64_t kBlockSize = 32;

// The hidden states of every rank's own prompt (the same ones under tensor parallel).
std::vector<std::vector<float>> hidden_on_ranks(const Shard& shape,
                                                const std::vector<std::vector<int32_t>>& prompts) {
  const int size = shape.tp_size;
  auto comms = thread_communicators(size);
  std::vector<std::vector<float>> hidden(static_cast<size_t>(size));
  std::vector<int64_t> tokens_of_ranks;
  tokens_of_ranks.reserve(prompts.size());
  for (const auto& ids : prompts) tokens_of_ranks.push_back(static_cast<int64_t>(ids.size()));
  const auto live = [&](size_t r) {
    const std::vector<int32_t>& ids = prompts[shape.enable_attention_dp ? r : 0];
    const auto tokens = static_cast<int64_t>(ids.size());
    const auto source = SafetensorsSource::open(testing::demo_checkpoint()).value();
    const ModelConfig config = load_config(testing::demo_checkpoint()).value();
    const auto kernels = make_kernels("cpu", {1, {}, false, false, {}}).value();
    WeightsOptions options;
    options.load_mtp = false;
    options.max_positions = 256;
    options.shard = shape;
    options.shard.rank = static_cast<int>(r);
    options.comm = size > 1 ? comms[r].get() : nullptr;
    const Weights weights = Weights::load(*source, config, options, *kernels).value();
    Workspace workspace = Workspace::create(config, *kernels, 64, options.shard).value();
    const int64_t width = config.kv_lora_rank + config.qk_rope_head_dim;
    std::vector<Buffer> pages;
    std::vector<KvCacheView> caches;
    for (size_t i = 0; i < weights.layers.size(); ++i) {
      pages.push_back(
          kernels->device().allocate(static_cast<size_t>(2 * kBlockSize * width) * 4).value());
      caches.push_back({pages.back().data(), DType::kF32, 2, kBlockSize, width});
    }
    const std::vector<int32_t> table = {0, 1};
    std::vector<AttentionSegment> segments;
    if (tokens > 0) segments.push_back({0, tokens, 0, table.data(), MlaForm::kExpanded});
    Batch batch{ids, AttentionBatch{tokens, segments}};
    if (shape.enable_attention_dp) batch.tokens_of_ranks = tokens_of_ranks;
    const auto count = static_cast<size_t>(tokens * config.hidden_size);
    const Buffer memory = kernels->device().allocate((count + 1) * 4).value();
    const MatrixView out{memory.data(), DType::kF32, tokens, config.hidden_size,
                         config.hidden_size};
    const Status status = forward(config, weights, batch, caches, *kernels, workspace, out);
    EXPECT_TRUE(status.has_value()) << status.error().message;
    hidden[r].assign(memory.as<float>(), memory.as<float>() + count);
  };
  std::vector<std::thread> threads;
  for (size_t r = 1; r < static_cast<size_t>(size); ++r) threads.emplace_back(live, r);
  live(0);
  for (std::thread& thread : threads) thread.join();
  return hidden;
}

class ModelInParts : public ::testing::Test {
 protected:
  static std::vector<int32_t> prompt(size_t index) {
    std::vector<int32_t> ids = testing::reference_prompts().at(index).ids;
    ids.resize(std::min<size_t>(ids.size(), 64));
    return ids;
  }
  static std::vector<float> whole(size_t index) {
    return hidden_on_ranks({0, 1, 1, false}, {prompt(index)})[0];
  }
};

// Sums associate differently, nothing else does.
constexpr double kBound = 2e-6;

TEST_F(ModelInParts, TensorParallelGivesTheHiddenStatesOfOneRank) {
  const std::vector<float> expected = whole(1);
  for (const int ep_size : {1, 2}) {
    const auto parts = hidden_on_ranks({0, 2, ep_size, false}, {prompt(1)});
    EXPECT_LT(testing::relative_error(parts[0], expected), kBound) << "ep_size " << ep_size;
    EXPECT_EQ(parts[0], parts[1]) << "ranks differ, ep_size " << ep_size;
    EXPECT_EQ(parts, hidden_on_ranks({0, 2, ep_size, false}, {prompt(1)})) << "runs differ";
  }
}

TEST_F(ModelInParts, AttentionDataParallelGivesEachRankItsOwn) {
  const auto parts = hidden_on_ranks({0, 2, 2, true}, {prompt(1), prompt(2)});
  EXPECT_LT(testing::relative_error(parts[0], whole(1)), kBound);
  EXPECT_LT(testing::relative_error(parts[1], whole(2)), kBound);
}

// Each token only to the ranks that hold one of its experts: the parts are added up in the order of
// the ranks, so that not a bit differs from gathering all tokens.
TEST_F(ModelInParts, AllToAllDispatchGivesTheBitsOfGathering) {
  const std::vector<std::vector<int32_t>> two = {prompt(1), prompt(2)};
  const std::vector<std::vector<int32_t>> four = {prompt(1), {}, prompt(4), prompt(3)};
  for (const int ranks : {2, 4}) {
    for (const int ep_size : {1, 2, 4}) {
      if (ranks % ep_size != 0 || ranks / ep_size > 2) continue;  // what FP8 blocks can be cut into
      Shard shard{0, ranks, ep_size, true};
      const auto& prompts = ranks == 2 ? two : four;
      shard.all2all_backend = All2AllBackend::kAllgatherReducescatter;
      const auto gathered = hidden_on_ranks(shard, prompts);
      shard.all2all_backend = All2AllBackend::kAlltoall;
      EXPECT_EQ(hidden_on_ranks(shard, prompts), gathered) << ranks << " ranks, ep " << ep_size;
    }
  }
}

TEST_F(ModelInParts, ARankWithoutTokensLendsItsExperts) {
  const auto parts = hidden_on_ranks({0, 2, 2, true}, {{}, prompt(2)});
  EXPECT_TRUE(parts[0].empty());
  EXPECT_LT(testing::relative_error(parts[1], whole(2)), kBound);
}

// TP8 EP2, as DeepSeek's card asks for: experts over 4 ranks in 2 groups.
TEST(ShardParts, Tp8Ep2CutsEachExpertInFourAndDealsThemToTwoGroups) {
  for (int rank = 0; rank < 8; ++rank) {
    const Shard shard{rank, 8, 2, false};
    EXPECT_EQ(shard.attention(), (Part{rank, 8}));
    EXPECT_EQ(shard.expert_group(), (Part{rank / 4, 2}));
    EXPECT_EQ(shard.expert_slice(), (Part{rank % 4, 4}));
  }
  const Part second{1, 2};
  EXPECT_EQ(second.begin(256), 128);
  EXPECT_EQ(second.count(256), 128);
}

TEST(CheckShard, RefusesCutsThroughScaleBlocksAndSaysWhatWouldWork) {
  const auto source = SafetensorsSource::open(testing::demo_checkpoint()).value();
  const ModelConfig config = load_config(testing::demo_checkpoint()).value();
  EXPECT_TRUE(check_shard(*source, config, {0, 2, 1, false}));
  const Status status = check_shard(*source, config, {0, 4, 1, false});
  ASSERT_FALSE(status);
  EXPECT_EQ(status.error().code, ErrorCode::kInvalidArgument);
  EXPECT_THAT(
      status.error().message,
      HasSubstr("model.layers.0.self_attn.q_b_proj: 6 blocks of 128 rows, FP8 128x128 cannot be "
                "cut into 4 equal parts; this checkpoint can be cut as (tp_size x ep_size) 1x1, "
                "2x1, 2x2"));
}

}  // namespace
}  // namespace nibble
