#include "nibble/quantize/scheme.h"

#include <fmt/format.h>

#include <algorithm>

#include "nibble/base/error.h"
#include "nibble/base/text.h"
#include "nibble/checkpoint/quant_config.h"

namespace nibble {
namespace {

constexpr std::string_view kSchemeNames[] = {"nvfp4-v2", "nvfp4-mlp", "nvfp4-attention",
                                             "nvfp4-all"};

bool matches(const std::string& pattern, std::string_view module) {
  QuantConfig config;
  config.exclude_modules = {pattern};
  return is_excluded(config, module);
}

// The matrices of one layer that may be quantized, in blocks ("self_attn", "mlp").
struct Block {
  std::string module;
  std::vector<LinearGroup> groups;
  std::vector<std::string> never;  // matrices that stay BF16 in every recipe
};

void add_mlp(const std::string& module, int64_t hidden_size, int64_t intermediate_size,
             Block* block) {
  block->groups.push_back({{module + ".gate_proj", intermediate_size, hidden_size},
                           {module + ".up_proj", intermediate_size, hidden_size}});
  block->groups.push_back({{module + ".down_proj", hidden_size, intermediate_size}});
}

std::vector<Block> layer_blocks(const ModelConfig& c, int layer) {
  const std::string prefix = fmt::format("model.layers.{}", layer);
  const int64_t heads = c.num_attention_heads;
  Block attention{prefix + ".self_attn", {}, {prefix + ".self_attn.kv_b_proj"}};
  const auto add = [&](const char* name, int64_t rows, int64_t cols) {
    attention.groups.push_back({{fmt::format("{}.{}", attention.module, name), rows, cols}});
  };
  add("q_a_proj", c.q_lora_rank, c.hidden_size);
  add("q_b_proj", heads * c.qk_head_dim(), c.q_lora_rank);
  add("kv_a_proj_with_mqa", c.kv_lora_rank + c.qk_rope_head_dim, c.hidden_size);
  add("o_proj", c.hidden_size, heads * c.v_head_dim);

  Block mlp{prefix + ".mlp", {}, {}};
  if (layer < c.num_hidden_layers && !c.is_moe_layer(layer)) {
    add_mlp(mlp.module, c.hidden_size, c.intermediate_size, &mlp);
  } else {
    for (int expert = 0; expert < c.n_routed_experts; ++expert) {
      add_mlp(fmt::format("{}.experts.{}", mlp.module, expert), c.hidden_size,
              c.moe_intermediate_size, &mlp);
    }
    if (c.n_shared_experts > 0) {
      add_mlp(mlp.module + ".shared_experts", c.hidden_size,
              c.moe_intermediate_size * c.n_shared_experts, &mlp);
    }
  }
  std::vector<Block> blocks;
  blocks.push_back(std::move(attention));
  blocks.push_back(std::move(mlp));
  return blocks;
}

bool in_scheme(const ModelConfig& config, QuantizeScheme scheme, int layer,
               std::string_view module) {
  if (layer >= config.num_hidden_layers && scheme != QuantizeScheme::kNvfp4All) return false;
  if (module.find(".self_attn.") == std::string_view::npos) return true;
  if (module.ends_with(".o_proj")) return scheme != QuantizeScheme::kNvfp4Mlp;
  return scheme == QuantizeScheme::kNvfp4Attention || scheme == QuantizeScheme::kNvfp4All;
}

bool is_quantized(const ModelConfig& config, const QuantizeRecipe& recipe, int layer,
                  std::string_view module) {
  bool quantize = in_scheme(config, recipe.scheme, layer, module);
  for (const SchemeOverride& exception : recipe.overrides) {
    if (matches(exception.pattern, module)) quantize = exception.quantize;
  }
  return quantize;
}

int num_layers(const ModelConfig& config) {
  return config.num_hidden_layers + config.num_nextn_predict_layers;
}

}  // namespace

Result<QuantizeScheme> parse_quantize_scheme(std::string_view name) {
  for (size_t i = 0; i < std::size(kSchemeNames); ++i) {
    if (name == kSchemeNames[i]) return static_cast<QuantizeScheme>(i);
  }
  const std::vector<std::string> known(std::begin(kSchemeNames), std::end(kSchemeNames));
  return invalid_argument(fmt::format("scheme '{}' is not supported, expected {}{}", name,
                                      fmt::join(known, " or "), did_you_mean(name, known)));
}

std::string_view quantize_scheme_name(QuantizeScheme scheme) {
  return kSchemeNames[static_cast<size_t>(scheme)];
}

Result<SchemeOverride> parse_scheme_override(std::string_view text) {
  const size_t equals = text.rfind('=');
  const std::string_view format = equals == std::string_view::npos ? "" : text.substr(equals + 1);
  if (equals == 0 || (format != "nvfp4" && format != "bf16")) {
    return invalid_argument(fmt::format(
        "override '{}' is not PATTERN=nvfp4 or PATTERN=bf16, as in '*.experts.*.down_proj=bf16'",
        text));
  }
  return SchemeOverride{std::string(text.substr(0, equals)), format == "nvfp4"};
}

std::string QuantizeRecipe::name() const {
  std::string text(quantize_scheme_name(scheme));
  for (const SchemeOverride& exception : overrides) {
    text += fmt::format(", {}={}", exception.pattern, exception.quantize ? "nvfp4" : "bf16");
  }
  return text;
}

Result<std::vector<LinearGroup>> quantized_groups(const ModelConfig& config,
                                                  const QuantizeRecipe& recipe) {
  std::vector<bool> used(recipe.overrides.size());
  std::vector<LinearGroup> groups;
  for (int layer = 0; layer < num_layers(config); ++layer) {
    for (const Block& block : layer_blocks(config, layer)) {
      for (const LinearGroup& candidates : block.groups) {
        LinearGroup group;
        for (const LinearSpec& linear : candidates) {
          for (size_t i = 0; i < used.size(); ++i) {
            if (!used[i]) used[i] = matches(recipe.overrides[i].pattern, linear.module);
          }
          if (is_quantized(config, recipe, layer, linear.module)) group.push_back(linear);
        }
        if (!group.empty()) groups.push_back(std::move(group));
      }
    }
  }
  for (size_t i = 0; i < used.size(); ++i) {
    if (used[i]) continue;
    return invalid_argument(fmt::format(
        "override '{}' matches no matrix that can be quantized (MLPs, experts, q_a_proj, q_b_proj, "
        "kv_a_proj_with_mqa, o_proj), as in model.layers.3.mlp.experts.17.down_proj",
        recipe.overrides[i].pattern));
  }
  return groups;
}

std::vector<std::string> excluded_modules(const ModelConfig& config, const QuantizeRecipe& recipe) {
  std::vector<std::string> modules = {"lm_head"};
  std::vector<std::string> whole_layers;
  for (int layer = 0; layer < num_layers(config); ++layer) {
    std::vector<std::string> of_layer;
    size_t whole_blocks = 0;
    const auto blocks = layer_blocks(config, layer);
    for (const Block& block : blocks) {
      std::vector<std::string> left_out = block.never;
      size_t candidates = 0;
      for (const LinearGroup& group : block.groups) {
        for (const LinearSpec& linear : group) {
          ++candidates;
          if (!is_quantized(config, recipe, layer, linear.module)) {
            left_out.push_back(linear.module);
          }
        }
      }
      if (left_out.size() == candidates + block.never.size()) {
        left_out = {block.module + "*"};
        ++whole_blocks;
      }
      of_layer.insert(of_layer.end(), left_out.begin(), left_out.end());
    }
    const bool is_mtp = layer >= config.num_hidden_layers;
    if (is_mtp && whole_blocks == blocks.size()) {
      whole_layers.push_back(fmt::format("model.layers.{}*", layer));
      continue;
    }
    if (is_mtp) {
      for (const char* name : {"eh_proj", "embed_tokens", "shared_head*"}) {
        of_layer.push_back(fmt::format("model.layers.{}.{}", layer, name));
      }
    }
    modules.insert(modules.end(), of_layer.begin(), of_layer.end());
  }
  std::sort(modules.begin(), modules.end());
  modules.insert(modules.end(), whole_layers.begin(), whole_layers.end());
  return modules;
}

}  // namespace nibble
