// The formats a model can be planned in: the recipes of published checkpoints, and GGUF levels with
// the sizes that were published for them.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/plan/model_weights.h"
#include "nibble/plan/plan_error.h"

namespace nibble {

// How many bytes a block of a number format takes. Source: ggml's block structs and nvfp4.md.
struct BlockType {
  std::string_view name;
  int elements;
  int bytes;
  double bits() const { return 8.0 * bytes / elements; }
};
std::span<const BlockType> block_types();

// A published GGUF file of DeepSeek-R1 or V3 (671,026,404,352 parameters each).
struct PublishedGguf {
  std::string_view publisher;
  std::string_view level;
  double file_gb;
  bool stated;  // otherwise the sum of rounded parts
  // File bits over the main model's parameters without the router bias.
  double bits() const;
};
std::span<const PublishedGguf> published_ggufs();

struct PlanFormat {
  std::string id;                // "nvfp4-v2", "q4_k_m"
  std::string title;             // "NVFP4 v2", "Q4_K_M"
  std::optional<Recipe> recipe;  // absent for GGUF levels
  double gguf_bits = 0;          // bits per parameter over the file, for GGUF levels
  std::string origin;            // where gguf_bits is from
  bool estimate = false;         // gguf_bits is the block's bits and 2 %

  bool is_gguf() const { return !recipe.has_value(); }
};

// nvfp4-v2, nvfp4-v1, nvfp4-attention, fp8, bf16, then the GGUF levels by falling bits.
const std::vector<PlanFormat>& all_formats();

// By id or title; '-', '_' and case are ignored; "nvfp4" is nvfp4-v2. Errors: unknown_format with
// the nearest names and the list of what there is.
PlanResult<PlanFormat> find_format(std::string_view name);

// The model in a format. Errors: those of weights_of.
PlanResult<ModelWeights> weights_of(const ModelConfig& config, const PlanFormat& format);

}  // namespace nibble
