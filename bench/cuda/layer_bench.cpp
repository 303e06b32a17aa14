// A slice of R1 at its true widths: as many MoE layers as fit, weights of random bits made on the
// device (attention BF16, experts NVFP4, as in NVIDIA's first R1 checkpoint), run by model/forward.
#include <fmt/format.h>

#include <cstdlib>
#include <numeric>
#include <random>

#include "bench/cuda/gpu_timing.h"
#include "nibble/device/cuda/cuda_stream.h"
#include "nibble/model/forward.h"
#include "nibble/model/rope.h"

namespace nibble::bench {
namespace {

constexpr int kLayers = 16;
constexpr int kR1Layers = 61;
constexpr int64_t kContext = 4096;
constexpr int64_t kBlockSize = 64;

ModelConfig r1_config() {
  ModelConfig config;
  config.vocab_size = 129280;
  config.hidden_size = 7168;
  config.intermediate_size = 18432;
  config.moe_intermediate_size = 2048;
  config.num_hidden_layers = kLayers;
  config.num_attention_heads = 128;
  config.n_routed_experts = 256;
  config.n_shared_experts = 1;
  config.num_experts_per_tok = 8;
  config.n_group = 8;
  config.topk_group = 4;
  config.q_lora_rank = 1536;
  config.kv_lora_rank = 512;
  config.qk_nope_head_dim = 128;
  config.qk_rope_head_dim = 64;
  config.v_head_dim = 128;
  config.rms_norm_eps = 1e-6;
  config.rope_theta = 10000;
  config.max_position_embeddings = 8192;
  return config;
}

// Weights of the slice; one buffer a layer.
class Slice {
 public:
  Slice(Kernels& kernels, const ModelConfig& config) : kernels_(kernels), config_(config) {
    weights_.mla_shape = {128, 512, 128, 64, 128, 0.13523378f};
    weights_.router_shape = {256, 8, 8, 4, true, 2.5f};
    const RopeValues rope = rope_values(config, 8192);
    weights_.rope = {floats(rope.cos), floats(rope.sin), 8192, 32};
    ones_ = floats(std::vector<float>(7168, 1));
    bias_ = floats(std::vector<float>(256, 0));
    weights_.norm = ones_;
    Buffer table = kernels.device().allocate(size_t{129280} * 7168 * 2).value();
    fill_bf16(table.data(), int64_t{129280} * 7168, 77, stream());
    weights_.embed_tokens = {table.data(), DType::kBf16, 129280, 7168, 7168};
    keep_.push_back(std::move(table));
    weights_.lm_head = linear(LinearFormat::kBf16, 129280, 7168);
    weights_.layers.resize(kLayers);
    for (LayerWeights& layer : weights_.layers) fill(layer);
  }
  const Weights& weights() const { return weights_; }

 private:
  cudaStream_t stream() { return cuda_stream(kernels_.device()); }
  const float* floats(const std::vector<float>& values) {
    keep_.push_back(on_device(kernels_.device(), values));
    return keep_.back().as<float>();
  }
  LinearWeight linear(LinearFormat format, int64_t rows, int64_t cols) {
    BenchWeight w = random_weight(kernels_, format, rows, cols, keep_.size() + 1);
    keep_.push_back(std::move(w.buffer));
    if (format == LinearFormat::kNvfp4) w.weight.global_scale = 1e-5f;
    return w.weight;
  }
  MlpWeight expert() {
    const LinearWeight gate = linear(LinearFormat::kNvfp4, 2048, 7168);
    const LinearWeight up = linear(LinearFormat::kNvfp4, 2048, 7168);
    return {gate, up, linear(LinearFormat::kNvfp4, 7168, 2048)};
  }
  void fill(LayerWeights& layer) {
    AttentionWeights& w = layer.self_attn;
    layer.input_layernorm = layer.post_attention_layernorm = w.q_a_layernorm = w.kv_a_layernorm =
        ones_;
    w.q_a_proj = linear(LinearFormat::kBf16, 1536, 7168);
    w.q_b_proj = linear(LinearFormat::kBf16, 24576, 1536);
    w.kv_a_proj_with_mqa = linear(LinearFormat::kBf16, 576, 7168);
    w.o_proj = linear(LinearFormat::kBf16, 7168, 16384);
    if (kv_b_host_.empty()) {
      kv_b_host_.resize(size_t{32768} * 512);
      for (size_t i = 0; i < kv_b_host_.size(); ++i) {
        kv_b_host_[i] = static_cast<uint16_t>((i * 2654435761u >> 7 & 0x8000) | (0x3c00 + i % 201));
      }
    }
    HostLinear kv_b;
    kv_b.rows = 32768;
    kv_b.cols = 512;
    kv_b.data = kv_b_host_.data();
    keep_.push_back(kernels_.device()
                        .allocate(kernels_.packed_mla_up_bytes(kv_b.format, weights_.mla_shape))
                        .value());
    w.kv_b_proj = kernels_.pack_mla_up(kv_b, weights_.mla_shape, keep_.back().data()).value();
    MoeWeights& moe = layer.moe.emplace();
    moe.gate = linear(LinearFormat::kBf16, 256, 7168);
    moe.e_score_correction_bias = bias_;
    for (int e = 0; e < 256; ++e) moe.experts.push_back(expert());
    moe.shared_experts = expert();
  }

  Kernels& kernels_;
  const ModelConfig& config_;
  Weights weights_;
  std::vector<Buffer> keep_;
  std::vector<uint16_t> kv_b_host_;
  const float* ones_ = nullptr;
  const float* bias_ = nullptr;
};

// The roofline of one layer in ms at this batch: bytes over the copy bandwidth (spec kernels 1.7).
double floor_ms(int64_t tokens, int64_t sequences, const Limits& limits) {
  double distinct = 256;
  double untouched = 1;
  for (int64_t t = 0; t < tokens; ++t) untouched *= 31.0 / 32;
  distinct *= 1 - untouched;
  const double bytes =
      (distinct + 1) * 24.77e6 + 374e6 + 3.7e6 + static_cast<double>(sequences * kContext) * 1152;
  return bytes / limits.copy / 1e6;
}

}  // namespace

void bench_layers(Kernels& kernels, const Limits& limits) {
  Device& device = kernels.device();
  const ModelConfig config = r1_config();
  const Slice slice(kernels, config);
  const DeviceMemory memory = device.memory().value();
  fmt::print(
      "\nR1's widths, {} MoE layers of {}, context {}, BF16 attention and cache; {:.1f} GB of "
      "{:.1f} GB in use\n",
      kLayers, kR1Layers, kContext,
      static_cast<double>(memory.total_bytes - memory.free_bytes) / 1e9,
      static_cast<double>(memory.total_bytes) / 1e9);
  struct Case {
    int64_t batch, query_tokens;
  };
  for (const Case c : {Case{1, 1}, {1, 2}, {1, 4}, {8, 1}, {8, 2}, {32, 1}, {128, 1}}) {
    const int64_t tokens = c.batch * c.query_tokens;
    const int64_t blocks_each = kContext / kBlockSize;
    const int64_t num_blocks = blocks_each * c.batch;
    std::vector<Buffer> pages;
    std::vector<KvCacheView> caches;
    for (int i = 0; i < kLayers; ++i) {
      pages.push_back(
          device.allocate(static_cast<size_t>(num_blocks * kBlockSize * 576) * 2).value());
      fill_bf16(pages.back().data(), num_blocks * kBlockSize * 576, 3, cuda_stream(device));
      caches.push_back({pages.back().data(), DType::kBf16, num_blocks, kBlockSize, 576});
    }
    Workspace workspace = Workspace::create(config, kernels, tokens).value();
    std::vector<int32_t> table(static_cast<size_t>(num_blocks));
    std::iota(table.begin(), table.end(), 0);
    std::vector<AttentionSegment> segments;
    for (int64_t b = 0; b < c.batch; ++b) {
      segments.push_back({b * c.query_tokens, c.query_tokens, kContext - c.query_tokens,
                          table.data() + b * blocks_each, MlaForm::kAbsorbed});
    }
    std::mt19937 rng(5);
    std::vector<int32_t> ids(static_cast<size_t>(tokens));
    for (int32_t& id : ids) id = static_cast<int32_t>(rng() % 129280);
    const Batch batch{ids, AttentionBatch{tokens, segments}};
    const auto step = [&] {
      const Status done = forward(config, slice.weights(), batch, caches, kernels, workspace,
                                  workspace.normed.slice_rows(0, tokens));
      if (!done) {
        fmt::print(stderr, "bench_cuda: {}\n", done.error().message);
        std::exit(1);
      }
    };
    const Samples graph = time_graph(device, step);
    const Samples launches = time_launches(device, step, 2);
    const double ms = graph.median / 1000 / kLayers;
    const double bound = floor_ms(tokens, c.batch, limits);
    fmt::print(
        "batch {:>3} x {} query tokens: {:7.3f} ms a layer as a graph ({:.3f}..{:.3f}), {:7.3f} "
        "without; bound {:.3f} ({:.0f} %); 61 such layers, extrapolated: {:.1f} ms a step\n",
        c.batch, c.query_tokens, ms, graph.min / 1000 / kLayers, graph.max / 1000 / kLayers,
        launches.median / 1000 / kLayers, bound, 100 * bound / ms, ms * kR1Layers);
  }
}

}  // namespace nibble::bench
