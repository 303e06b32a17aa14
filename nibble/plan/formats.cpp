#include "nibble/plan/formats.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cctype>

#include "nibble/base/text.h"

namespace nibble {
namespace {

constexpr auto kBlockTypes = std::to_array<BlockType>({
    {"F32", 1, 4},
    {"F16", 1, 2},
    {"BF16", 1, 2},
    {"Q4_0", 32, 18},
    {"Q4_1", 32, 20},
    {"Q5_0", 32, 22},
    {"Q5_1", 32, 24},
    {"Q8_0", 32, 34},
    {"Q8_1", 32, 36},
    {"Q2_K", 256, 84},
    {"Q3_K", 256, 110},
    {"Q4_K", 256, 144},
    {"Q5_K", 256, 176},
    {"Q6_K", 256, 210},
    {"Q8_K", 256, 292},
    {"IQ1_S", 256, 50},
    {"IQ1_M", 256, 56},
    {"IQ2_XXS", 256, 66},
    {"IQ2_XS", 256, 74},
    {"IQ2_S", 256, 82},
    {"IQ3_XXS", 256, 98},
    {"IQ3_S", 256, 110},
    {"IQ4_NL", 32, 18},
    {"IQ4_XS", 256, 136},
    {"TQ1_0", 256, 54},
    {"TQ2_0", 256, 66},
    {"MXFP4", 32, 17},
    {"NVFP4_GGML", 64, 36},
    {"NVFP4_MODELOPT", 16, 9},
});

constexpr auto kPublished = std::to_array<PublishedGguf>({
    {"bartowski DeepSeek-R1-0528", "Q8_0", 713.29, true},
    {"bartowski DeepSeek-R1-0528", "Q6_K", 552.45, true},
    {"bartowski DeepSeek-R1-0528", "Q5_K_M", 478.34, true},
    {"bartowski DeepSeek-R1-0528", "Q5_K_S", 463.03, true},
    {"bartowski DeepSeek-R1-0528", "Q4_1", 421.04, true},
    {"bartowski DeepSeek-V3-0324", "Q8_0", 713.29, true},
    {"bartowski DeepSeek-V3-0324", "Q6_K", 550.8, true},
    {"bartowski DeepSeek-V3-0324", "Q5_K_M", 475.4, true},
    {"bartowski DeepSeek-V3-0324", "Q5_K_S", 461.81, true},
    {"bartowski DeepSeek-V3-0324", "Q4_1", 419.94, true},
    {"bartowski DeepSeek-V3-0324", "Q4_K_M", 404.43, true},
    {"bartowski DeepSeek-R1", "IQ4_NL", 378.2, false},
    {"bartowski DeepSeek-R1", "IQ4_XS", 356.9, false},
    {"bartowski DeepSeek-R1", "IQ3_M", 291.9, false},
    {"bartowski DeepSeek-R1", "Q3_K_S", 289.0, false},
    {"bartowski DeepSeek-R1", "Q2_K", 243.9, false},
    {"bartowski DeepSeek-R1", "IQ1_S", 133.5, false},
    {"unsloth DeepSeek-R1", "Q3_K_M", 319.2, false},
    {"unsloth DeepSeek-R1", "UD-IQ2_XXS", 196.2, false},
    {"unsloth DeepSeek-R1", "UD-IQ1_S", 140.2, false},
    {"unsloth DeepSeek-R1", "UD-Q2_K_XL", 226.6, false},
    {"unsloth DeepSeek-R1-0528", "UD-Q2_K_XL", 251.1, true},
    {"unsloth DeepSeek-R1-0528", "UD-IQ3_XXS", 272.91, true},
    {"unsloth DeepSeek-R1-0528", "UD-Q3_K_XL", 295.9, true},
    {"unsloth DeepSeek-R1-0528", "IQ4_XS", 357.7, true},
    {"ubergarm DeepSeek-R1-0528", "IQ3_KT", 292.62, true},
    {"ubergarm DeepSeek-R1-0528", "IQ3_KS", 302.22, true},
});

// Levels of llama.cpp without a published file of this model, and the block type that most of their
// tensors have.
struct Level {
  std::string_view name;
  std::string_view block;
};
constexpr auto kLevels = std::to_array<Level>({{"Q4_0", "Q4_0"},
                                               {"Q4_K_S", "Q4_K"},
                                               {"IQ3_XXS", "IQ3_XXS"},
                                               {"IQ2_M", "IQ2_S"},
                                               {"IQ2_XS", "IQ2_XS"},
                                               {"IQ2_XXS", "IQ2_XXS"},
                                               {"IQ1_M", "IQ1_M"}});

constexpr double kPublishedParameters = 671026404352.0;
constexpr double kMixAllowance = 1.02;  // a level keeps some tensors in larger types

Storage& at(std::array<Storage, kNumWeightKinds>& storages, WeightKind kind) {
  return storages[static_cast<size_t>(kind)];
}

Recipe plain_recipe() {
  Recipe recipe{};
  recipe.main.fill(Storage::kBf16);
  recipe.mtp.fill(Storage::kBf16);
  return recipe;
}

constexpr auto kAttention =
    std::to_array<WeightKind>({WeightKind::kQAProj, WeightKind::kQBProj, WeightKind::kKvAProj,
                               WeightKind::kKvBProj, WeightKind::kOProj});
constexpr auto kMlp = std::to_array<WeightKind>(
    {WeightKind::kDenseMlp, WeightKind::kSharedExperts, WeightKind::kRoutedExperts});

// DeepSeek's release: all linears of attention and MLP, the MTP layer's too.
Recipe fp8_recipe() {
  Recipe recipe = plain_recipe();
  for (const WeightKind kind : kAttention) {
    at(recipe.main, kind) = Storage::kFp8;
    at(recipe.mtp, kind) = Storage::kFp8;
  }
  for (const WeightKind kind : kMlp) {
    at(recipe.main, kind) = Storage::kFp8;
    at(recipe.mtp, kind) = Storage::kFp8;
  }
  return recipe;
}

// NVFP4 for the MLPs and these kinds; the MTP layer stays BF16, as Model Optimizer leaves it.
Recipe nvfp4_recipe(std::span<const WeightKind> also) {
  Recipe recipe = plain_recipe();
  for (const WeightKind kind : kMlp) at(recipe.main, kind) = Storage::kNvfp4;
  for (const WeightKind kind : also) at(recipe.main, kind) = Storage::kNvfp4;
  return recipe;
}

std::string fold(std::string_view name) {
  std::string folded;
  for (const char c : name) {
    if (c != '-' && c != '_')
      folded += static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  }
  return folded;
}

std::string lower(std::string_view name) {
  std::string text(name);
  for (char& c : text) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return text;
}

std::vector<PlanFormat> gguf_levels() {
  std::vector<PlanFormat> levels;
  const auto known = [&](std::string_view id) {
    return std::any_of(levels.begin(), levels.end(), [&](const auto& f) { return f.id == id; });
  };
  // R1-0528 first, then V3-0324 (stated exactly), then sums of rounded parts.
  for (const std::string_view preferred : {"R1-0528", "V3-0324", ""}) {
    for (const PublishedGguf& file : kPublished) {
      const std::string id = lower(file.level);
      if (file.publisher.find(preferred) == std::string_view::npos || known(id)) continue;
      levels.push_back({id, std::string(file.level), std::nullopt, file.bits(),
                        fmt::format("{:.2f} GB published by {}", file.file_gb, file.publisher),
                        false});
    }
  }
  for (const Level& level : kLevels) {
    const auto block = std::find_if(kBlockTypes.begin(), kBlockTypes.end(),
                                    [&](const BlockType& b) { return b.name == level.block; });
    if (known(lower(level.name))) continue;
    levels.push_back({lower(level.name), std::string(level.name), std::nullopt,
                      block->bits() * kMixAllowance,
                      fmt::format("estimate: {} blocks and 2 %", level.block), true});
  }
  std::stable_sort(levels.begin(), levels.end(), [](const PlanFormat& a, const PlanFormat& b) {
    return a.gguf_bits > b.gguf_bits;
  });
  return levels;
}

std::vector<PlanFormat> make_formats() {
  constexpr std::array kV2 = {WeightKind::kOProj};
  constexpr std::array kTurbo = {WeightKind::kQAProj, WeightKind::kQBProj, WeightKind::kKvAProj,
                                 WeightKind::kOProj};
  std::vector<PlanFormat> formats;
  formats.push_back({"nvfp4-v2", "NVFP4 v2", nvfp4_recipe(kV2), 0, "", false});
  formats.push_back({"nvfp4-v1", "NVFP4 v1", nvfp4_recipe({}), 0, "", false});
  formats.push_back(
      {"nvfp4-attention", "NVFP4 with attention", nvfp4_recipe(kTurbo), 0, "", false});
  formats.push_back({"fp8", "FP8 128x128", fp8_recipe(), 0, "", false});
  formats.push_back({"bf16", "BF16", plain_recipe(), 0, "", false});
  std::vector<PlanFormat> levels = gguf_levels();
  std::move(levels.begin(), levels.end(), std::back_inserter(formats));
  return formats;
}

}  // namespace

std::span<const BlockType> block_types() { return kBlockTypes; }
std::span<const PublishedGguf> published_ggufs() { return kPublished; }

double PublishedGguf::bits() const { return file_gb * 1e9 * 8 / kPublishedParameters; }

const std::vector<PlanFormat>& all_formats() {
  static const std::vector<PlanFormat> kFormats = make_formats();
  return kFormats;
}

PlanResult<PlanFormat> find_format(std::string_view name) {
  std::string wanted = fold(name);
  if (wanted == "nvfp4" || wanted == "v2") wanted = "nvfp4v2";
  // What `nibble quantize` calls it.
  if (wanted == "v1" || wanted == "nvfp4mlp") wanted = "nvfp4v1";
  if (wanted == "turbo") wanted = "nvfp4attention";
  std::vector<std::string> names;
  for (const PlanFormat& format : all_formats()) {
    if (fold(format.id) == wanted || fold(format.title) == wanted) return format;
    names.push_back(format.id);
  }
  return plan_error(
      "unknown_format",
      fmt::format("unknown format '{}'{} (expected nvfp4-v2, nvfp4-v1, nvfp4-attention, fp8, bf16, "
                  "or a GGUF level such as q4_k_m)",
                  name, did_you_mean(name, names)),
      "--quant all lists every format with its size");
}

PlanResult<ModelWeights> weights_of(const ModelConfig& config, const PlanFormat& format) {
  if (format.is_gguf()) return gguf_weights(config, format.gguf_bits);
  return weights_of(config, *format.recipe);
}

}  // namespace nibble
