// Tokens and logits don't depend on where experts lie: the demo checkpoint with all, half, a tenth
// and one slot a layer of its experts in memory, batched and with MTP drafts, against the plain
// model.
#include <gtest/gtest.h>

#include <map>

#include "tests/offload/offload_runs.h"

namespace nibble {
namespace {

using testing::offload_requests;
using testing::OffloadRun;
using testing::plain_run;
using testing::run_requests;
using testing::Tiered;

constexpr int64_t kDemoExperts = 4 * 16;  // three MoE layers and the MTP layer

class OffloadEquality : public ::testing::TestWithParam<int64_t> {};

TEST_P(OffloadEquality, TokensAndLogitsAreThoseOfTheModelInMemory) {
  const int64_t slots = GetParam();
  for (const int64_t batch : {int64_t{1}, int64_t{4}}) {
    for (const int64_t drafts : {int64_t{0}, int64_t{2}}) {
      SCOPED_TRACE("batch " + std::to_string(batch) + ", drafts " + std::to_string(drafts));
      TieredStoreOptions options;
      options.memory_bytes = static_cast<uint64_t>(slots) * testing::demo_record_bytes();
      Tiered tiered(
          testing::make_store(testing::packed_loader(testing::packed_demo()), std::move(options)));
      const OffloadRun run = run_requests(tiered.model(), batch, drafts);
      EXPECT_EQ(run.outputs, plain_run(drafts).outputs);
      const ExpertStoreStats stats = tiered.store().stats();
      EXPECT_EQ(stats.num_slots, slots);
      EXPECT_EQ(stats.num_misses == 0, slots == kDemoExperts);
      EXPECT_EQ(stats.num_evictions == 0, slots == kDemoExperts);
      EXPECT_GE(stats.bytes_read,
                (stats.num_misses + stats.num_resident) *
                    static_cast<int64_t>(slots == kDemoExperts ? testing::demo_record_bytes() : 0));
    }
  }
}

// All, half, a tenth, one a layer, and a single one for all layers.
INSTANTIATE_TEST_SUITE_P(Residency, OffloadEquality,
                         ::testing::Values(kDemoExperts, kDemoExperts / 2, kDemoExperts / 10, 4,
                                           1));

TEST(OffloadTiers, ACheckpointFolderGivesTheSameTokensAsAPackedFile) {
  TieredStoreOptions options;
  options.memory_bytes = 16 * testing::demo_record_bytes();
  Tiered tiered(testing::make_store(testing::checkpoint_loader(), std::move(options)));
  const OffloadRun run = run_requests(tiered.model(), 4, 2);
  EXPECT_EQ(run.outputs, plain_run(2).outputs);
  EXPECT_GT(tiered.store().stats().num_misses, 0);
}

TEST(OffloadTiers, EveryPolicyAndReaderGivesTheSameTokens) {
  for (const EvictionKind kind : {EvictionKind::kLfu, EvictionKind::kLru, EvictionKind::kScore}) {
    for (const IoBackend io : {IoBackend::kAuto, IoBackend::kPread, IoBackend::kBuffered}) {
      TieredStoreOptions options;
      options.memory_bytes = 20 * testing::demo_record_bytes();
      options.eviction.kind = kind;
      options.hot_experts = {{1, 3}, {1, 4}, {2, 0}, {4, 15}};
      ReaderOptions reader;
      reader.backend = io;
      reader.depth = 3;
      reader.piece_bytes = 16384;
      Tiered tiered(testing::make_store(testing::packed_loader(testing::packed_demo(), reader),
                                        std::move(options)));
      EXPECT_EQ(run_requests(tiered.model(), 2, 1).outputs, plain_run(1).outputs)
          << eviction_kind_name(kind) << " with " << tiered.store().description();
    }
  }
}

TEST(OffloadTiers, ABudgetThatShrinksAndGrowsWhileItRunsChangesNoToken) {
  TieredStoreOptions options;
  Tiered tiered(
      testing::make_store(testing::packed_loader(testing::packed_demo()), std::move(options)));
  EngineOptions engine_options;
  engine_options.num_blocks = 256;
  engine_options.num_drafts = 2;
  auto engine = Engine::create(tiered.model(), engine_options).value();
  std::map<uint64_t, testing::OffloadOutput> outputs;
  for (Request& request : offload_requests()) (void)engine->add(std::move(request)).value();
  const uint64_t record = testing::demo_record_bytes();
  const std::vector<uint64_t> slots = {40, 7, 64, 1, 20};
  for (size_t step = 0; engine->has_work(); ++step) {
    const uint64_t now = slots[step % slots.size()];
    ASSERT_TRUE(tiered.store().set_memory(now * record));
    EXPECT_EQ(tiered.store().stats().num_slots, static_cast<int64_t>(now));
    for (const RequestUpdate& update : engine->step()) {
      EXPECT_FALSE(update.error.has_value());
      outputs[update.id].add(update);
    }
  }
  std::vector<testing::OffloadOutput> all;
  all.reserve(outputs.size());
  for (auto& [id, output] : outputs) all.push_back(std::move(output));
  EXPECT_EQ(all, plain_run(2).outputs);
  EXPECT_EQ(tiered.store().set_memory(record - 1).error().code, ErrorCode::kInvalidArgument);
}

}  // namespace
}  // namespace nibble
