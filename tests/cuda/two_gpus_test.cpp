// What two GPUs of one host do together. Skipped where there is one.
#include "tests/cuda/two_gpus.h"

#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <random>
#include <thread>

#include "nibble/comm/cuda/cuda_communicator.h"
#include "nibble/comm/thread_communicator.h"
#include "nibble/device/cuda/bf16_copies.h"
#include "nibble/device/cuda/cuda_device.h"
#include "nibble/numeric/bf16.h"
#include "tests/parallel/ranks.h"

namespace nibble {
namespace {

// A sum, a residual add and a norm of one size.
struct SumNormCase {
  int64_t rows;
  int64_t cols;
  int64_t gap;  // between rows of x and out
};

std::vector<float> random_values(int64_t count, unsigned seed) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = normal(rng);
  return values;
}

Buffer on_device(Device& device, const std::vector<float>& values) {
  Buffer buffer = device.allocate(values.size() * sizeof(float)).value();
  EXPECT_TRUE(device.copy_to_device(buffer.data(), std::as_bytes(std::span(values))));
  return buffer;
}

std::vector<float> on_host(Device& device, const Buffer& buffer) {
  std::vector<float> values(buffer.size() / sizeof(float));
  EXPECT_TRUE(device.copy_to_host(std::as_writable_bytes(std::span(values)), buffer.data()));
  return values;
}

void check_sum_norm(Device& device, Communicator& comm, const SumNormCase& c, unsigned seed) {
  const int64_t stride = c.cols + c.gap;
  const std::vector<float> x = random_values(c.rows * stride, seed);
  const std::vector<float> weight = random_values(c.cols, seed + 1);
  const std::vector<float> parts[2] = {random_values(c.rows * c.cols, seed + 2),
                                       random_values(c.rows * c.cols, seed + 3)};
  const Buffer device_x = on_device(device, x);
  const Buffer device_y = on_device(device, parts[comm.rank()]);
  const Buffer device_weight = on_device(device, weight);
  const Buffer device_out = on_device(device, std::vector<float>(x.size(), -7));
  SumNorm sum;
  sum.y = device_y.as<float>();
  sum.rows = c.rows;
  sum.cols = c.cols;
  sum.x = device_x.as<float>();
  sum.x_stride = stride;
  sum.weight = device_weight.as<const float>();
  sum.epsilon = 1e-6F;
  sum.out = device_out.as<float>();
  sum.out_stride = stride;
  ASSERT_TRUE(comm.all_reduce_sum_norm(sum));
  const std::vector<float> got_x = on_host(device, device_x);
  const std::vector<float> got_out = on_host(device, device_out);
  const int num_parts = norm_copy_parts(c.rows);
  const Bf16Copy copy =
      bf16_copies(device).find(device_out.as<float>(), c.rows, c.cols, stride, num_parts);
  ASSERT_EQ(copy.data != nullptr, c.cols % 128 == 0);
  if (copy.data != nullptr) {
    const auto count = static_cast<size_t>((num_parts - 1) * copy.part_stride + c.rows * c.cols);
    std::vector<uint16_t> rounded(count);
    ASSERT_TRUE(device.copy_to_host(std::as_writable_bytes(std::span(rounded)), copy.data));
    for (int64_t i = 0; i < c.rows * c.cols; ++i) {
      float rest = got_out[static_cast<size_t>(i / c.cols * stride + i % c.cols)];
      for (int part = 0; part < num_parts; ++part) {
        const uint16_t got = rounded[static_cast<size_t>(part * copy.part_stride + i)];
        ASSERT_EQ(got, float_to_bf16(rest)) << "part " << part << " of " << i;
        rest -= bf16_to_float(got);
      }
    }
  }
  ASSERT_TRUE(comm.status()) << comm.status().error().message;
  for (int64_t row = 0; row < c.rows; ++row) {
    std::vector<float> want(static_cast<size_t>(c.cols));
    double squares = 0;
    for (int64_t i = 0; i < c.cols; ++i) {
      const auto at = static_cast<size_t>(row * c.cols + i);
      float& value = want[static_cast<size_t>(i)];
      value = x[static_cast<size_t>(row * stride + i)] + (parts[0][at] + parts[1][at]);
      squares += static_cast<double>(value) * static_cast<double>(value);
    }
    const double scale = 1 / std::sqrt(squares / static_cast<double>(c.cols) + 1e-6F);
    for (int64_t i = 0; i < stride; ++i) {
      const auto at = static_cast<size_t>(row * stride + i);
      if (i >= c.cols) {  // not of the row
        ASSERT_EQ(got_x[at], x[at]);
        ASSERT_EQ(got_out[at], -7);
        continue;
      }
      const float value = want[static_cast<size_t>(i)];
      ASSERT_EQ(got_x[at], value) << c.rows << " rows of " << c.cols << ", row " << row;
      const double normed =
          static_cast<double>(value) * scale * static_cast<double>(weight[static_cast<size_t>(i)]);
      ASSERT_NEAR(got_out[at], normed, 1e-6 * (1 + std::abs(normed)));
    }
  }
}

// Many rows, then few, then many: blocks that took no turn find their way back.
TEST_F(TwoGpus, ASumWithANormIsThatOfTheHost) {
  auto hosts = thread_communicators(2);
  std::vector<std::thread> ranks;
  ranks.reserve(hosts.size());
  for (int r = 0; r < 2; ++r) {
    ranks.emplace_back([&, r] {
      Communicator& host = *hosts[static_cast<size_t>(r)];
      const auto device = make_cuda_device(r).value();
      bf16_copies(*device).set_enabled(true);
      CudaCommunicatorOptions options;
      options.one_shot_norm_rows = 32;
      const auto comm = cuda_communicator(*device, host, options).value();
      unsigned seed = 1;
      for (const SumNormCase& c : {SumNormCase{1, 7168, 0},
                                   {16, 7168, 0},
                                   {17, 7168, 64},
                                   {3, 36, 8},
                                   {32, 8188, 4},
                                   {1, 4, 0},
                                   {2, 7168, 0},
                                   {32, 7168, 0},
                                   {1, 7168, 0}}) {
        check_sum_norm(*device, *comm, c, seed);
        seed += 10;
      }
      const SumNorm large{nullptr, 33, 7168, nullptr, 7168, nullptr, 0, nullptr, 7168};
      EXPECT_FALSE(comm->all_reduce_sum_norm(large));
      host.barrier();
    });
  }
  for (std::thread& rank : ranks) rank.join();
}

// Steps of decoding are recorded. With attention data parallel one rank has more requests than the
// other at times, so that its passes are filled up.
TEST_F(TwoGpus, GreedyTextsAreTheReferences) {
  std::vector<Request> requests;
  std::vector<std::vector<int32_t>> want;
  const auto prompts = testing::reference_prompts();
  for (size_t i = 0; i < 14; ++i) {
    const auto& prompt = prompts[i % 7];
    Request request;
    request.prompt_token_ids = prompt.ids;
    request.params.temperature = 0;
    request.params.max_tokens = 200;
    requests.push_back(std::move(request));
    want.push_back(prompt.greedy);
  }
  // Experts in another order, four of them twice.
  const ModelConfig config = load_config(testing::demo_checkpoint()).value();
  ExpertLoad load;
  for (int layer = 0; layer < config.num_hidden_layers; ++layer) {
    if (!config.is_moe_layer(layer)) continue;
    for (int e = 0; e < config.n_routed_experts; ++e) {
      load[layer].push_back(static_cast<double>((e * 7 + layer) % config.n_routed_experts));
    }
  }
  const testing::TemporaryFolder folder;
  const std::filesystem::path placement = folder / "placed.txt";
  std::ofstream(placement) << to_text(balance_experts(load, config.n_routed_experts, 2, 4).value());
  struct Case {
    Shard shard;
    bool is_placed = false;
  };
  const Shard alltoall{0, 2, 2, true, All2AllBackend::kAlltoall};
  for (const Case& c :
       {Case{{0, 2, 1, false}}, Case{{0, 2, 2, false}}, Case{{0, 2, 2, true}}, Case{alltoall},
        Case{{0, 2, 2, false}, true}, Case{{0, 2, 2, true}, true}, Case{alltoall, true}}) {
    for (const int64_t drafts : {0, 1, 3}) {
      if (c.is_placed && drafts == 1) continue;
      SCOPED_TRACE(::testing::Message()
                   << "ep " << c.shard.ep_size << " dp " << c.shard.enable_attention_dp << " "
                   << all2all_backend_name(c.shard.all2all_backend) << " placed " << c.is_placed
                   << " drafts " << drafts);
      ModelOptions model_options;
      model_options.backend = "cuda";
      model_options.shard = c.shard;
      if (c.is_placed) model_options.expert_placement = placement;
      RankThreads ranks(testing::demo_checkpoint(), model_options);
      const auto model =
          LoadedModel::load(testing::demo_checkpoint(), ranks.model_options()).value();
      EngineOptions options;
      options.num_drafts = drafts;
      const auto engine = Engine::create(*model, options).value();
      const testing::ParallelRun run = testing::run_requests(*engine, requests);
      EXPECT_EQ(run.token_ids, want);
      EXPECT_GT(run.stats.graphs.num_replayed, 0);
    }
  }
}

}  // namespace
}  // namespace nibble
