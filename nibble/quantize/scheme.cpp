#include "nibble/quantize/scheme.h"

#include <fmt/format.h>

#include <algorithm>

#include "nibble/base/error.h"
#include "nibble/base/text.h"

namespace nibble {
namespace {

constexpr std::string_view kSchemeNames[] = {"nvfp4-v2", "nvfp4-mlp"};

void add_mlp(const std::string& module, int64_t hidden_size, int64_t intermediate_size,
             std::vector<LinearGroup>* groups) {
  groups->push_back({{module + ".gate_proj", intermediate_size, hidden_size},
                     {module + ".up_proj", intermediate_size, hidden_size}});
  groups->push_back({{module + ".down_proj", hidden_size, intermediate_size}});
}

}  // namespace

Result<QuantizeScheme> parse_quantize_scheme(std::string_view name) {
  if (name == kSchemeNames[0]) return QuantizeScheme::kNvfp4V2;
  if (name == kSchemeNames[1]) return QuantizeScheme::kNvfp4Mlp;
  const std::vector<std::string> known(std::begin(kSchemeNames), std::end(kSchemeNames));
  return invalid_argument(fmt::format("scheme '{}' is not supported, expected {}{}", name,
                                      fmt::join(known, " or "), did_you_mean(name, known)));
}

std::string_view quantize_scheme_name(QuantizeScheme scheme) {
  return kSchemeNames[static_cast<size_t>(scheme)];
}

std::vector<LinearGroup> quantized_groups(const ModelConfig& config, QuantizeScheme scheme) {
  std::vector<LinearGroup> groups;
  for (int layer = 0; layer < config.num_hidden_layers; ++layer) {
    const std::string prefix = fmt::format("model.layers.{}", layer);
    if (scheme == QuantizeScheme::kNvfp4V2) {
      groups.push_back({{prefix + ".self_attn.o_proj", config.hidden_size,
                         config.num_attention_heads * config.v_head_dim}});
    }
    if (!config.is_moe_layer(layer)) {
      add_mlp(prefix + ".mlp", config.hidden_size, config.intermediate_size, &groups);
      continue;
    }
    for (int expert = 0; expert < config.n_routed_experts; ++expert) {
      add_mlp(fmt::format("{}.mlp.experts.{}", prefix, expert), config.hidden_size,
              config.moe_intermediate_size, &groups);
    }
    if (config.n_shared_experts > 0) {
      add_mlp(prefix + ".mlp.shared_experts", config.hidden_size,
              config.moe_intermediate_size * config.n_shared_experts, &groups);
    }
  }
  return groups;
}

std::vector<std::string> excluded_modules(const ModelConfig& config, QuantizeScheme scheme) {
  std::vector<std::string> modules = {"lm_head"};
  for (int layer = 0; layer < config.num_hidden_layers; ++layer) {
    const std::string attention = fmt::format("model.layers.{}.self_attn", layer);
    if (scheme == QuantizeScheme::kNvfp4Mlp) {
      modules.push_back(attention + "*");
      continue;
    }
    for (const char* name : {"kv_a_proj_with_mqa", "kv_b_proj", "q_a_proj", "q_b_proj"}) {
      modules.push_back(fmt::format("{}.{}", attention, name));
    }
  }
  std::sort(modules.begin(), modules.end());
  for (int i = 0; i < config.num_nextn_predict_layers; ++i) {
    modules.push_back(fmt::format("model.layers.{}*", config.num_hidden_layers + i));
  }
  return modules;
}

}  // namespace nibble
