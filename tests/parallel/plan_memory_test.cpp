// What nibble plan says of each rank's weights, and what the ranks take.
#include <gtest/gtest.h>

#include <cmath>
#include <thread>

#include "nibble/comm/thread_communicator.h"
#include "nibble/engine/rank_passes.h"
#include "nibble/kernels/registry.h"
#include "nibble/plan/device_memory.h"
#include "nibble/plan/model_source.h"
#include "tests/parallel/ranks.h"

namespace nibble {
namespace {

using testing::ParallelFormat;

// Bytes of weights on each rank; the reference backend keeps them as they are stored.
std::vector<uint64_t> loaded_bytes(ParallelFormat format, Shard shard, bool with_mtp) {
  auto comms = thread_communicators(shard.tp_size);
  std::vector<uint64_t> bytes(comms.size());
  std::vector<std::thread> threads;
  for (size_t r = 0; r < comms.size(); ++r) {
    threads.emplace_back([&, r] {
      ModelOptions options;
      options.backend = "reference";
      options.threads = 1;
      options.load_mtp = with_mtp;
      options.max_seq_len = 64;  // the rotary table, which the plan counts as workspace, is small
      options.shard = shard;
      options.shard.rank = static_cast<int>(r);
      options.comm = comms.size() > 1 ? comms[r].get() : nullptr;
      const auto model = LoadedModel::load(testing::checkpoint_of(format), options);
      if (!model) return;
      bytes[r] = (*model)->weights.device_bytes;
      if (r > 0) {
        EXPECT_TRUE(serve_rank(**model));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  return bytes;
}

TEST(PlannedSplit, IsWithinThreePercentOfWhatEachRankTakes) {
  struct Case {
    ParallelFormat format;
    Shard shard;
  };
  for (const Case& c :
       {Case{ParallelFormat::kFp8, {0, 2, 1, false}}, Case{ParallelFormat::kFp8, {0, 2, 2, false}},
        Case{ParallelFormat::kFp8, {0, 4, 4, true}}, Case{ParallelFormat::kW4A16, {0, 2, 1, false}},
        Case{ParallelFormat::kW4A16, {0, 4, 2, false}},
        Case{ParallelFormat::kW4A16, {0, 4, 4, true}}}) {
    const auto plan = load_plan_model(testing::checkpoint_of(c.format).string()).value();
    const ModelConfig config = load_config(testing::checkpoint_of(c.format)).value();
    Split split = make_split(c.shard.enable_attention_dp ? ParallelMode::kAdp : ParallelMode::kTp,
                             c.shard.tp_size);
    split.ep = c.shard.ep_size;
    for (const bool with_mtp : {false, true}) {
      SCOPED_TRACE(::testing::Message() << c.shard.tp_size << "x" << c.shard.ep_size << " dp "
                                        << c.shard.enable_attention_dp << " mtp " << with_mtp);
      const auto planned =
          static_cast<double>(weights_per_device(config, *plan.stored, split, with_mtp));
      for (const uint64_t taken : loaded_bytes(c.format, c.shard, with_mtp)) {
        EXPECT_LE(std::abs(static_cast<double>(taken) / planned - 1), 0.03)
            << taken << " taken, " << planned << " planned";
      }
    }
  }
}

}  // namespace
}  // namespace nibble
