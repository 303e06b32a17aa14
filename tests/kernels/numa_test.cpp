// Weights on NUMA nodes that this machine may not have: placement is asked of a recorder.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cerrno>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "nibble/base/error.h"
#include "nibble/kernels/cpu/cpu_kernels.h"
#include "tests/kernels/backends.h"
#include "tests/kernels/kernel_test_helpers.h"

namespace nibble {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class RecordedMemory final : public NumaMemory {
 public:
  struct Call {
    int64_t offset;  // from `base`
    int64_t bytes;
    std::vector<int> nodes;
    bool operator==(const Call&) const = default;
  };

  Status prefer(void* data, size_t bytes, int node) override { return add(data, bytes, {node}); }
  Status interleave(void* data, size_t bytes, std::span<const int> nodes) override {
    return add(data, bytes, {nodes.begin(), nodes.end()});
  }

  const std::byte* base = nullptr;
  bool refuses = false;
  std::vector<Call> calls;

 private:
  Status add(void* data, size_t bytes, std::vector<int> nodes) {
    calls.push_back(
        {static_cast<std::byte*>(data) - base, static_cast<int64_t>(bytes), std::move(nodes)});
    if (refuses) return system_error("made up", EPERM);
    return {};
  }
};

std::unique_ptr<CpuKernels> kernels_on(std::vector<NumaNode> nodes, int threads, NumaMemory* memory,
                                       Isa isa = detected_isa(), int64_t most_mappings = 65530) {
  return std::make_unique<CpuKernels>(isa, threads, CpuKernels::kMoeScratchFloats,
                                      CpuActivations::kStandard, nullptr,
                                      CpuKernels::Numa{std::move(nodes), memory, most_mappings});
}

// As the loader of weights does it.
PackedWeight place_and_pack(CpuKernels& kernels, const TestWeight& weight) {
  const HostLinear& host = weight.host;
  PackedWeight packed;
  packed.buffer =
      kernels.device().allocate(kernels.packed_bytes(host.format, host.rows, host.cols)).value();
  kernels.place_weight(packed.buffer.data(), host.format, host.rows, host.cols);
  packed.weight = kernels.pack(host, kAsIs, packed.buffer.data()).value();
  return packed;
}

const std::vector<NumaNode>& nodes_3_and_5() {
  static const std::vector<NumaNode> kNodes = {{3, {0}}, {5, {1}}};
  return kNodes;
}

// 2100 rows are 132 panels, 17 groups: of two nodes with a thread each the first has 8 groups, 64
// panels, and the second the other 68. A panel of 2048 columns of NVFP4 has 16 * 2048 * 9 / 16
// bytes.
TEST(NumaWeights, PanelsArePlacedByNodeWithoutAGap) {
  RecordedMemory memory;
  const auto kernels = kernels_on(nodes_3_and_5(), 2, &memory);
  const int64_t rows = 2100;
  const int64_t cols = 2048;
  const TestWeight weight = TestWeight::random(LinearFormat::kNvfp4, rows, cols, 1);
  const size_t bytes = kernels->packed_bytes(LinearFormat::kNvfp4, rows, cols);
  const Buffer buffer = kernels->device().allocate(bytes).value();
  memory.base = buffer.as<std::byte>();
  kernels->place_weight(buffer.data(), LinearFormat::kNvfp4, rows, cols);
  ASSERT_TRUE(kernels->pack(weight.host, kAsIs, buffer.data()).has_value());
  const int64_t panel = 16 * cols * 9 / 16;
  EXPECT_THAT(memory.calls, ElementsAre(RecordedMemory::Call{0, 64 * panel, {3}},
                                        RecordedMemory::Call{64 * panel, 68 * panel, {5}}));
}

TEST(NumaWeights, SmallOnesAndOneNodeAskForNothing) {
  RecordedMemory memory;
  const TestWeight large = TestWeight::random(LinearFormat::kNvfp4, 2100, 2048, 1);
  const TestWeight small = TestWeight::random(LinearFormat::kNvfp4, 512, 2048, 1);
  (void)place_and_pack(*kernels_on({{0, {0, 1}}}, 2, &memory), large);
  (void)place_and_pack(*kernels_on(nodes_3_and_5(), 1, &memory), large);
  (void)place_and_pack(*kernels_on(nodes_3_and_5(), 2, &memory), small);
  EXPECT_THAT(memory.calls, IsEmpty());
}

// Experts of tiers are packed at every miss.
TEST(NumaWeights, PackingAloneAsksForNothing) {
  RecordedMemory memory;
  const auto kernels = kernels_on(nodes_3_and_5(), 2, &memory);
  (void)pack_weight(*kernels, TestWeight::random(LinearFormat::kNvfp4, 2100, 2048, 1));
  EXPECT_THAT(memory.calls, IsEmpty());
}

// Of 10 mappings placement may take 5: two matrices of two nodes each.
TEST(NumaWeights, StopAtHalfOfTheMappings) {
  RecordedMemory memory;
  const auto kernels = kernels_on(nodes_3_and_5(), 2, &memory, detected_isa(), 10);
  const TestWeight weight = TestWeight::random(LinearFormat::kNvfp4, 2100, 2048, 1);
  kernels->expect_weights(2);
  ::testing::internal::CaptureStderr();
  for (int i = 0; i < 2; ++i) (void)place_and_pack(*kernels, weight);
  EXPECT_THAT(::testing::internal::GetCapturedStderr(), IsEmpty());
  EXPECT_EQ(memory.calls.size(), 4u);

  kernels->expect_weights(5);  // the two are gone
  ::testing::internal::CaptureStderr();
  for (int i = 0; i < 5; ++i) (void)place_and_pack(*kernels, weight);
  const std::string told = ::testing::internal::GetCapturedStderr();
  EXPECT_EQ(memory.calls.size(), 8u);
  EXPECT_THAT(told, HasSubstr("half of the 10 mappings"));
  EXPECT_THAT(told, HasSubstr("'sysctl vm.max_map_count=20'"));
  EXPECT_EQ(told.find("max_map_count="), told.rfind("max_map_count=")) << told;
}

TEST(NumaWeights, TheSystemTellsHowManyMappingsThereMayBe) {
  EXPECT_GE(system_most_mappings(), 1000);
}

TEST(NumaWeights, KvBProjTakesAllNodesInTurn) {
  RecordedMemory memory;
  const auto kernels = kernels_on(nodes_3_and_5(), 2, &memory);
  const MlaShape shape{16, 512, 128, 64, 128, 1.0f};
  const TestWeight weight = TestWeight::random(LinearFormat::kBf16, 16 * 256, 512, 1);
  const PackedMlaUp packed = pack_mla_up_weight(*kernels, weight, shape);
  ASSERT_EQ(memory.calls.size(), 1u);
  EXPECT_EQ(memory.calls[0].bytes, static_cast<int64_t>(packed.buffer.size()));
  EXPECT_THAT(memory.calls[0].nodes, ElementsAre(3, 5));
}

TEST(NumaWeights, ARefusalIsToldOnceAndChangesNothing) {
  RecordedMemory memory;
  memory.refuses = true;
  const auto kernels = kernels_on(nodes_3_and_5(), 2, &memory);
  const TestWeight weight = TestWeight::random(LinearFormat::kNvfp4, 2100, 2048, 1);
  ::testing::internal::CaptureStderr();
  const PackedWeight packed = place_and_pack(*kernels, weight);
  (void)place_and_pack(*kernels, weight);
  const std::string told = ::testing::internal::GetCapturedStderr();
  EXPECT_EQ(memory.calls.size(), 4u);
  EXPECT_THAT(told, HasSubstr("made up"));
  EXPECT_EQ(told.find("made up"), told.rfind("made up")) << told;
  TestMatrix x = TestMatrix::random(1, 2048, 2);
  TestMatrix out(1, 2100);
  kernels->linear(x.view(), packed.weight, out.view());
  EXPECT_TRUE(out.padding_intact());
}

// Pieces that a loop hands to a node are the groups that lie there, but for the last of a piece.
TEST(NumaWeights, PiecesFollowThePlacement) {
  RecordedMemory memory;
  const ThreadPool pool(3, Placement::kPinned, {{0, {0, 1}}, {1, {2, 3}}});
  const WeightPlacement placement(pool, memory);
  std::vector<int64_t> bounds;
  placement.piece_bounds(17, 1, &bounds);
  EXPECT_THAT(bounds, ElementsAre(0, 11, 17));
  placement.piece_bounds(17, 4, &bounds);  // 4 groups each: the piece 8..12 begins with node 0's
  EXPECT_THAT(bounds, ElementsAre(0, 3, 5));
  placement.piece_bounds(1, 1, &bounds);
  EXPECT_THAT(bounds, ElementsAre(0, 0, 1));
}

// The bits of a linear, an MLP and a mixture, for few tokens and many.
std::vector<float> all_results(Kernels& kernels) {
  std::vector<float> results;
  const auto keep = [&](TestMatrix& out) {
    EXPECT_TRUE(out.padding_intact());
    const std::vector<float> values = out.values();
    results.insert(results.end(), values.begin(), values.end());
  };
  for (const LinearFormat format : kAllFormats) {
    const TestWeight weight = TestWeight::random(format, 1000, 256, 1);
    const PackedWeight packed = pack_weight(kernels, weight);
    const PackedMlp mlp = pack_mlp(kernels, TestMlp::random(format, 256, 640, 2));
    for (const int64_t tokens : {1, 7, 70}) {
      TestMatrix x = TestMatrix::random(tokens, 256, 3);
      TestMatrix wide(tokens, 1000);
      kernels.linear(x.view(), packed.weight, wide.view());
      keep(wide);
      TestMatrix out(tokens, 256);
      kernels.mlp(x.view(), mlp.weight(), out.view());
      keep(out);
    }
  }
  std::vector<PackedMlp> experts;
  std::vector<MlpWeight> weights;
  for (uint32_t e = 0; e < 8; ++e) {
    experts.push_back(pack_mlp(kernels, TestMlp::random(LinearFormat::kNvfp4, 256, 384, 10 + e)));
    weights.push_back(experts.back().weight());
  }
  RouterShape shape;
  shape.n_routed_experts = 8;
  shape.num_experts_per_tok = 2;
  for (const int64_t tokens : {1, 33}) {
    TestMatrix x = TestMatrix::random(tokens, 256, 4);
    std::vector<int32_t> ids;
    for (int64_t t = 0; t < tokens; ++t) {
      ids.push_back(static_cast<int32_t>(t * 3 % 8));
      ids.push_back(static_cast<int32_t>((t * 3 + 1 + t % 5) % 8));
    }
    const std::vector<float> scales(ids.size(), 0.5f);
    TestMatrix out(tokens, 256);
    kernels.moe(x.view(), weights, &weights[0], shape, ids.data(), scales.data(), out.view());
    keep(out);
  }
  return results;
}

TEST(NumaWeights, ResultsHaveTheSameBitsOnAnyNodes) {
  RecordedMemory memory;
  std::vector<Isa> levels = {Isa::kPortable};
  if (detected_isa() != Isa::kPortable) levels.push_back(detected_isa());
  for (const Isa isa : levels) {
    const std::vector<float> want = all_results(*kernels_on({{0, {0, 1}}}, 2, &memory, isa));
    for (const int threads : {2, 3, 4}) {
      const std::vector<float> two =
          all_results(*kernels_on(nodes_3_and_5(), threads, &memory, isa));
      EXPECT_TRUE(same_bits(two, want)) << isa_name(isa) << ", " << threads << " threads";
    }
    const std::vector<float> three =
        all_results(*kernels_on({{0, {0}}, {1, {1}}, {2, {2}}}, 4, &memory, isa));
    EXPECT_TRUE(same_bits(three, want)) << isa_name(isa) << ", three nodes";
  }
}

}  // namespace
}  // namespace nibble
