#include "nibble/checkpoint/model_tensors.h"

#include <fmt/format.h>

#include <algorithm>

#include "nibble/base/error.h"

namespace nibble {
namespace {

// Collects tensors under a prefix that changes from layer to layer.
class TensorList {
 public:
  void linear(std::string name, int64_t rows, int64_t cols, ModuleClass module_class) {
    add(std::move(name), {rows, cols}, module_class).is_linear = true;
  }
  ModelTensor& add(std::string name, Shape shape, ModuleClass module_class) {
    ModelTensor tensor;
    tensor.name = prefix + std::move(name) + ".weight";
    tensor.shape = std::move(shape);
    tensor.module_class = is_mtp ? ModuleClass::kMtp : module_class;
    tensor.layer = layer;
    tensors.push_back(std::move(tensor));
    return tensors.back();
  }

  std::vector<ModelTensor> tensors;
  std::string prefix;
  int layer = -1;
  bool is_mtp = false;
};

void add_attention(const ModelConfig& c, TensorList& list) {
  const int64_t heads = c.num_attention_heads;
  list.add("input_layernorm", {c.hidden_size}, ModuleClass::kNorm);
  list.linear("self_attn.q_a_proj", c.q_lora_rank, c.hidden_size, ModuleClass::kQAProj);
  list.add("self_attn.q_a_layernorm", {c.q_lora_rank}, ModuleClass::kNorm);
  list.linear("self_attn.q_b_proj", heads * c.qk_head_dim(), c.q_lora_rank, ModuleClass::kQBProj);
  list.linear("self_attn.kv_a_proj_with_mqa", c.kv_lora_rank + c.qk_rope_head_dim, c.hidden_size,
              ModuleClass::kKvAProj);
  list.add("self_attn.kv_a_layernorm", {c.kv_lora_rank}, ModuleClass::kNorm);
  list.linear("self_attn.kv_b_proj", heads * (c.qk_nope_head_dim + c.v_head_dim), c.kv_lora_rank,
              ModuleClass::kKvBProj);
  list.linear("self_attn.o_proj", c.hidden_size, heads * c.v_head_dim, ModuleClass::kOProj);
  list.add("post_attention_layernorm", {c.hidden_size}, ModuleClass::kNorm);
}

void add_mlp(const ModelConfig& c, const std::string& name, int64_t intermediate_size,
             ModuleClass module_class, TensorList& list) {
  list.linear(name + ".gate_proj", intermediate_size, c.hidden_size, module_class);
  list.linear(name + ".up_proj", intermediate_size, c.hidden_size, module_class);
  list.linear(name + ".down_proj", c.hidden_size, intermediate_size, module_class);
}

void add_layer(const ModelConfig& c, int layer, TensorList& list) {
  list.layer = layer;
  list.prefix = fmt::format("model.layers.{}.", layer);
  add_attention(c, list);
  if (!list.is_mtp && !c.is_moe_layer(layer)) {
    add_mlp(c, "mlp", c.intermediate_size, ModuleClass::kDenseMlp, list);
    return;
  }
  // The router is BF16 in every published checkpoint, so it is no linear that may be quantized.
  list.add("mlp.gate", {c.n_routed_experts, c.hidden_size}, ModuleClass::kRouter);
  ModelTensor& bias = list.add("", {c.n_routed_experts}, ModuleClass::kRouter);
  bias.name = list.prefix + "mlp.gate.e_score_correction_bias";
  bias.is_f32 = true;
  add_mlp(c, "mlp.shared_experts", c.moe_intermediate_size * c.n_shared_experts,
          ModuleClass::kSharedExperts, list);
  for (int expert = 0; expert < c.n_routed_experts; ++expert) {
    add_mlp(c, fmt::format("mlp.experts.{}", expert), c.moe_intermediate_size,
            ModuleClass::kRoutedExperts, list);
  }
}

// What the MTP layer has beside a decoder layer's tensors.
void add_mtp(const ModelConfig& c, TensorList& list) {
  list.add("embed_tokens", {c.vocab_size, c.hidden_size}, ModuleClass::kMtp).is_optional = true;
  list.add("enorm", {c.hidden_size}, ModuleClass::kMtp);
  list.add("hnorm", {c.hidden_size}, ModuleClass::kMtp);
  // BF16 in DeepSeek's release although it is a matrix of its own.
  list.add("eh_proj", {c.hidden_size, 2 * c.hidden_size}, ModuleClass::kMtp);
  list.add("shared_head.norm", {c.hidden_size}, ModuleClass::kMtp);
  list.add("shared_head.head", {c.vocab_size, c.hidden_size}, ModuleClass::kMtp).is_optional = true;
}

bool is_nvfp4(const ModelTensor& tensor, CheckpointLayout layout) {
  switch (tensor.module_class) {
    case ModuleClass::kDenseMlp:
    case ModuleClass::kSharedExperts:
    case ModuleClass::kRoutedExperts:
      return layout == CheckpointLayout::kNvfp4V1 || layout == CheckpointLayout::kNvfp4V2;
    case ModuleClass::kOProj:
      return layout == CheckpointLayout::kNvfp4V2;
    default:
      return false;
  }
}

}  // namespace

std::string_view module_class_title(ModuleClass module_class) {
  switch (module_class) {
    case ModuleClass::kEmbedding:
      return "embedding";
    case ModuleClass::kQAProj:
      return "attention q_a_proj";
    case ModuleClass::kQBProj:
      return "attention q_b_proj";
    case ModuleClass::kKvAProj:
      return "attention kv_a_proj_with_mqa";
    case ModuleClass::kKvBProj:
      return "attention kv_b_proj";
    case ModuleClass::kOProj:
      return "attention o_proj";
    case ModuleClass::kDenseMlp:
      return "dense MLP";
    case ModuleClass::kSharedExperts:
      return "shared experts";
    case ModuleClass::kRoutedExperts:
      return "routed experts";
    case ModuleClass::kRouter:
      return "router";
    case ModuleClass::kNorm:
      return "norms";
    case ModuleClass::kHead:
      return "lm_head";
    case ModuleClass::kMtp:
      return "MTP layer";
  }
  return "?";
}

std::string_view module_class_name(ModuleClass module_class) {
  switch (module_class) {
    case ModuleClass::kEmbedding:
      return "embed_tokens";
    case ModuleClass::kQAProj:
      return "q_a_proj";
    case ModuleClass::kQBProj:
      return "q_b_proj";
    case ModuleClass::kKvAProj:
      return "kv_a_proj_with_mqa";
    case ModuleClass::kKvBProj:
      return "kv_b_proj";
    case ModuleClass::kOProj:
      return "o_proj";
    case ModuleClass::kDenseMlp:
      return "mlp";
    case ModuleClass::kSharedExperts:
      return "shared_experts";
    case ModuleClass::kRoutedExperts:
      return "experts";
    case ModuleClass::kRouter:
      return "gate";
    case ModuleClass::kNorm:
      return "norms";
    case ModuleClass::kHead:
      return "lm_head";
    case ModuleClass::kMtp:
      return "mtp";
  }
  return "?";
}

std::string_view ModelTensor::module() const {
  std::string_view module = name;
  if (module.ends_with(".weight")) module.remove_suffix(7);
  return module;
}

std::vector<ModelTensor> model_tensors(const ModelConfig& config) {
  TensorList list;
  list.prefix = "model.";
  list.add("embed_tokens", {config.vocab_size, config.hidden_size}, ModuleClass::kEmbedding);
  for (int layer = 0; layer < config.num_hidden_layers; ++layer) add_layer(config, layer, list);
  for (int i = 0; i < config.num_nextn_predict_layers; ++i) {
    list.is_mtp = true;
    add_layer(config, config.num_hidden_layers + i, list);
    add_mtp(config, list);
  }
  list.is_mtp = false;
  list.layer = -1;
  list.prefix = "model.";
  list.add("norm", {config.hidden_size}, ModuleClass::kNorm);
  list.prefix = "";
  list.add("lm_head", {config.vocab_size, config.hidden_size}, ModuleClass::kHead);
  return std::move(list.tensors);
}

int64_t num_parameters(const std::vector<ModelTensor>& tensors) {
  int64_t count = 0;
  for (const ModelTensor& tensor : tensors) count += tensor.shape.num_elements();
  return count;
}

Result<std::vector<TensorInfo>> stored_tensors(const ModelConfig& config, CheckpointLayout layout) {
  std::vector<TensorInfo> stored;
  const auto add = [&](std::string name, DType dtype, Shape shape) {
    stored.push_back({std::move(name), dtype, std::move(shape), {}});
  };
  for (const ModelTensor& tensor : model_tensors(config)) {
    if (is_nvfp4(tensor, layout)) {
      const int64_t rows = tensor.shape[0];
      const int64_t cols = tensor.shape[1];
      if (cols % 16 != 0) {
        return unsupported(
            fmt::format("{} has {} columns, but NVFP4 needs a multiple of 16", tensor.name, cols));
      }
      add(tensor.name, DType::kU8, {rows, cols / 2});
      add(tensor.name + "_scale", DType::kF8E4m3, {rows, cols / 16});
      add(tensor.name + "_scale_2", DType::kF32, {});
      add(fmt::format("{}.input_scale", tensor.module()), DType::kF32, {});
    } else if (tensor.is_linear && layout == CheckpointLayout::kFp8) {
      add(tensor.name, DType::kF8E4m3, tensor.shape);
      add(tensor.name + "_scale_inv", DType::kF32,
          {(tensor.shape[0] + 127) / 128, (tensor.shape[1] + 127) / 128});
    } else {
      add(tensor.name, tensor.is_f32 ? DType::kF32 : DType::kBf16, tensor.shape);
    }
  }
  if (layout == CheckpointLayout::kNvfp4V1) {
    const int layers = config.num_hidden_layers + config.num_nextn_predict_layers;
    for (int layer = 0; layer < layers; ++layer) {
      add(fmt::format("model.layers.{}.self_attn.k_proj.k_scale", layer), DType::kF32, {});
      add(fmt::format("model.layers.{}.self_attn.v_proj.v_scale", layer), DType::kF32, {});
    }
  }
  std::sort(stored.begin(), stored.end(),
            [](const TensorInfo& a, const TensorInfo& b) { return a.name < b.name; });
  return stored;
}

}  // namespace nibble
