// Experts in a GPU's slots, page-locked RAM and files: the same bits wherever they lie, and copies
// that wait for who reads and are waited for.
#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>

#include "nibble/device/cuda/cuda_device.h"
#include "nibble/device/cuda/cuda_stream.h"
#include "nibble/kernels/cuda/cuda_kernels.h"
#include "nibble/kernels/cuda/host/tile_host_mlp.h"
#include "tests/offload/offload_runs.h"

namespace nibble {
namespace {

std::unique_ptr<LoadedModel> load_on_gpu(const std::filesystem::path& folder,
                                         const ExpertOptions& experts) {
  ModelOptions options;
  options.backend = "cuda";
  options.experts = experts;
  options.cuda.batch_invariant = true;  // without it the whole model's bits are others
  auto model = LoadedModel::load(folder, options);
  if (!model) throw std::runtime_error(model.error().message);
  return *std::move(model);
}

// The demo as nibble pack --backend cuda leaves it.
const std::filesystem::path& packed_for_gpu() {
  static const std::filesystem::path folder = [] {
    const auto made = testing::offload_folder() / "packed_for_gpu";
    std::filesystem::copy(testing::demo_checkpoint(), made,
                          std::filesystem::copy_options::recursive);
    const auto kernels = make_cuda_kernels().value();
    const auto report = pack_experts(*testing::demo_parts().source, testing::demo_parts().config,
                                     *kernels, made / kExpertFileName, {});
    if (!report) throw std::runtime_error(report.error().message);
    return made;
  }();
  return folder;
}

uint64_t record_bytes() {
  return ExpertFile::open(packed_for_gpu() / kExpertFileName)->header().max_record_bytes;
}

struct GpuPlaces {
  int64_t gpu_records;
  int64_t ram_records;
};

constexpr int64_t kGpuDemoExperts = 4 * 16;

class OffloadOnCuda : public ::testing::TestWithParam<GpuPlaces> {};

// All, half, a tenth, one a layer and a single one on the GPU; all, half and two in RAM.
TEST_P(OffloadOnCuda, TokensAreThoseOfTheModelOnTheGpu) {
  const auto [gpu_records, ram_records] = GetParam();
  static const auto plain = load_on_gpu(testing::demo_checkpoint(), {});
  for (const bool packed : {true, false}) {
    for (const int64_t batch : {int64_t{1}, int64_t{4}}) {
      for (const int64_t drafts : {int64_t{0}, int64_t{2}}) {
        SCOPED_TRACE("batch " + std::to_string(batch) + ", drafts " + std::to_string(drafts));
        ExpertOptions experts;
        experts.gpu_memory_bytes = static_cast<uint64_t>(gpu_records) * record_bytes();
        experts.memory_bytes = static_cast<uint64_t>(ram_records) * record_bytes();
        experts.copy_streams = batch == 1 ? 1 : 2;
        const auto model =
            load_on_gpu(packed ? packed_for_gpu() : testing::demo_checkpoint(), experts);
        const auto run = testing::run_requests(*model, batch, drafts);
        EXPECT_EQ(run.outputs, testing::run_requests(*plain, batch, drafts).outputs);
        const ExpertStoreStats stats = model->expert_store->stats();
        EXPECT_EQ(stats.num_slots, gpu_records);
        EXPECT_EQ(stats.below.num_slots, ram_records);
        const bool all_there = gpu_records == kGpuDemoExperts;
        EXPECT_EQ(stats.num_misses == 0, all_there);
        EXPECT_EQ(run.stats.graphs.num_replayed > 0, all_there);
        EXPECT_EQ(stats.num_evictions > 0, !all_there);
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Residency, OffloadOnCuda,
                         ::testing::Values(GpuPlaces{kGpuDemoExperts, 8}, GpuPlaces{32, 64},
                                           GpuPlaces{32, 32}, GpuPlaces{6, 64}, GpuPlaces{4, 2},
                                           GpuPlaces{1, 2}));

// Experts that lie in RAM computed by the host: the way is the same, the last bits are not, so the
// counters are what can be compared; StagedMoeOnCuda compares values.
TEST(HostExpertsOnCuda, AnswerEveryRequest) {
  for (const HostExperts mode : {HostExperts::kAll, HostExperts::kAuto}) {
    for (const int64_t batch : {int64_t{1}, int64_t{4}}) {
      ExpertOptions experts;
      experts.gpu_memory_bytes = 8 * record_bytes();
      experts.memory_bytes = static_cast<uint64_t>(kGpuDemoExperts) * record_bytes();
      experts.cpu_experts = mode;
      const auto model = load_on_gpu(packed_for_gpu(), experts);
      const auto run = testing::run_requests(*model, batch, 2);
      for (const auto& output : run.outputs) EXPECT_FALSE(output.tokens.empty());
      const ExpertStoreStats stats = model->expert_store->stats();
      if (mode == HostExperts::kAll) {
        EXPECT_GT(stats.num_on_host, 0);
      }
      EXPECT_LE(stats.num_on_host, stats.num_misses);
    }
  }
}

// A layer's steps with experts that come in several parts against one call, for few tokens and for
// more than the many that have kernels of their own.
TEST(StagedMoeOnCuda, HasTheBitsOfOneCall) {
  CudaOptions options;
  options.fixed_expert_order = true;
  const auto kernels = make_cuda_kernels(options).value();
  Device& device = kernels->device();
  constexpr int kExperts = 16;
  constexpr int64_t kHidden = 512;
  constexpr int64_t kIntermediate = 256;
  RouterShape shape;
  shape.n_routed_experts = kExperts;
  shape.num_experts_per_tok = 4;
  std::mt19937 rng(17);
  std::vector<Buffer> buffers;
  const auto matrix = [&](int64_t rows, int64_t cols) {
    std::vector<uint8_t> codes(static_cast<size_t>(rows * cols / 2));
    std::vector<uint8_t> scales(static_cast<size_t>(rows * cols / 16));
    for (uint8_t& code : codes) code = static_cast<uint8_t>(rng());
    for (uint8_t& scale : scales) scale = static_cast<uint8_t>(0x30 + rng() % 16);
    HostLinear host;
    host.format = LinearFormat::kNvfp4;
    host.rows = rows;
    host.cols = cols;
    host.data = codes.data();
    host.scales = scales.data();
    host.global_scale = 0.01f;
    buffers.push_back(device.allocate(kernels->packed_bytes(host.format, rows, cols)).value());
    return kernels->pack(host, ActivationFormat::kUnquantized, buffers.back().data()).value();
  };
  std::vector<MlpWeight> experts;
  for (int e = 0; e <= kExperts; ++e) {
    const LinearWeight gate = matrix(kIntermediate, kHidden);
    const LinearWeight up = matrix(kIntermediate, kHidden);
    experts.push_back({gate, up, matrix(kHidden, kIntermediate)});
  }
  const MlpWeight shared = experts.back();
  experts.pop_back();
  const auto on_device = [&](const auto& values) {
    const auto bytes = std::as_bytes(std::span(values));
    Buffer buffer = device.allocate(bytes.size()).value();
    EXPECT_TRUE(device.copy_to_device(buffer.data(), bytes));
    return buffer;
  };
  for (const int64_t tokens : {1, 3, 8, 130, 600, 4500}) {
    for (const bool with_shared : {true, false}) {
      SCOPED_TRACE(tokens);
      const auto count = static_cast<size_t>(tokens * shape.num_experts_per_tok);
      std::vector<float> x(static_cast<size_t>(tokens * kHidden));
      for (float& value : x) value = std::normal_distribution<float>()(rng);
      std::vector<int32_t> ids;
      std::vector<float> weights;
      for (int64_t t = 0; t < tokens; ++t) {
        const auto first = static_cast<int32_t>(rng() % kExperts);
        for (int32_t j = 0; j < shape.num_experts_per_tok; ++j) {
          ids.push_back((first + 3 * j) % kExperts);
          weights.push_back(0.1f + static_cast<float>(rng() % 100) / 100);
        }
      }
      const Buffer x_memory = on_device(x);
      const Buffer ids_memory = on_device(ids);
      const Buffer weights_memory = on_device(weights);
      const size_t bytes = x.size() * sizeof(float);
      const Buffer want_memory = device.allocate(bytes).value();
      const Buffer got_memory = device.allocate(bytes).value();
      const auto view = [&](const Buffer& buffer) {
        return MatrixView{buffer.data(), DType::kF32, tokens, kHidden, kHidden};
      };
      const MlpWeight* const one_shared = with_shared ? &shared : nullptr;
      kernels->moe(view(x_memory), experts, one_shared, shape, ids_memory.as<int32_t>(),
                   weights_memory.as<float>(), view(want_memory));
      StagedMoe& staged = *kernels->staged_moe();
      staged.begin({view(x_memory), one_shared, kIntermediate, &shape, ids_memory.as<int32_t>(),
                    weights_memory.as<float>()},
                   {});
      const StagedMoeChoices choices = staged.choices().value();
      EXPECT_TRUE(std::equal(ids.begin(), ids.end(), choices.expert_ids.begin()));
      EXPECT_TRUE(std::equal(weights.begin(), weights.end(), choices.weights.begin()));
      ASSERT_EQ(choices.expert_ids.size(), count);
      // Experts that are not ready have no data, and those that ran lose theirs.
      for (const std::vector<int32_t>& ready :
           {std::vector<int32_t>{5}, {0, 1, 2, 3, 4, 6, 7, 8}, {9, 11}, {10, 12, 13, 14, 15}}) {
        std::vector<MlpWeight> table = experts;
        for (int32_t e = 0; e < kExperts; ++e) {
          if (std::find(ready.begin(), ready.end(), e) != ready.end()) continue;
          MlpWeight& gone = table[static_cast<size_t>(e)];
          gone.gate_proj.data = gone.up_proj.data = gone.down_proj.data = nullptr;
        }
        staged.run(table, ready);
      }
      staged.end(view(got_memory));
      ASSERT_TRUE(device.synchronize());
      std::vector<float> want(x.size());
      std::vector<float> got(x.size());
      ASSERT_TRUE(device.copy_to_host(std::as_writable_bytes(std::span(want)), want_memory.data()));
      ASSERT_TRUE(device.copy_to_host(std::as_writable_bytes(std::span(got)), got_memory.data()));
      EXPECT_EQ(want, got);
    }
  }
}

// Experts computed by the host from what the device packed, against the device.
TEST(HostExpertsOnCuda, ValuesAreTheDevicesWithinBf16) {
  const auto kernels = make_cuda_kernels().value();
  Device& device = kernels->device();
  std::mt19937 rng(23);
  for (const LinearFormat format :
       {LinearFormat::kNvfp4, LinearFormat::kFp8Block, LinearFormat::kBf16, LinearFormat::kF32}) {
    SCOPED_TRACE(static_cast<int>(format));
    std::vector<Buffer> on_device;
    std::vector<Buffer> on_host;
    MlpWeight there;
    MlpWeight here;
    const auto matrix = [&](int64_t rows, int64_t cols, LinearWeight* device_weight,
                            LinearWeight* host_weight) {
      const size_t width = format == LinearFormat::kF32 ? 4 : format == LinearFormat::kBf16 ? 2 : 1;
      std::vector<uint8_t> data(static_cast<size_t>(rows * cols) * width);
      std::vector<uint8_t> scales;
      for (uint8_t& byte : data) byte = static_cast<uint8_t>(rng());
      if (format == LinearFormat::kNvfp4) {
        scales.resize(static_cast<size_t>(rows * cols / 16));
        for (uint8_t& scale : scales) scale = static_cast<uint8_t>(0x20 + rng() % 32);
      } else if (format == LinearFormat::kFp8Block) {
        for (uint8_t& code : data)
          code = static_cast<uint8_t>((code & 0x80) | (code & 0x7f) % 0x60);
        std::vector<float> blocks(static_cast<size_t>((rows + 127) / 128 * ((cols + 127) / 128)));
        for (float& scale : blocks) scale = 0.001f * static_cast<float>(1 + rng() % 9);
        scales.resize(blocks.size() * sizeof(float));
        std::memcpy(scales.data(), blocks.data(), scales.size());
      } else {
        for (size_t i = 0; i < data.size(); i += width) {
          const float value = std::normal_distribution<float>(0, 0.05f)(rng);
          uint8_t bytes[4];
          std::memcpy(bytes, &value, 4);
          std::memcpy(data.data() + i, bytes + 4 - width, width);
        }
      }
      HostLinear host;
      host.format = format;
      host.rows = rows;
      host.cols = cols;
      host.data = data.data();
      host.scales = scales.data();
      host.global_scale = 0.01f;
      const size_t bytes = kernels->packed_bytes(format, rows, cols);
      on_device.push_back(device.allocate(bytes).value());
      *device_weight =
          kernels->pack(host, ActivationFormat::kUnquantized, on_device.back().data()).value();
      on_host.push_back(device.allocate_host_visible(bytes).value());
      EXPECT_TRUE(
          device.copy_to_host({on_host.back().as<std::byte>(), bytes}, on_device.back().data()));
      *host_weight = *device_weight;
      host_weight->data = on_host.back().data();
    };
    constexpr int64_t kHidden = 1024;
    constexpr int64_t kIntermediate = 272;
    matrix(kIntermediate, kHidden, &there.gate_proj, &here.gate_proj);
    matrix(kIntermediate, kHidden, &there.up_proj, &here.up_proj);
    matrix(kHidden, kIntermediate, &there.down_proj, &here.down_proj);
    constexpr int64_t kTokens = 3;
    std::vector<float> x(kTokens * kHidden);
    for (float& value : x) value = std::normal_distribution<float>()(rng);
    const Buffer x_memory = device.allocate(x.size() * sizeof(float)).value();
    const Buffer y_memory = device.allocate(x.size() * sizeof(float)).value();
    ASSERT_TRUE(device.copy_to_device(x_memory.data(), std::as_bytes(std::span(x))));
    kernels->mlp({x_memory.data(), DType::kF32, kTokens, kHidden, kHidden}, there,
                 {y_memory.data(), DType::kF32, kTokens, kHidden, kHidden});
    ASSERT_TRUE(device.synchronize());
    std::vector<float> want(x.size());
    ASSERT_TRUE(device.copy_to_host(std::as_writable_bytes(std::span(want)), y_memory.data()));
    for (const bool fast : {true, false}) {
      const auto mlp = cuda::make_tile_host_mlp(3, fast);
      SCOPED_TRACE(mlp->name());
      std::vector<float> got(x.size());
      std::vector<const float*> from;
      std::vector<float*> to;
      for (int64_t t = 0; t < kTokens; ++t) {
        from.push_back(x.data() + t * kHidden);
        to.push_back(got.data() + t * kHidden);
      }
      const HostMlpRun run{&here, from, to};
      mlp->run(std::span(&run, 1));
      double difference = 0;
      double size = 0;
      for (size_t i = 0; i < got.size(); ++i) {
        difference += std::pow(static_cast<double>(got[i]) - want[i], 2);
        size += std::pow(static_cast<double>(want[i]), 2);
      }
      EXPECT_GT(size, 0);
      EXPECT_LE(difference, 4e-5 * size);
    }
  }
}

// A copy that may only begin behind the device's work, and work that may only begin behind a copy.
TEST(CudaTransferQueue, OrdersCopiesAndTheDevicesWork) {
  const auto device = make_cuda_device(0).value();
  const cudaStream_t stream = cuda_stream(*device);
  constexpr size_t kBytes = size_t{256} << 20;
  const Buffer slot = device->allocate(kBytes).value();
  const Buffer read = device->allocate(kBytes).value();
  const Buffer host = device->allocate_host_visible(kBytes).value();
  for (const int streams : {1, 2}) {
    const auto queue = device->make_transfer_queue(streams).value();
    for (int round = 0; round < 8; ++round) {
      SCOPED_TRACE(round);
      std::memset(host.data(), 2 * round + 1, kBytes);
      ASSERT_EQ(cudaMemsetAsync(slot.data(), 2 * round, kBytes, stream), cudaSuccess);
      // Reads of the old contents, long enough for a copy that did not wait to be seen.
      for (int i = 0; i < 20; ++i) {
        ASSERT_EQ(
            cudaMemcpyAsync(read.data(), slot.data(), kBytes, cudaMemcpyDeviceToDevice, stream),
            cudaSuccess);
      }
      const uint64_t mark = queue->mark();
      const uint64_t ticket =
          queue->copy(slot.as<std::byte>(), {host.as<std::byte>(), kBytes}, mark);
      std::vector<uint8_t> old(kBytes);
      ASSERT_EQ(cudaMemcpyAsync(old.data(), read.data(), kBytes, cudaMemcpyDeviceToHost, stream),
                cudaSuccess);
      queue->hold_device_until(ticket);
      ASSERT_EQ(cudaMemcpyAsync(read.data(), slot.data(), kBytes, cudaMemcpyDeviceToDevice, stream),
                cudaSuccess);
      std::vector<uint8_t> now(kBytes);
      ASSERT_TRUE(device->copy_to_host(std::as_writable_bytes(std::span(now)), read.data()));
      ASSERT_TRUE(queue->wait(ticket));
      EXPECT_TRUE(std::all_of(old.begin(), old.end(), [&](uint8_t b) { return b == 2 * round; }));
      EXPECT_TRUE(
          std::all_of(now.begin(), now.end(), [&](uint8_t b) { return b == 2 * round + 1; }));
    }
  }
}

TEST(OffloadOptionsOnCuda, BudgetsThatHoldNoExpertAreRefused) {
  ModelOptions options;
  options.backend = "cuda";
  options.experts.gpu_memory_bytes = 4096;
  const auto small = LoadedModel::load(testing::demo_checkpoint(), options);
  ASSERT_FALSE(small);
  EXPECT_EQ(small.error().code, ErrorCode::kInvalidArgument);
  EXPECT_NE(small.error().message.find("--gpu-expert-memory"), std::string::npos);
}

}  // namespace
}  // namespace nibble
