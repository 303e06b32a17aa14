// Which matrices of a DeepSeek-V3 model become NVFP4, and which of them share a global scale.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/base/result.h"
#include "nibble/checkpoint/config.h"

namespace nibble {

// The recipes of the published checkpoints. In both the MTP layer, the router, embeddings, norms
// and the low-rank attention projections stay in BF16.
enum class QuantizeScheme {
  kNvfp4V2,   // "nvfp4-v2": dense, shared and routed MLPs, and o_proj (DeepSeek-R1-0528-NVFP4-v2)
  kNvfp4Mlp,  // "nvfp4-mlp": the same without o_proj (DeepSeek-R1-0528-FP4)
};

// Errors: kInvalidArgument naming what was asked and the schemes there are.
Result<QuantizeScheme> parse_quantize_scheme(std::string_view name);
std::string_view quantize_scheme_name(QuantizeScheme scheme);

// A linear layer [rows, cols] = [out_features, in_features] by its module path.
struct LinearSpec {
  std::string module;  // "model.layers.3.mlp.experts.17.gate_proj"
  int64_t rows = 0;
  int64_t cols = 0;
};

// Linears that share one weight_scale_2: gate_proj with up_proj, the others alone.
using LinearGroup = std::vector<LinearSpec>;

// Every matrix that `scheme` quantizes in a model of this configuration, in layer order.
std::vector<LinearGroup> quantized_groups(const ModelConfig& config, QuantizeScheme scheme);

// What hf_quant_config.json lists under exclude_modules: sorted as strings, the MTP layers'
// wildcards last.
std::vector<std::string> excluded_modules(const ModelConfig& config, QuantizeScheme scheme);

}  // namespace nibble
