// Which matrices of a DeepSeek-V3 model become NVFP4, and which of them share a global scale.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/base/result.h"
#include "nibble/checkpoint/config.h"

namespace nibble {

// In all but kNvfp4All the MTP layer stays in BF16; in all of them so do the router, embeddings,
// norms, lm_head and kv_b_proj.
enum class QuantizeScheme {
  kNvfp4V2,         // "nvfp4-v2": all MLPs and o_proj (DeepSeek-R1-0528-NVFP4-v2)
  kNvfp4Mlp,        // "nvfp4-mlp": dense, shared and routed MLPs (DeepSeek-R1-0528-FP4)
  kNvfp4Attention,  // "nvfp4-attention": v2, q_a_proj, q_b_proj and kv_a_proj_with_mqa
  kNvfp4All,        // "nvfp4-all": the same in the MTP layer too
};

// Errors: kInvalidArgument naming what was asked and the schemes there are.
Result<QuantizeScheme> parse_quantize_scheme(std::string_view name);
std::string_view quantize_scheme_name(QuantizeScheme scheme);

// An exception to the scheme: modules that match `pattern` (shell wildcards, as in exclude_modules)
// become NVFP4 or stay BF16.
struct SchemeOverride {
  std::string pattern;
  bool quantize = false;
};

// "PATTERN=nvfp4" or "PATTERN=bf16". Errors: kInvalidArgument.
Result<SchemeOverride> parse_scheme_override(std::string_view text);

// A scheme with its exceptions; of several that match, the last counts.
struct QuantizeRecipe {
  QuantizeScheme scheme = QuantizeScheme::kNvfp4V2;
  std::vector<SchemeOverride> overrides;

  // "nvfp4-v2", "nvfp4-v2, *.o_proj=bf16".
  std::string name() const;
};

// A linear layer [rows, cols] = [out_features, in_features] by its module path.
struct LinearSpec {
  std::string module;  // "model.layers.3.mlp.experts.17.gate_proj"
  int64_t rows = 0;
  int64_t cols = 0;
};

// Linears that share one weight_scale_2: gate_proj with up_proj, the others alone.
using LinearGroup = std::vector<LinearSpec>;

// Every matrix that the recipe quantizes in a model of this configuration, in layer order. Errors:
// kInvalidArgument for an override that matches nothing that could be quantized.
Result<std::vector<LinearGroup>> quantized_groups(const ModelConfig& config,
                                                  const QuantizeRecipe& recipe);

// What hf_quant_config.json lists under exclude_modules: sorted as strings, the MTP layers'
// wildcards last. A block of a layer that is left out whole is one wildcard. The router is never
// listed.
std::vector<std::string> excluded_modules(const ModelConfig& config, const QuantizeRecipe& recipe);

}  // namespace nibble
