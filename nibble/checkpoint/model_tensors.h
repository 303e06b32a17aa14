// The tensors that a model of a given config must have: what `nibble inspect` compares a checkpoint
// with, and what the synthetic source makes.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/base/result.h"
#include "nibble/checkpoint/config.h"
#include "nibble/checkpoint/linear_tensors.h"
#include "nibble/checkpoint/source.h"

namespace nibble {

// What a tensor belongs to. Every tensor of the MTP layer is kMtp, its experts included.
enum class ModuleClass {
  kEmbedding,
  kQAProj,
  kQBProj,
  kKvAProj,
  kKvBProj,
  kOProj,
  kDenseMlp,
  kSharedExperts,
  kRoutedExperts,
  kRouter,
  kNorm,
  kHead,
  kMtp,
};
inline constexpr int kNumModuleClasses = 13;

// "embedding", "attention q_a", "routed experts", ...: for tables; "q_a_proj", ...: for JSON.
std::string_view module_class_title(ModuleClass module_class);
std::string_view module_class_name(ModuleClass module_class);

// One weight or bias, its companions (scales) left out.
struct ModelTensor {
  std::string name;  // "model.layers.3.mlp.experts.17.down_proj.weight"
  Shape shape;       // logical: [rows, cols] for matrices
  ModuleClass module_class = ModuleClass::kNorm;
  bool is_linear = false;    // may be quantized: its format is found by find_weight_format
  bool is_f32 = false;       // e_score_correction_bias; everything else that is no linear is BF16
  bool is_optional = false;  // the MTP layer's copies of embed_tokens and lm_head
  int layer = -1;            // -1 outside of the layers; num_hidden_layers is the MTP layer

  // `name` without ".weight": what read_linear wants.
  std::string_view module() const;
};

// Every tensor of the model, layer by layer. Source of names and shapes: nvfp4.md section 6.
std::vector<ModelTensor> model_tensors(const ModelConfig& config);

// Model parameters: the product of each shape, optional copies included. 684,489,845,504 for
// DeepSeek-R1.
int64_t num_parameters(const std::vector<ModelTensor>& tensors);

// The published ways to store the model.
enum class CheckpointLayout {
  kBf16,     // all in BF16
  kFp8,      // DeepSeek's release: every linear in FP8 with 128x128 blocks
  kNvfp4V1,  // nvidia/DeepSeek-R1-0528-FP4: MLPs and experts in NVFP4; k_scale and v_scale
  kNvfp4V2,  // nvidia/DeepSeek-R1-0528-NVFP4-v2: o_proj too; no k_scale and v_scale
};

// The tensors as they are stored, scales included, sorted by name. The NVFP4 layouts leave the MTP
// layer in BF16. Errors: kUnsupported naming the matrix when NVFP4 meets columns that are no
// multiple of 16.
Result<std::vector<TensorInfo>> stored_tensors(const ModelConfig& config, CheckpointLayout layout);

}  // namespace nibble
