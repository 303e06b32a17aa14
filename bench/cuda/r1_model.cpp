#include "bench/cuda/r1_model.h"

#include <algorithm>
#include <random>
#include <utility>

#include "nibble/device/cuda/cuda_stream.h"
#include "nibble/model/rope.h"
#include "nibble/numeric/bf16.h"

namespace nibble::bench {
namespace {

// Small allocations would each be rounded up to 2 MiB.
constexpr size_t kBufferBytes = size_t{512} << 20;
constexpr int64_t kPositions = 16384;

// Small, so that what a layer adds does not drown the token's own embedding: otherwise all tokens
// soon look alike to the routers and share their experts.
constexpr float kNvfp4Scale = 1e-9f;

// Routers of different layers are the same values, begun elsewhere.
constexpr size_t kRouterShift = 1009;

}  // namespace

ModelConfig r1_config(const R1Options& options) {
  ModelConfig config;
  config.vocab_size = 129280;
  config.hidden_size = 7168;
  config.intermediate_size = 18432;
  config.moe_intermediate_size = 2048;
  config.num_hidden_layers = options.dense_layers + options.moe_layers;
  config.num_attention_heads = 128;
  config.first_k_dense_replace = options.dense_layers;
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
  config.max_position_embeddings = kPositions;
  config.num_nextn_predict_layers = options.with_mtp ? 1 : 0;
  return config;
}

R1Model::R1Model(Kernels& kernels, const R1Options& options)
    : kernels_(kernels), options_(options) {
  const ModelConfig config = r1_config(options);
  const Part part = options.shard.attention();
  weights_.shard = options.shard;
  weights_.comm = options.comm;
  weights_.mla_shape = {part.count(128), 512, 128, 64, 128, 0.13523378f};
  weights_.router_shape = {256, 8, 8, 4, true, 2.5f};
  weights_.router_shape.first_local_expert =
      static_cast<int>(options.shard.expert_group().begin(256));
  weights_.router_shape.num_local_experts =
      static_cast<int>(options.shard.expert_group().count(256));
  const RopeValues rope = rope_values(config, kPositions);
  weights_.rope = {floats(rope.cos), floats(rope.sin), kPositions, 32};
  ones_ = floats(std::vector<float>(7168, 1));
  bias_ = floats(std::vector<float>(256, 0));
  weights_.norm = ones_;
  const int64_t embedded = part.count(config.vocab_size);
  void* const table = take(static_cast<size_t>(embedded) * 7168 * 2);
  fill_bf16(table, embedded * 7168, 77, cuda_stream(kernels.device()));
  weights_.embed_tokens = {table, DType::kBf16, embedded, 7168, 7168};
  weights_.lm_head = linear(LinearFormat::kBf16, part.count(config.vocab_size), 7168);
  weights_.layers.resize(static_cast<size_t>(config.num_hidden_layers));
  for (size_t i = 0; i < weights_.layers.size(); ++i) {
    fill(weights_.layers[i], static_cast<int>(i), static_cast<int>(i) >= options.dense_layers);
  }
  if (options.with_mtp) {
    MtpWeights& mtp = weights_.mtp.emplace();
    mtp.enorm = mtp.hnorm = mtp.shared_head_norm = ones_;
    mtp.eh_proj = linear(LinearFormat::kBf16, 7168, 2 * 7168);
    fill(mtp.layer, config.num_hidden_layers, true);
  }
  kv_b_host_ = {};
  router_host_ = {};
}

Weights R1Model::take_weights() {
  weights_.buffers = std::move(buffers_);
  return std::move(weights_);
}

const float* R1Model::floats(const std::vector<float>& values) {
  void* const memory = take(values.size() * sizeof(float));
  if (!kernels_.device().copy_to_device(memory, std::as_bytes(std::span(values)))) {
    check_cuda(cudaErrorUnknown, "a copy to the device");
  }
  return static_cast<const float*>(memory);
}

void* R1Model::take(size_t bytes) {
  bytes = (bytes + 255) / 256 * 256;
  if (bytes > free_bytes_) {
    buffers_.push_back(kernels_.device().allocate(std::max(bytes, kBufferBytes)).value());
    free_bytes_ = buffers_.back().size();
  }
  void* const memory = buffers_.back().as<std::byte>() + (buffers_.back().size() - free_bytes_);
  free_bytes_ -= bytes;
  weights_.device_bytes += bytes;
  return memory;
}

LinearWeight R1Model::linear(LinearFormat format, int64_t rows, int64_t cols) {
  const size_t bytes = kernels_.packed_bytes(format, rows, cols);
  LinearWeight weight;
  weight.format = format;
  weight.rows = rows;
  weight.cols = cols;
  void* const memory = take(bytes);
  fill_packed(memory, bytes, format, ++seed_, cuda_stream(kernels_.device()));
  weight.data = memory;
  weight.global_scale = format == LinearFormat::kNvfp4 ? kNvfp4Scale : 1.0f;
  return weight;
}

MlpWeight R1Model::mlp(int64_t intermediate) {
  const LinearWeight gate = linear(LinearFormat::kNvfp4, intermediate, 7168);
  const LinearWeight up = linear(LinearFormat::kNvfp4, intermediate, 7168);
  return {gate, up, linear(LinearFormat::kNvfp4, 7168, intermediate)};
}

// Of a size that spreads tokens over all experts: sigmoids of logits of about unit deviation.
LinearWeight R1Model::router(int layer) {
  if (router_host_.empty()) {
    std::mt19937 rng(9);
    std::normal_distribution<float> normal(0, 0.0118f);
    router_host_.resize(size_t{256} * 7168 + 64 * kRouterShift);
    for (uint16_t& value : router_host_) value = float_to_bf16(normal(rng));
  }
  HostLinear host;
  host.rows = 256;
  host.cols = 7168;
  const size_t shift = options_.other_routers ? static_cast<size_t>(layer) * kRouterShift : 0;
  host.data = router_host_.data() + shift;
  void* const memory = take(kernels_.packed_bytes(host.format, host.rows, host.cols));
  return kernels_.pack(host, ActivationFormat::kUnquantized, memory).value();
}

void R1Model::fill(LayerWeights& layer, int number, bool is_moe) {
  const Part part = options_.shard.attention();
  AttentionWeights& w = layer.self_attn;
  layer.input_layernorm = layer.post_attention_layernorm = w.q_a_layernorm = w.kv_a_layernorm =
      ones_;
  w.q_a_proj = linear(LinearFormat::kBf16, 1536, 7168);
  w.q_b_proj = linear(LinearFormat::kBf16, part.count(24576), 1536);
  w.kv_a_proj_with_mqa = linear(LinearFormat::kBf16, 576, 7168);
  w.o_proj = linear(options_.o_proj, 7168, part.count(16384));
  if (kv_b_host_.empty()) {
    kv_b_host_.resize(static_cast<size_t>(part.count(32768)) * 512);
    for (size_t i = 0; i < kv_b_host_.size(); ++i) {
      kv_b_host_[i] = static_cast<uint16_t>((i * 2654435761u >> 7 & 0x8000) | (0x3c00 + i % 201));
    }
  }
  HostLinear kv_b;
  kv_b.rows = part.count(32768);
  kv_b.cols = 512;
  kv_b.data = kv_b_host_.data();
  void* const up = take(kernels_.packed_mla_up_bytes(kv_b.format, weights_.mla_shape));
  w.kv_b_proj = kernels_.pack_mla_up(kv_b, weights_.mla_shape, up).value();
  if (!is_moe) {
    layer.mlp = mlp(part.count(18432));
    return;
  }
  MoeWeights& moe = layer.moe.emplace();
  moe.layer = number;
  moe.gate = router(number);
  moe.e_score_correction_bias = bias_;
  const Part slice = options_.shard.expert_slice();
  const int experts = options_.with_experts ? weights_.router_shape.local_experts() : 0;
  for (int e = 0; e < experts; ++e) moe.experts.push_back(mlp(slice.count(2048)));
  moe.shared_experts = mlp(part.count(2048));
}

}  // namespace nibble::bench
