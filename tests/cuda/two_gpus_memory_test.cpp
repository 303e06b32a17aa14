// What nibble plan says of each GPU's memory, and what ranks take there: three layers of R1's
// widths with made-up weights (dummy_weights.json), so that they weigh something.
#include <gtest/gtest.h>

#include <cmath>
#include <iostream>
#include <thread>

#include "nibble/checkpoint/open_source.h"
#include "nibble/comm/thread_communicator.h"
#include "nibble/engine/rank_link.h"
#include "nibble/engine/rank_passes.h"
#include "nibble/plan/device_memory.h"
#include "tests/cuda/two_gpus.h"
#include "tests/parallel/ranks.h"

namespace nibble {
namespace {

constexpr int64_t kMaxNumTokens = 2048;
constexpr int64_t kMaxBatchSize = 256;
constexpr double kCacheFraction = 0.9;

// A folder of one dense and two MoE layers of DeepSeek-R1, as tools/make_r1_dummy.py makes it.
void write_r1_slice(const std::filesystem::path& folder) {
  std::ifstream demo(testing::demo_checkpoint() / "config.json");
  auto config = nlohmann::json::parse(demo);
  config.erase("quantization_config");
  config.update(nlohmann::json::parse(R"({
    "vocab_size": 129280, "hidden_size": 7168, "intermediate_size": 18432,
    "moe_intermediate_size": 2048, "num_hidden_layers": 3, "num_nextn_predict_layers": 1,
    "num_attention_heads": 128, "num_key_value_heads": 128, "n_routed_experts": 256,
    "num_experts_per_tok": 8, "n_group": 8, "topk_group": 4, "kv_lora_rank": 512,
    "q_lora_rank": 1536, "first_k_dense_replace": 1, "max_position_embeddings": 163840})"));
  config["rope_scaling"]["factor"] = 40;
  config["rope_scaling"]["original_max_position_embeddings"] = 4096;
  std::ofstream(folder / "config.json") << config;
  std::ofstream(folder / "hf_quant_config.json")
      << R"({"producer": {"name": "modelopt", "version": "0"}, "quantization": {"quant_algo":
          "NVFP4", "kv_cache_quant_algo": "FP8", "group_size": 16, "exclude_modules":
          ["lm_head"]}})";
  std::ofstream(folder / kDummyWeightsFile) << R"({"layout": "nvfp4_v2", "seed": 0})";
  for (const char* name : {"tokenizer.json", "tokenizer_config.json", "generation_config.json"}) {
    std::filesystem::copy_file(testing::demo_checkpoint() / name, folder / name);
  }
}

struct Taken {
  uint64_t total = 0;         // of the GPU
  uint64_t free_before = 0;   // as the driver says, when there is a context
  uint64_t free_loaded = 0;   // with weights
  uint64_t free_running = 0;  // with everything
  uint64_t weights = 0;       // in buffers
  uint64_t cache = 0;
};

// Loads the folder on the shard's GPUs, a thread for each, and sets up passes with all of the
// cache.
std::vector<Taken> take(const std::filesystem::path& folder, const Shard& shard,
                        int64_t* num_blocks, const PassPlan& plan) {
  auto comms = thread_communicators(shard.tp_size);
  std::vector<Taken> taken(comms.size());
  std::vector<std::thread> threads;
  for (size_t r = 0; r < comms.size(); ++r) {
    threads.emplace_back([&, r] {
      Taken& mine = taken[r];
      const auto device = make_cuda_device(static_cast<int>(r)).value();
      mine.total = device->memory().value().total_bytes;
      mine.free_before = device->memory().value().free_bytes;
      ModelOptions options;
      options.backend = "cuda";
      options.cuda.device = static_cast<int>(r);
      options.threads = 12;
      options.load_mtp = false;
      options.shard = shard;
      options.shard.rank = static_cast<int>(r);
      options.comm = comms[r].get();
      const auto model = LoadedModel::load(folder, options);
      if (!model) {
        ADD_FAILURE() << model.error().message;
        comms[r]->abort(model.error().message);
        return;
      }
      mine.free_loaded = device->memory().value().free_bytes;
      Device& of_model = (*model)->kernels->device();
      mine.weights = of_model.used_bytes(MemoryUse::kWeights);
      if (r > 0) {
        // Rank 0's message, as in serve_rank(), but for a look at the memory.
        std::vector<std::byte> message;
        comms[r]->broadcast_message(message, 0);
      }
      const auto made = r == 0 ? set_up_all_ranks(**model, plan) : set_up_passes(**model, plan);
      ASSERT_TRUE(made.has_value()) << made.error().message;
      if (r == 0) *num_blocks = made->num_blocks;
      mine.cache = of_model.used_bytes(MemoryUse::kKvCache);
      mine.free_running = device->memory().value().free_bytes;
      if (r > 0) {
        std::vector<std::byte> end;
        comms[r]->broadcast_message(end, 0);  // the one of rank 0's model when it goes
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  return taken;
}

TEST_F(TwoGpus, PlannedMemoryIsWithinThreePercentOfWhatEachRankTakes) {
  const testing::TemporaryFolder temporary;
  const std::filesystem::path folder = std::filesystem::path(temporary / "r1");
  std::filesystem::create_directories(folder);
  write_r1_slice(folder);
  const ModelConfig config = load_config(folder).value();
  const auto opened = open_source(folder, config).value();
  const ModelWeights stored = weights_in(config, opened.source->tensors(), nullptr);
  for (const Shard& shard : {Shard{0, 2, 1, false}, {0, 2, 2, false}, {0, 2, 2, true}}) {
    SCOPED_TRACE(::testing::Message()
                 << "ep " << shard.ep_size << " dp " << shard.enable_attention_dp);
    Split split = make_split(shard.enable_attention_dp ? ParallelMode::kAdp : ParallelMode::kTp,
                             shard.tp_size);
    split.ep = shard.ep_size;
    PassPlan plan;
    plan.cache = {DType::kF8E4m3, 64, 0, false};
    plan.cache_fraction = kCacheFraction;
    plan.max_rows = kMaxNumTokens;
    plan.max_generated = kMaxBatchSize;
    plan.max_batch_size = 4096;  // no bound on the cache
    int64_t num_blocks = 0;
    const std::vector<Taken> taken = take(folder, shard, &num_blocks, plan);
    for (size_t r = 0; r < taken.size(); ++r) {
      const Taken& t = taken[r];
      MemoryRequest request;
      request.device_bytes = static_cast<int64_t>(t.total);
      request.max_num_tokens = kMaxNumTokens;
      request.max_batch = kMaxBatchSize;
      request.kv_fraction = kCacheFraction;
      request.kv = KvFormat::kFp8;
      request.graphs = false;
      const RankMemory planned = device_memory(config, stored, split, request, MemoryConstants());
      const auto gb = [](auto bytes) { return static_cast<double>(bytes) / 1e9; };
      const auto off = [&](auto real, auto of_plan) { return gb(real) / gb(of_plan) - 1; };
      std::cout << "TP2 EP" << shard.ep_size << (shard.enable_attention_dp ? " attention DP" : "")
                << " rank " << r << ": weights " << gb(t.weights) << " GB in buffers, "
                << gb(t.free_before - t.free_loaded) << " by the driver, " << gb(planned.weights)
                << " planned; cache " << gb(t.cache) << " GB, " << gb(planned.pool)
                << " planned; free at the end " << gb(t.free_running) << " of " << gb(t.total)
                << "\n";
      EXPECT_LE(std::abs(off(t.weights, planned.weights)), 0.03);
      EXPECT_LE(std::abs(off(t.total - t.free_running,
                             planned.weights + planned.pool + planned.workspace + planned.fixed)),
                0.03);
      // Of what is left. With attention data parallel operations keep memory for the tokens of all
      // ranks, which planner.md's workspace leaves out.
      EXPECT_LE(std::abs(off(t.cache, planned.pool)), shard.enable_attention_dp ? 0.04 : 0.03);
    }
  }
}

}  // namespace
}  // namespace nibble
