// Calibration, and the algorithms that need it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "nibble/kernels/registry.h"
#include "nibble/model/forward.h"
#include "nibble/model/weights.h"
#include "nibble/quantize/calibrator.h"
#include "nibble/quantize/gptq.h"
#include "nibble/quantize/hessian.h"
#include "nibble/quantize/quantize.h"
#include "tests/base/temporary_folder.h"
#include "tests/quantize/test_checkpoint.h"

namespace nibble {
namespace {

using testing::TemporaryFolder;

std::vector<std::vector<int32_t>> random_samples(size_t count, size_t length, int32_t vocab) {
  std::mt19937 rng(17);
  std::vector<std::vector<int32_t>> samples;
  for (size_t s = 0; s < count; ++s) {
    samples.emplace_back();
    const size_t tokens = 1 + rng() % length;
    for (size_t t = 0; t < tokens; ++t) {
      samples.back().push_back(static_cast<int32_t>(rng() % static_cast<uint32_t>(vocab)));
    }
  }
  return samples;
}

float scalar_of(const CheckpointSource& source, const std::string& name) {
  float value = 0;
  std::memcpy(&value, testing::tensor_bytes_of(source, name).data(), sizeof value);
  return value;
}

float largest_of(const MatrixView& x) {
  float largest = 0;
  for (int64_t t = 0; t < x.rows; ++t) {
    for (int64_t i = 0; i < x.cols; ++i) largest = std::max(largest, std::abs(x.row<float>(t)[i]));
  }
  return largest;
}

// The largest inputs by a run of the whole model in memory, one sample at a time.
class WholeModelRun {
 public:
  WholeModelRun(const CheckpointSource& source, const ModelConfig& config,
                const std::vector<std::vector<int32_t>>& samples)
      : config_(config), kernels_(make_kernels("cpu", {2, {}, false, false, {}}).value()) {
    WeightsOptions options;
    options.max_positions = 512;
    weights_.emplace(Weights::load(source, config, options, *kernels_).value());
    workspace_.emplace(Workspace::create(config, *kernels_, 512).value());
    for (const auto& sample : samples) run(sample);
  }
  std::map<std::string, float> amax;

 private:
  void run(const std::vector<int32_t>& tokens) {
    const auto rows = static_cast<int64_t>(tokens.size());
    const int64_t entry = config_.kv_lora_rank + config_.qk_rope_head_dim;
    std::vector<float> cache(static_cast<size_t>(512 * entry));
    std::vector<int32_t> blocks(16);
    for (int32_t i = 0; i < 16; ++i) blocks[static_cast<size_t>(i)] = i;
    const AttentionSegment segment{0, rows, 0, blocks.data(), MlaForm::kExpanded};
    const Batch batch{tokens, AttentionBatch{rows, std::span(&segment, 1)}};
    const KvCacheView view{cache.data(), DType::kF32, 16, 32, entry};
    kernels_->embed(weights_->embed_tokens, tokens, workspace_->x.slice_rows(0, rows));
    for (int layer = 0; layer < config_.num_hidden_layers; ++layer) {
      const Status status =
          forward_layer(config_, *weights_, layer, batch, view, *kernels_, *workspace_,
                        [&](ActivationSite site, const MatrixView& x) { observe(layer, site, x); });
      ASSERT_TRUE(status) << status.error().message;
    }
    if (!weights_->mtp || rows == 1) return;
    // Each token's hidden state with the token after it.
    std::vector<float> hidden(static_cast<size_t>(rows * config_.hidden_size));
    const MatrixView previous{hidden.data(), DType::kF32, rows, config_.hidden_size,
                              config_.hidden_size};
    kernels_->rms_norm(workspace_->x.slice_rows(0, rows), weights_->norm,
                       static_cast<float>(config_.rms_norm_eps), previous);
    const AttentionSegment pairs{0, rows - 1, 0, blocks.data(), MlaForm::kExpanded};
    const Batch mtp_batch{std::span(tokens).subspan(1),
                          AttentionBatch{rows - 1, std::span(&pairs, 1)}};
    std::fill(cache.begin(), cache.end(), 0.0f);
    const Status done =
        forward_mtp(config_, *weights_, mtp_batch, previous.slice_rows(0, rows - 1), view,
                    *kernels_, *workspace_, workspace_->normed.slice_rows(0, rows - 1),
                    [&](ActivationSite site, const MatrixView& x) {
                      observe(config_.num_hidden_layers, site, x);
                    });
    ASSERT_TRUE(done.has_value()) << done.error().message;
  }
  void note(const std::string& name, const MatrixView& x) {
    amax[name] = std::max(amax[name], largest_of(x));
  }
  void note_product(const std::string& name, const MlpWeight& mlp, const MatrixView& x) {
    const int64_t width = mlp.gate_proj.rows;
    std::vector<float> gate(static_cast<size_t>(x.rows * width));
    std::vector<float> up(gate.size());
    const MatrixView g{gate.data(), DType::kF32, x.rows, width, width};
    kernels_->linear(x, mlp.gate_proj, g);
    kernels_->linear(x, mlp.up_proj, {up.data(), DType::kF32, x.rows, width, width});
    for (size_t i = 0; i < gate.size(); ++i) gate[i] = gate[i] / (1 + std::exp(-gate[i])) * up[i];
    note(name, g);
  }
  void observe(int layer, ActivationSite site, const MatrixView& x) {
    const std::string prefix = "model.layers." + std::to_string(layer);
    const bool is_mtp = layer == config_.num_hidden_layers;
    const LayerWeights& w =
        is_mtp ? weights_->mtp->layer : weights_->layers[static_cast<size_t>(layer)];
    if (site == ActivationSite::kAttentionInput) note(prefix + ".self_attn.q_a_proj", x);
    if (site == ActivationSite::kQueryLatent) note(prefix + ".self_attn.q_b_proj", x);
    if (site == ActivationSite::kHeads) note(prefix + ".self_attn.o_proj", x);
    if (site != ActivationSite::kMlpInput) return;
    if (w.mlp) {
      note(prefix + ".mlp.gate_proj", x);
      return note_product(prefix + ".mlp.down_proj", *w.mlp, x);
    }
    note(prefix + ".mlp.experts.0.up_proj", x);
    note_product(prefix + ".mlp.shared_experts.down_proj", *w.moe->shared_experts, x);
    for (int64_t t = 0; t < x.rows; ++t) {
      for (int j = 0; j < config_.num_experts_per_tok; ++j) {
        const int32_t e = workspace_->expert_ids[t * config_.num_experts_per_tok + j];
        note_product(prefix + ".mlp.experts.0.down_proj", w.moe->experts[static_cast<size_t>(e)],
                     x.slice_rows(t, 1));
      }
    }
  }

  const ModelConfig& config_;
  std::unique_ptr<Kernels> kernels_;
  std::optional<Weights> weights_;
  std::optional<Workspace> workspace_;
};

TEST(Calibration, LayerByLayerGivesTheScalesOfAWholeModelRunBitForBit) {
  const TemporaryFolder folder;
  const auto source = SafetensorsSource::open(testing::demo_source()).value();
  const auto config = load_config(testing::demo_source()).value();
  QuantizeOptions options;
  options.recipe.scheme = QuantizeScheme::kNvfp4All;
  const auto samples = random_samples(12, 60, 4096);
  options.samples = samples;
  const auto report = quantize_checkpoint(testing::demo_source(), folder / "out", options);
  ASSERT_TRUE(report.has_value()) << report.error().message;
  const auto result = SafetensorsSource::open(folder / "out").value();
  const WholeModelRun whole(*source, config, samples);
  EXPECT_EQ(whole.amax.size(), 5u * 3 + 2 + 4 * 3);  // the MTP layer is the fifth
  for (const auto& [module, amax] : whole.amax) {
    EXPECT_EQ(scalar_of(*result, module + ".input_scale"), amax / 2688.0f) << module;
  }
  // One input_scale for all experts of a layer and projection, whichever of them were chosen.
  for (const char* projection : {"gate_proj", "up_proj", "down_proj"}) {
    for (const std::string layer : {"1", "2", "3", "4"}) {
      const auto name = [&](int e) {
        return "model.layers." + layer + ".mlp.experts." + std::to_string(e) + "." + projection +
               ".input_scale";
      };
      for (int e = 1; e < 16; ++e) {
        EXPECT_EQ(scalar_of(*result, name(e)), scalar_of(*result, name(0)));
      }
    }
  }
  // The weights are what they are without data.
  options.samples.clear();
  ASSERT_TRUE(quantize_checkpoint(testing::demo_source(), folder / "plain", options).has_value());
  const auto plain = SafetensorsSource::open(folder / "plain").value();
  for (const TensorInfo& info : plain->tensors()) {
    if (info.name.ends_with(".input_scale")) continue;
    EXPECT_EQ(testing::tensor_bytes_of(*plain, info.name),
              testing::tensor_bytes_of(*result, info.name))
        << info.name;
  }
}

// The quantized model itself, run as a whole, shows what its layers read.
TEST(Calibration, FedWithQuantizedLayersTheScalesAreThoseOfTheQuantizedModelBitForBit) {
  const TemporaryFolder folder;
  const auto config = load_config(testing::demo_source()).value();
  QuantizeOptions options;
  options.recipe.scheme = QuantizeScheme::kNvfp4Attention;
  options.algorithm = {Nvfp4Mode::kMax, true};
  options.shard_bytes = 3'000'000;  // a layer lies in several
  options.samples = random_samples(12, 60, 4096);
  options.feed_quantized = true;
  const auto report = quantize_checkpoint(testing::demo_source(), folder / "out", options);
  ASSERT_TRUE(report.has_value()) << report.error().message;
  const auto result = SafetensorsSource::open(folder / "out").value();
  const WholeModelRun whole(*result, config, options.samples);
  const auto source = SafetensorsSource::open(testing::demo_source()).value();
  const WholeModelRun original(*source, config, options.samples);
  for (int layer = 0; layer < config.num_hidden_layers; ++layer) {
    const std::string module = "model.layers." + std::to_string(layer) + ".self_attn.q_a_proj";
    EXPECT_EQ(scalar_of(*result, module + ".input_scale"), whole.amax.at(module) / 2688.0f);
    EXPECT_EQ(whole.amax.at(module) == original.amax.at(module), layer == 0) << layer;
  }
}

TEST(Calibration, ExpertsThatSawNothingAreQuantizedWithAllAlgorithms) {
  for (const bool gptq : {false, true}) {
    const TemporaryFolder folder;
    testing::tiny_checkpoint().write(folder / "in");
    QuantizeOptions options;
    options.algorithm = {Nvfp4Mode::kLocalHessian, gptq};
    options.samples = {{1}};  // one token: experts are left over
    const auto report = quantize_checkpoint(folder / "in", folder / "out", options);
    ASSERT_TRUE(report.has_value()) << report.error().message;
    const auto result = SafetensorsSource::open(folder / "out").value();
    EXPECT_EQ(scalar_of(*result, "model.layers.1.mlp.experts.0.up_proj.input_scale"),
              scalar_of(*result, "model.layers.1.mlp.experts.3.up_proj.input_scale"));
    EXPECT_FALSE(std::filesystem::exists(folder / "out" / "calibration"));
  }
}

TEST(Calibration, BadSamplesAreRefused) {
  const TemporaryFolder folder;
  testing::tiny_checkpoint().write(folder / "in");
  QuantizeOptions options;
  options.algorithm.gptq = true;
  EXPECT_THAT(quantize_checkpoint(folder / "in", folder / "out", options).error().message,
              ::testing::HasSubstr("--calibrate"));
  options.samples = {{1, 2}, {3, 1 << 30}};
  EXPECT_THAT(
      quantize_checkpoint(folder / "in", folder / "out", options).error().message,
      ::testing::AllOf(::testing::HasSubstr("sample 2"), ::testing::HasSubstr("1073741824")));
  options.samples = {{1, 2}, {}};
  EXPECT_THAT(quantize_checkpoint(folder / "in", folder / "out", options).error().message,
              ::testing::HasSubstr("sample 2 is empty"));
  EXPECT_EQ(folder.num_entries(), 1);
}

// Correlated inputs held in memory.
class FixedInputs final : public Activations {
 public:
  FixedInputs(int64_t rows, int64_t cols) : cols_(cols) {
    std::mt19937 rng(4);
    std::normal_distribution<float> normal;
    for (int64_t r = 0; r < rows; ++r) {
      const float shared = 2 * normal(rng);
      for (int64_t c = 0; c < cols; ++c) values.push_back(normal(rng) + shared);
    }
  }
  std::optional<float> input_amax(std::string_view) const override { return 1.0f; }
  int64_t num_rows(std::string_view) const override {
    return static_cast<int64_t>(values.size()) / cols_;
  }
  Status read_rows(std::string_view, int64_t first, int64_t count, float* out) const override {
    std::copy_n(values.begin() + first * cols_, count * cols_, out);
    return {};
  }
  std::vector<float> values;

 private:
  int64_t cols_;
};

TEST(Hessian, ItsFactorsMultiplyBackToIt) {
  constexpr int64_t kSize = 48;
  const FixedInputs inputs(77, kSize);
  ThreadPool pool(2);
  const auto hessian = full_hessian(inputs, "m", kSize, pool).value();
  auto factors = hessian;
  factor_hessian(&factors, kSize, pool);
  double mean = 0;
  for (int64_t i = 0; i < kSize; ++i) mean += hessian[static_cast<size_t>(i * kSize + i)] / kSize;
  // D from the last column on: H_kk = D_k + sum_{j > k} D_j U_kj^2.
  std::vector<double> d(kSize);
  const auto u = [&](int64_t i, int64_t j) {
    return i == j ? 1.0 : double{factors[static_cast<size_t>(i * kSize + j)]};
  };
  for (int64_t k = kSize - 1; k >= 0; --k) {
    d[static_cast<size_t>(k)] = double{hessian[static_cast<size_t>(k * kSize + k)]} + 0.01 * mean;
    for (int64_t j = k + 1; j < kSize; ++j) {
      d[static_cast<size_t>(k)] -= d[static_cast<size_t>(j)] * u(k, j) * u(k, j);
    }
    EXPECT_GT(d[static_cast<size_t>(k)], 0);
  }
  for (int64_t i = 0; i < kSize; ++i) {
    for (int64_t k = 0; k < i; ++k) {
      double sum = 0;
      for (int64_t j = i; j < kSize; ++j) sum += u(i, j) * d[static_cast<size_t>(j)] * u(k, j);
      EXPECT_NEAR(sum, hessian[static_cast<size_t>(i * kSize + k)], 2e-3 * mean);
    }
    double direct = 0;
    for (int64_t t = 0; t < 77; ++t) {
      direct += double{inputs.values[static_cast<size_t>(t * kSize + i)]} *
                inputs.values[static_cast<size_t>(t * kSize)];
    }
    EXPECT_NEAR(hessian[static_cast<size_t>(i * kSize)], direct, 1e-3 * mean);
  }
}

// || X (W - W')' ||^2
double output_error(const FixedInputs& inputs, const std::vector<float>& w,
                    const std::vector<float>& back, int64_t rows, int64_t cols) {
  double sum = 0;
  for (int64_t t = 0; t < inputs.num_rows(""); ++t) {
    for (int64_t r = 0; r < rows; ++r) {
      double y = 0;
      for (int64_t c = 0; c < cols; ++c) {
        const auto i = static_cast<size_t>(r * cols + c);
        y += double{inputs.values[static_cast<size_t>(t * cols + c)]} * (w[i] - back[i]);
      }
      sum += y * y;
    }
  }
  return sum;
}

TEST(Gptq, HalvesTheOutputsErrorOnCorrelatedInputsWithAnyNumberOfThreads) {
  constexpr int64_t kNumRows = 70;
  constexpr int64_t kNumCols = 64;
  const FixedInputs inputs(300, kNumCols);
  std::mt19937 rng(8);
  std::normal_distribution<float> normal(0, 0.05f);
  std::vector<float> w(kNumRows * kNumCols);
  for (float& v : w) v = normal(rng);
  const float global = nvfp4_global_scale(nvfp4_amax(w).value()).value();
  ThreadPool pool(1);
  ThreadPool pool3(3);
  auto factors = full_hessian(inputs, "m", kNumCols, pool).value();
  factor_hessian(&factors, kNumCols, pool);
  auto factors3 = full_hessian(inputs, "m", kNumCols, pool3).value();
  factor_hessian(&factors3, kNumCols, pool3);
  const auto blocks = block_hessians(inputs, "m", kNumCols, pool).value();
  for (const Nvfp4Mode mode :
       {Nvfp4Mode::kMax, Nvfp4Mode::kFourOverSix, Nvfp4Mode::kMse, Nvfp4Mode::kLocalHessian}) {
    const float scale = nvfp4_global_scale(nvfp4_amax(w).value(), mode).value();
    std::vector<uint8_t> packed(kNumRows * kNumCols / 2);
    std::vector<uint8_t> scales(kNumRows * kNumCols / 16);
    ASSERT_TRUE(quantize_gptq({w.data(), kNumRows, kNumCols, factors.data(), blocks.data()}, scale,
                              mode, packed.data(), scales.data(), pool)
                    .has_value());
    std::vector<uint8_t> packed3(packed.size());
    std::vector<uint8_t> scales3(scales.size());
    ASSERT_TRUE(quantize_gptq({w.data(), kNumRows, kNumCols, factors3.data(), blocks.data()}, scale,
                              mode, packed3.data(), scales3.data(), pool3)
                    .has_value());
    EXPECT_EQ(packed, packed3);
    EXPECT_EQ(scales, scales3);
    std::vector<float> back(w.size());
    ASSERT_TRUE(
        dequantize_nvfp4_rows(packed.data(), scales.data(), scale, kNumRows, kNumCols, back.data())
            .has_value());
    const auto plain = quantize_nvfp4(w, kNumRows, kNumCols).value();
    std::vector<float> plain_back(w.size());
    ASSERT_TRUE(dequantize_nvfp4_rows(plain.packed.data(), plain.block_scales.data(), global,
                                      kNumRows, kNumCols, plain_back.data())
                    .has_value());
    EXPECT_LT(output_error(inputs, w, back, kNumRows, kNumCols),
              0.5 * output_error(inputs, w, plain_back, kNumRows, kNumCols));
  }
}

}  // namespace
}  // namespace nibble
