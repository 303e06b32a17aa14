#include "nibble/plan/model_weights.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>

#include "nibble/tensor/dtype.h"

namespace nibble {
namespace {

int64_t blocks(int64_t size, int64_t block) { return (size + block - 1) / block; }

// Attention, norms and MLP of `layers` decoder layers, `dense` of them without experts.
void add_layers(const ModelConfig& c, int64_t layers, int64_t dense, bool mtp,
                std::vector<MatrixGroup>& groups) {
  const int64_t heads = c.num_attention_heads;
  const int64_t hidden = c.hidden_size;
  const int64_t moe = layers - dense;
  const int64_t experts = c.n_routed_experts;
  const int64_t shared = c.moe_intermediate_size * c.n_shared_experts;
  const auto add = [&](WeightKind kind, int64_t rows, int64_t cols, int64_t count) {
    if (count > 0 && rows > 0) groups.push_back({kind, mtp, rows, cols, count});
  };
  add(WeightKind::kQAProj, c.q_lora_rank, hidden, layers);
  add(WeightKind::kQBProj, heads * c.qk_head_dim(), c.q_lora_rank, layers);
  add(WeightKind::kKvAProj, c.kv_lora_rank + c.qk_rope_head_dim, hidden, layers);
  add(WeightKind::kKvBProj, heads * (c.qk_nope_head_dim + c.v_head_dim), c.kv_lora_rank, layers);
  add(WeightKind::kOProj, hidden, heads * c.v_head_dim, layers);
  add(WeightKind::kNorms, c.q_lora_rank, 1, layers);
  add(WeightKind::kNorms, c.kv_lora_rank, 1, layers);
  add(WeightKind::kNorms, hidden, 1, 2 * layers);
  add(WeightKind::kDenseMlp, c.intermediate_size, hidden, 2 * dense);
  add(WeightKind::kDenseMlp, hidden, c.intermediate_size, dense);
  add(WeightKind::kSharedExperts, shared, hidden, 2 * moe);
  add(WeightKind::kSharedExperts, hidden, shared, moe);
  add(WeightKind::kRoutedExperts, c.moe_intermediate_size, hidden, 2 * moe * experts);
  add(WeightKind::kRoutedExperts, hidden, c.moe_intermediate_size, moe * experts);
  add(WeightKind::kRouter, experts, hidden, moe);
  add(WeightKind::kRouterBias, experts, 1, moe);
}

void count_elements(Storage storage, const MatrixGroup& group, StoredElements& elements) {
  const int64_t parameters = group.parameters();
  switch (storage) {
    case Storage::kBf16:
      elements.bf16 += parameters;
      break;
    case Storage::kF32:
      elements.f32 += parameters;
      break;
    case Storage::kFp8:
      elements.f8_e4m3 += parameters;
      elements.f32 += group.count * blocks(group.rows, 128) * blocks(group.cols, 128);
      break;
    case Storage::kNvfp4:
      elements.u8 += parameters / 2;
      elements.f8_e4m3 += parameters / 16;
      elements.f32 += group.count * 2;
      break;
    case Storage::kGguf:
      break;
  }
}

// The number behind "model.layers.", or -1.
int layer_of(std::string_view name) {
  constexpr std::string_view kPrefix = "model.layers.";
  if (!name.starts_with(kPrefix)) return -1;
  int layer = -1;
  const char* begin = name.data() + kPrefix.size();
  const auto result = std::from_chars(begin, name.data() + name.size(), layer);
  return result.ec == std::errc() ? layer : -1;
}

WeightKind kind_of(std::string_view name) {
  const auto has = [&](std::string_view part) { return name.find(part) != std::string_view::npos; };
  if (has(".mlp.experts.")) return WeightKind::kRoutedExperts;
  if (has(".mlp.shared_experts.")) return WeightKind::kSharedExperts;
  if (has(".mlp.gate.e_score_correction_bias")) return WeightKind::kRouterBias;
  if (has(".mlp.gate.")) return WeightKind::kRouter;
  if (has(".mlp.")) return WeightKind::kDenseMlp;
  if (has(".self_attn.q_a_proj.")) return WeightKind::kQAProj;
  if (has(".self_attn.q_b_proj.")) return WeightKind::kQBProj;
  if (has(".self_attn.kv_a_proj_with_mqa.")) return WeightKind::kKvAProj;
  if (has(".self_attn.kv_b_proj.")) return WeightKind::kKvBProj;
  if (has(".self_attn.o_proj.")) return WeightKind::kOProj;
  // The FP8 cache's scales: scalars, kept on every device like the norms.
  if (has(".self_attn.") && (name.ends_with(".k_scale") || name.ends_with(".v_scale"))) {
    return WeightKind::kNorms;
  }
  if (has("embed_tokens.")) return WeightKind::kEmbedding;
  if (has("shared_head.head.") || name.starts_with("lm_head.")) return WeightKind::kHead;
  if (has(".eh_proj.")) return WeightKind::kEhProj;
  if (has("norm.")) return WeightKind::kNorms;
  return WeightKind::kOther;
}

Storage storage_of(const TensorInfo& weight) {
  switch (weight.dtype) {
    case DType::kU8:
      return Storage::kNvfp4;
    case DType::kF8E4m3:
      return Storage::kFp8;
    case DType::kF32:
      return Storage::kF32;
    default:
      return Storage::kBf16;
  }
}

int64_t sum_parameters(const std::array<WeightCell, kNumWeightKinds>& cells) {
  int64_t sum = 0;
  for (const WeightCell& cell : cells) sum += cell.parameters;
  return sum;
}

int64_t sum_bytes(const std::array<WeightCell, kNumWeightKinds>& cells) {
  int64_t sum = 0;
  for (const WeightCell& cell : cells) sum += cell.bytes;
  return sum;
}

}  // namespace

std::string_view weight_kind_name(WeightKind kind) {
  switch (kind) {
    case WeightKind::kEmbedding:
      return "embed";
    case WeightKind::kHead:
      return "lm_head";
    case WeightKind::kQAProj:
      return "attn_q_a";
    case WeightKind::kQBProj:
      return "attn_q_b";
    case WeightKind::kKvAProj:
      return "attn_kv_a";
    case WeightKind::kKvBProj:
      return "attn_kv_b";
    case WeightKind::kOProj:
      return "attn_o";
    case WeightKind::kNorms:
      return "norms";
    case WeightKind::kDenseMlp:
      return "dense_mlp";
    case WeightKind::kSharedExperts:
      return "shared_expert";
    case WeightKind::kRoutedExperts:
      return "routed_experts";
    case WeightKind::kRouter:
      return "router";
    case WeightKind::kRouterBias:
      return "router_bias";
    case WeightKind::kEhProj:
      return "eh_proj";
    case WeightKind::kOther:
      return "other";
  }
  return "?";
}

std::vector<MatrixGroup> matrix_groups(const ModelConfig& c) {
  std::vector<MatrixGroup> groups;
  groups.push_back({WeightKind::kEmbedding, false, c.vocab_size, c.hidden_size, 1});
  groups.push_back({WeightKind::kHead, false, c.vocab_size, c.hidden_size, 1});
  groups.push_back({WeightKind::kNorms, false, c.hidden_size, 1, 1});
  int64_t dense = 0;
  for (int layer = 0; layer < c.num_hidden_layers; ++layer) dense += c.is_moe_layer(layer) ? 0 : 1;
  add_layers(c, c.num_hidden_layers, dense, false, groups);
  if (const int64_t mtp = c.num_nextn_predict_layers; mtp > 0) {
    add_layers(c, mtp, 0, true, groups);
    groups.push_back({WeightKind::kEmbedding, true, c.vocab_size, c.hidden_size, mtp});
    groups.push_back({WeightKind::kHead, true, c.vocab_size, c.hidden_size, mtp});
    groups.push_back({WeightKind::kNorms, true, c.hidden_size, 1, 3 * mtp});  // enorm, hnorm, norm
    groups.push_back({WeightKind::kEhProj, true, c.hidden_size, 2 * c.hidden_size, mtp});
  }
  return groups;
}

int64_t ModelWeights::main_parameters() const { return sum_parameters(main); }
int64_t ModelWeights::mtp_parameters() const { return sum_parameters(mtp); }

int64_t ModelWeights::mtp_block_parameters() const {
  return mtp_parameters() - cell(WeightKind::kEmbedding, true).parameters -
         cell(WeightKind::kHead, true).parameters;
}

int64_t ModelWeights::active_parameters(const ModelConfig& config) const {
  const int64_t routed = cell(WeightKind::kRoutedExperts).parameters;
  return main_parameters() - cell(WeightKind::kEmbedding).parameters - routed +
         routed / config.n_routed_experts * config.num_experts_per_tok;
}

int64_t ModelWeights::file_bytes() const { return sum_bytes(main) + sum_bytes(mtp); }

int64_t ModelWeights::resident_bytes(bool with_mtp) const {
  if (!with_mtp) return sum_bytes(main);
  return file_bytes() - cell(WeightKind::kEmbedding, true).bytes -
         cell(WeightKind::kHead, true).bytes;
}

int64_t matrix_bytes(Storage storage, int64_t rows, int64_t cols) {
  switch (storage) {
    case Storage::kBf16:
      return 2 * rows * cols;
    case Storage::kF32:
      return 4 * rows * cols;
    case Storage::kFp8:
      return rows * cols + 4 * blocks(rows, 128) * blocks(cols, 128);
    case Storage::kNvfp4:
      return rows * cols / 2 + rows * cols / 16 + 4 + 4;
    case Storage::kGguf:
      break;
  }
  return 0;
}

PlanResult<ModelWeights> weights_of(const ModelConfig& config, const Recipe& recipe) {
  ModelWeights weights;
  for (const MatrixGroup& group : matrix_groups(config)) {
    const auto& storages = group.mtp ? recipe.mtp : recipe.main;
    // Vectors are never quantized: norms are BF16 and the router's bias F32 in every format.
    const Storage storage = group.kind == WeightKind::kRouterBias ? Storage::kF32
                            : group.cols == 1                     ? Storage::kBf16
                                              : storages[static_cast<size_t>(group.kind)];
    if (storage == Storage::kNvfp4 && group.cols % 16 != 0) {
      return plan_error("impossible",
                        fmt::format("a {} matrix has {} columns, but NVFP4 needs a multiple of 16",
                                    weight_kind_name(group.kind), group.cols),
                        "--quant bf16 or fp8");
    }
    WeightCell& cell = weights.cell(group.kind, group.mtp);
    const int64_t bytes = matrix_bytes(storage, group.rows, group.cols) * group.count;
    cell.parameters += group.parameters();
    cell.bytes += bytes;
    cell.storage = storage;
    count_elements(storage, group, weights.elements);
  }
  const int64_t moe_experts = [&] {
    int64_t layers = 0;
    for (int layer = 0; layer < config.num_hidden_layers; ++layer)
      layers += config.is_moe_layer(layer);
    return layers * config.n_routed_experts;
  }();
  if (moe_experts > 0) {
    weights.expert_bytes = weights.cell(WeightKind::kRoutedExperts).bytes / moe_experts;
  }
  return weights;
}

ModelWeights gguf_weights(const ModelConfig& config, double bits) {
  ModelWeights weights;
  int64_t experts = 0;
  for (const MatrixGroup& group : matrix_groups(config)) {
    if (group.mtp) continue;
    WeightCell& cell = weights.cell(group.kind);
    cell.storage = Storage::kGguf;
    cell.parameters += group.parameters();
    if (group.kind == WeightKind::kRoutedExperts) experts += group.count;
  }
  for (const WeightKind kind : kAllWeightKinds) {
    if (kind == WeightKind::kRouterBias) continue;
    WeightCell& cell = weights.cell(kind);
    cell.bytes = std::llround(static_cast<double>(cell.parameters) * bits / 8);
  }
  if (experts > 0) {
    weights.expert_bytes = weights.cell(WeightKind::kRoutedExperts).bytes / (experts / 3);
  }
  return weights;
}

ModelWeights weights_in(const ModelConfig& config, std::span<const TensorInfo> tensors,
                        std::vector<std::string>* strangers) {
  ModelWeights weights;
  for (const MatrixGroup& group : matrix_groups(config)) {
    weights.cell(group.kind, group.mtp).parameters += group.parameters();
  }
  std::array<std::array<int64_t, 5>, 2 * kNumWeightKinds> bytes_by_storage{};
  int64_t expert_groups = 0;
  for (const TensorInfo& info : tensors) {
    const bool mtp = layer_of(info.name) >= config.num_hidden_layers;
    const WeightKind kind = kind_of(info.name);
    const int64_t elements = info.shape.num_elements();
    const int64_t bytes = elements * dtype_size(info.dtype);
    weights.cell(kind, mtp).bytes += bytes;
    if (kind == WeightKind::kOther && strangers != nullptr) strangers->push_back(info.name);
    switch (info.dtype) {
      case DType::kU8:
        weights.elements.u8 += elements;
        break;
      case DType::kF8E4m3:
        weights.elements.f8_e4m3 += elements;
        break;
      case DType::kF32:
        weights.elements.f32 += elements;
        break;
      default:
        weights.elements.bf16 += elements;
        break;
    }
    if (info.name.ends_with(".weight") || kind == WeightKind::kRouterBias) {
      const size_t row = static_cast<size_t>(kind) + (mtp ? kNumWeightKinds : 0);
      bytes_by_storage[row][static_cast<size_t>(storage_of(info))] += bytes;
      if (!mtp && kind == WeightKind::kRoutedExperts && info.name.ends_with(".gate_proj.weight")) {
        ++expert_groups;
      }
    }
  }
  for (size_t row = 0; row < bytes_by_storage.size(); ++row) {
    const auto& by_storage = bytes_by_storage[row];
    const auto most = std::max_element(by_storage.begin(), by_storage.end());
    auto& cells = row < kNumWeightKinds ? weights.main : weights.mtp;
    cells[row % kNumWeightKinds].storage = static_cast<Storage>(most - by_storage.begin());
  }
  if (expert_groups > 0) {
    weights.expert_bytes = weights.cell(WeightKind::kRoutedExperts).bytes / expert_groups;
  }
  return weights;
}

}  // namespace nibble
