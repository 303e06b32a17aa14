// Policies by hand, and the replay of traces against worked examples.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "nibble/engine/generate.h"
#include "nibble/offload/eviction_policy.h"
#include "nibble/offload/routing_trace.h"
#include "nibble/offload/trace_replay.h"
#include "tests/offload/offload_fixture.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;

std::vector<ExpertUse> uses_of(const std::vector<int32_t>& experts, float weight = 1) {
  std::vector<ExpertUse> uses;
  for (const int32_t e : experts) uses.push_back({e, 1, weight});
  return uses;
}

RoutingTrace trace_of(int num_experts, const std::vector<std::vector<int32_t>>& steps) {
  RoutingTrace trace;
  trace.num_experts = num_experts;
  for (const auto& experts : steps) trace.steps.push_back({3, 1, uses_of(experts)});
  return trace;
}

TEST(EvictionPolicy, LfuHalvesItsCountsSoThatOldFameFades) {
  EvictionOptions options;
  options.ageing_tokens = 4;
  const auto policy = make_eviction_policy(options, 3);
  for (int i = 0; i < 4; ++i) policy->use(uses_of({0}), 1);  // 4, halved: 2
  for (int i = 0; i < 3; ++i) policy->use(uses_of({1}), 1);  // 3
  EXPECT_GT(policy->value(1), policy->value(0));
  EXPECT_NEAR(policy->value(0), 2, 1e-6);
  EXPECT_EQ(policy->value(2), 0);
}

TEST(EvictionPolicy, LfuTellsEqualCountsApartByTheLastUse) {
  const auto policy = make_eviction_policy({}, 2);
  policy->use(uses_of({1}), 1);
  policy->use(uses_of({0}), 1);
  EXPECT_GT(policy->value(0), policy->value(1));
}

TEST(EvictionPolicy, LruKnowsTheLastUseAlone) {
  EvictionOptions options;
  options.kind = EvictionKind::kLru;
  const auto policy = make_eviction_policy(options, 3);
  for (int i = 0; i < 9; ++i) policy->use(uses_of({0}), 1);
  policy->use(uses_of({1}), 1);
  EXPECT_GT(policy->value(1), policy->value(0));
  EXPECT_GT(policy->value(0), policy->value(2));
}

TEST(EvictionPolicy, ScoreAveragesTheRoutersWeights) {
  EvictionOptions options;
  options.kind = EvictionKind::kScore;
  options.score_decay = 0.5;
  const auto policy = make_eviction_policy(options, 2);
  policy->use(uses_of({0}, 1.0f), 1);  // 0.5
  policy->use(uses_of({1}, 0.2f), 1);  // 0.1; the other halves to 0.25
  EXPECT_NEAR(policy->value(0), 0.25, 1e-6);
  EXPECT_NEAR(policy->value(1), 0.1, 1e-6);
}

// Two slots, worked by hand: 0 1 miss, 0 hits, 2 evicts 1 (both policies), 1 evicts 2 for lfu
// (count 1 against 2) and 0 for lru, then 0 hits for lfu only. The optimum keeps 0, too, and passes
// 2 by.
TEST(Replay, CountsTheHitsOfAWorkedExample) {
  const RoutingTrace trace = trace_of(3, {{0}, {1}, {0}, {2}, {1}, {0}});
  EvictionOptions lfu;
  lfu.ageing_tokens = 100;
  EvictionOptions lru;
  lru.kind = EvictionKind::kLru;
  EXPECT_EQ(replay(trace, lfu, 2).num_hits, 2);
  EXPECT_EQ(replay(trace, lru, 2).num_hits, 1);
  EXPECT_EQ(replay_offline_optimum(trace, 2).num_hits, 3);
  EXPECT_EQ(replay(trace, lfu, 2).num_uses, 6);
  EXPECT_EQ(replay(trace, lfu, 3).num_hits, 3) << "all but the first use of each";
}

TEST(Replay, NoPolicyBeatsTheOptimum) {
  std::mt19937 rng(3);
  for (int round = 0; round < 30; ++round) {
    std::vector<std::vector<int32_t>> steps;
    for (int i = 0; i < 200; ++i) {
      std::vector<int32_t> step;
      for (int32_t e = 0; e < 12; ++e) {
        if (rng() % static_cast<unsigned>(2 + e) == 0) step.push_back(e);
      }
      if (!step.empty()) steps.push_back(step);
    }
    const RoutingTrace trace = trace_of(12, steps);
    for (const int slots : {1, 3, 6, 11}) {
      const int64_t best = replay_offline_optimum(trace, slots).num_hits;
      for (const EvictionKind kind :
           {EvictionKind::kLfu, EvictionKind::kLru, EvictionKind::kScore}) {
        EvictionOptions options;
        options.kind = kind;
        EXPECT_LE(replay(trace, options, slots).num_hits, best)
            << eviction_kind_name(kind) << " with " << slots;
      }
    }
  }
}

// What the demo chose for 1,200 drawn tokens: the default policy is no worse than lru.
TEST(Replay, LfuHitsAtLeastAsOftenAsLruOnARecordedTrace) {
  const auto path = testing::offload_folder() / "recorded.txt";
  {
    ModelOptions options;
    options.backend = "cpu";
    options.load_mtp = false;
    options.experts.routing_trace = path;
    const auto model = LoadedModel::load(testing::demo_checkpoint(), options).value();
    Session session = testing::make_session(*model, DType::kBf16, false, 1300);
    SamplingParams params;
    params.temperature = 0.9;
    params.seed = 1;
    params.max_tokens = 1200;
    params.ignore_eos = true;
    const auto ids = testing::reference_prompts()[0].ids;
    ASSERT_TRUE(generate(session, *model, ids, params, [](int32_t) { return true; }));
  }
  const RoutingTrace trace = decode_steps(load_routing_trace(path).value(), 1);
  EXPECT_GT(trace.steps.size(), 3000u);
  EvictionOptions lru;
  lru.kind = EvictionKind::kLru;
  for (const int slots : {1, 2, 4, 8, 12}) {
    const int64_t best = replay_offline_optimum(trace, slots).num_hits;
    EXPECT_GE(replay(trace, {}, slots).num_hits, replay(trace, lru, slots).num_hits) << slots;
    EXPECT_LE(replay(trace, {}, slots).num_hits, best);
  }
}

TEST(RoutingTrace, WhatIsWrittenIsRead) {
  const auto path = testing::offload_folder() / "trace.txt";
  {
    auto writer = RoutingTraceWriter::create(path, 16).value();
    writer->add(3, uses_of({1, 5}, 0.25f), 2);
    writer->add(4, uses_of({0}, 2.5f), 1);
  }
  const RoutingTrace trace = load_routing_trace(path).value();
  EXPECT_EQ(trace.num_experts, 16);
  ASSERT_EQ(trace.steps.size(), 2u);
  EXPECT_EQ(trace.steps[0].layer, 3);
  EXPECT_EQ(trace.steps[0].num_tokens, 2);
  EXPECT_EQ(trace.steps[0].uses[1].expert, 5);
  EXPECT_EQ(trace.steps[0].uses[1].weight, 0.25f);
  EXPECT_EQ(trace.steps[1].uses[0].weight, 2.5f);
  EXPECT_EQ(expert_counts_text(trace), "3 1 1\n3 5 1\n4 0 1\n");
  EXPECT_EQ(decode_steps(trace, 1).steps.size(), 1u);
}

TEST(RoutingTrace, WhatIsNoTraceIsRefusedWithItsLine) {
  const std::string title = "nibble-routing-trace 1 experts 4\n";
  EXPECT_THAT(parse_routing_trace("hello").error().message, HasSubstr("line 1"));
  EXPECT_THAT(parse_routing_trace(title).error().message, HasSubstr("no step"));
  for (const char* line : {"", "3", "3 0 1:1", "3 1", "3 1 4:1", "3 1 2:1 1:1", "3 1 1:x",
                           "3 1 1:1 ", "-1 1 1:1", "3 1 1:1 2:1;"}) {
    EXPECT_THAT(parse_routing_trace(title + "3 1 1:0.5\n" + line + "\n").error().message,
                HasSubstr("line 3"))
        << line;
  }
}

TEST(RoutingTrace, CountsAreReadBack) {
  const auto hot = parse_expert_counts("3 1 9\n3 0 2\n").value();
  ASSERT_EQ(hot.size(), 2u);
  EXPECT_EQ(hot[0].layer, 3);
  EXPECT_EQ(hot[0].expert, 1);
  EXPECT_THAT(parse_expert_counts("3 1\n").error().message, HasSubstr("line 1"));
  EXPECT_THAT(parse_expert_counts("3 1 9\n-1 1 1\n").error().message, HasSubstr("line 2"));
}

}  // namespace
}  // namespace nibble
