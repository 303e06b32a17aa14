// Experts that a device lacks and the host computes where they lie: a MoE layer in steps as a GPU
// takes it, on a device made of host memory. There both compute with the cpu backend, so that the
// bits have to be those of one call whatever is computed where.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "nibble/base/check.h"
#include "nibble/kernels/host_mlp.h"
#include "nibble/model/staged_expert_moe.h"
#include "nibble/offload/host_expert_rates.h"
#include "tests/offload/copying_device.h"
#include "tests/offload/offload_runs.h"

namespace nibble {
namespace {

class CpuHostMlp final : public HostMlp {
 public:
  explicit CpuHostMlp(Kernels& cpu) : cpu_(cpu) {}
  const char* name() const override { return "cpu"; }
  void run(std::span<const HostMlpRun> runs) override {
    for (const HostMlpRun& run : runs) {
      const int64_t cols = run.weight->gate_proj.cols;
      for (size_t t = 0; t < run.x.size(); ++t) {
        ++rows;
        cpu_.mlp({const_cast<float*>(run.x[t]), DType::kF32, 1, cols, cols}, *run.weight,
                 {run.out[t], DType::kF32, 1, cols, cols});
      }
    }
  }
  int64_t rows = 0;

 private:
  Kernels& cpu_;
};

class CpuStagedMoe final : public StagedMoe {
 public:
  explicit CpuStagedMoe(Kernels& cpu) : cpu_(cpu), mlp_(cpu) {}

  void begin(const StagedMoeLayer& layer, const std::optional<StagedMoeGuess>& /*guess*/,
             bool with_x) override {
    layer_ = layer;
    has_x_ = with_x;
    outputs_.assign(static_cast<size_t>(num_choices() * layer.x.cols), 0.0f);
    done_.assign(static_cast<size_t>(num_choices()), false);
  }
  Result<StagedMoeChoices> choices() override {
    const auto count = static_cast<size_t>(num_choices());
    StagedMoeChoices choices{{layer_.expert_ids, count}, {layer_.weights, count}, {}, {}, {}};
    if (has_x_) choices.x = layer_.x;
    return choices;
  }
  void run(std::span<const MlpWeight> experts, std::span<const int32_t> ready) override {
    compute(experts, ready);
  }
  void run_on_host(std::span<const MlpWeight> experts, std::span<const int32_t> ids) override {
    EXPECT_TRUE(has_x_);
    compute(experts, ids);
  }
  HostMlp* host_mlp() override { return &mlp_; }
  void end(const MatrixView& out) override {
    for (const bool done : done_) EXPECT_TRUE(done);
    std::vector<float> shared(static_cast<size_t>(out.cols));
    for (int64_t t = 0; t < out.rows; ++t) {
      float* const sum = out.row<float>(t);
      std::fill_n(sum, out.cols, 0.0f);
      for (int64_t i = t * slots(); i < (t + 1) * slots(); ++i) {
        for (int64_t c = 0; c < out.cols; ++c) {
          sum[c] += layer_.weights[i] * outputs_[static_cast<size_t>(i * out.cols + c)];
        }
      }
      if (layer_.shared == nullptr) continue;
      cpu_.mlp({layer_.x.row<float>(t), DType::kF32, 1, out.cols, out.cols}, *layer_.shared,
               {shared.data(), DType::kF32, 1, out.cols, out.cols});
      for (int64_t c = 0; c < out.cols; ++c) sum[c] += shared[static_cast<size_t>(c)];
    }
  }

 private:
  int64_t slots() const { return layer_.shape->num_experts_per_tok; }
  int64_t num_choices() const { return layer_.x.rows * slots(); }
  void compute(std::span<const MlpWeight> experts, std::span<const int32_t> ids) {
    for (const int32_t id : ids) {
      std::vector<const float*> from;
      std::vector<float*> to;
      for (int64_t i = 0; i < num_choices(); ++i) {
        if (layer_.expert_ids[i] != id) continue;
        EXPECT_FALSE(done_[static_cast<size_t>(i)]);
        done_[static_cast<size_t>(i)] = true;
        from.push_back(layer_.x.row<const float>(i / slots()));
        to.push_back(outputs_.data() + i * layer_.x.cols);
      }
      const HostMlpRun run{&experts[static_cast<size_t>(id)], from, to};
      mlp_.run(std::span(&run, 1));
    }
  }

  Kernels& cpu_;
  CpuHostMlp mlp_;
  StagedMoeLayer layer_;
  bool has_x_ = false;
  std::vector<float> outputs_;
  std::vector<bool> done_;
};

// Of a backend what staged_moe_from_store() asks for.
class StagedKernels final : public Kernels {
 public:
  explicit StagedKernels(Kernels& cpu) : staged_(cpu) {}
  StagedMoe* staged_moe() override { return &staged_; }
  std::string_view name() const override { return "staged"; }
  DType activation_dtype() const override { return DType::kF32; }
  Device& device() override { return testing::copying_device(); }
  size_t packed_bytes(LinearFormat, int64_t, int64_t) const override { return 0; }
  std::string_view packed_layout() const override { return ""; }
  Result<LinearWeight> pack(const HostLinear&, ActivationFormat, void*) const override {
    return LinearWeight();
  }
  size_t packed_mla_up_bytes(LinearFormat, const MlaShape&) const override { return 0; }
  Result<MlaUpWeight> pack_mla_up(const HostLinear&, const MlaShape&, void*) const override {
    return MlaUpWeight();
  }
  void embed(const MatrixView&, std::span<const int32_t>, const MatrixView&) override { never(); }
  void rms_norm(const MatrixView&, const float*, float, const MatrixView&) override { never(); }
  void linear(const MatrixView&, const LinearWeight&, const MatrixView&) override { never(); }
  void add(const MatrixView&, const MatrixView&) override { never(); }
  void rotary_query(const MatrixView&, const MlaShape&, const RopeTable&,
                    const AttentionBatch&) override {
    never();
  }
  void mla_cache_write(const MatrixView&, const float*, float, const MlaShape&, const RopeTable&,
                       const AttentionBatch&, const KvCacheView&) override {
    never();
  }
  void mla_attention(const MatrixView&, const MlaUpWeight&, const MlaShape&, const AttentionBatch&,
                     const KvCacheView&, const MatrixView&) override {
    never();
  }
  void mlp(const MatrixView&, const MlpWeight&, const MatrixView&) override { never(); }
  void route(const MatrixView&, const LinearWeight&, const float*, const RouterShape&, int32_t*,
             float*) override {
    never();
  }
  void moe(const MatrixView&, std::span<const MlpWeight>, const MlpWeight*, const RouterShape&,
           const int32_t*, const float*, const MatrixView&) override {
    never();
  }

 private:
  static void never() { NIBBLE_CHECK(false); }
  CpuStagedMoe staged_;
};

struct HostCase {
  HostExperts mode;
  HostExpertRates rates;
  int64_t ram_records;
};

class HostExpertsInALayer : public ::testing::TestWithParam<HostCase> {};

TEST_P(HostExpertsInALayer, HaveTheBitsOfOneCall) {
  const HostCase& places = GetParam();
  const auto model = testing::load_model(testing::demo_checkpoint(), "cpu");
  Kernels& cpu = *model->kernels;
  StagedKernels staged(cpu);
  TieredStoreOptions options;
  options.prefetch_layers = 0;
  const auto store =
      testing::device_store(testing::packed_loader(testing::packed_demo()), 12, places.ram_records,
                            std::move(options), places.mode, places.rates);
  auto workspace = Workspace::create(model->config, cpu, 40).value();
  const RouterShape& shape = model->weights.router_shape;
  std::mt19937 rng(5);
  int64_t wanted = 0;
  for (int step = 0; step < 30; ++step) {
    const int64_t tokens = step % 10 == 9 ? 40 : 1 + step % 4;
    const int64_t hidden = model->config.hidden_size;
    std::vector<float> x(static_cast<size_t>(tokens * hidden));
    for (float& value : x) value = std::normal_distribution<float>()(rng);
    std::vector<float> want(x.size());
    std::vector<float> got(x.size());
    const auto view = [&](std::vector<float>& values) {
      return MatrixView{values.data(), DType::kF32, tokens, hidden, hidden};
    };
    const LayerWeights& layer = model->weights.layers[static_cast<size_t>(1 + step % 3)];
    const MoeWeights& moe = *layer.moe;
    cpu.route(view(x), moe.gate, moe.e_score_correction_bias, shape, workspace.expert_ids,
              workspace.expert_weights);
    const MlpWeight* const shared = moe.shared_experts ? &*moe.shared_experts : nullptr;
    cpu.moe(view(x), moe.experts, shared, shape, workspace.expert_ids, workspace.expert_weights,
            view(want));
    model->weights.expert_store = store.get();
    ASSERT_TRUE(staged_moe_from_store(model->weights, moe, model->config.moe_intermediate_size,
                                      staged, view(x), workspace, view(got)));
    EXPECT_EQ(want, got) << step;
    wanted += static_cast<int64_t>(workspace.experts.uses.size());
  }
  const ExpertStoreStats stats = store->stats();
  EXPECT_EQ(stats.num_hits + stats.num_misses + stats.num_guesses_late, wanted);
  const bool never = places.mode == HostExperts::kOff || places.rates.first_token > 1;
  EXPECT_EQ(stats.num_on_host == 0, never);
  EXPECT_EQ(stats.host_seconds > 0, !never);
  EXPECT_LE(stats.num_on_host, stats.num_misses);
  EXPECT_GT(stats.bytes_read, 0) << "chunks are copied whatever the mode";
}

INSTANTIATE_TEST_SUITE_P(Modes, HostExpertsInALayer,
                         ::testing::Values(HostCase{HostExperts::kOff, {}, 64},
                                           HostCase{HostExperts::kAll, {}, 64},
                                           HostCase{HostExperts::kAll, {}, 9},
                                           HostCase{HostExperts::kAuto, {1e-3, 1e-3, 1e-4}, 64},
                                           HostCase{HostExperts::kAuto, {1e-3, 1e-3, 1e-4}, 20},
                                           HostCase{HostExperts::kAuto, {1e-3, 100, 100}, 64}));

TEST(HostExpertRates, AreMeasuredAndNothingStaysLeased) {
  auto& parts = testing::demo_parts();
  TieredStoreOptions options;
  options.memory_bytes = 4 * testing::demo_record_bytes();
  auto ram =
      testing::make_store(testing::packed_loader(testing::packed_demo()), std::move(options));
  CpuHostMlp mlp(*parts.kernels);
  const std::vector<HotExpert> experts = {{1, 0}, {1, 1}, {1, 2}};
  const auto rates = measure_host_experts(*ram, experts, mlp, testing::copying_device(), 1).value();
  EXPECT_GT(rates.copy, 0);
  EXPECT_GT(rates.first_token, 0);
  EXPECT_GE(rates.next_token, 0);
  EXPECT_GT(mlp.rows, 0);
  // All four slots can be had again.
  std::vector<ExpertUse> uses;
  std::vector<int32_t> wanted;
  for (int32_t e = 8; e < 12; ++e) {
    uses.push_back({e, 1, 1});
    wanted.push_back(e);
  }
  ram->announce(2, uses, 1);
  while (!wanted.empty()) {
    const auto lease = ram->acquire(2, wanted);
    ASSERT_TRUE(lease);
    for (const int32_t e : lease->ids()) std::erase(wanted, e);
  }
}

}  // namespace
}  // namespace nibble
