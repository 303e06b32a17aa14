#include "nibble/plan/page_method.h"

#include <fmt/format.h>

#include <array>
#include <cmath>

#include "nibble/plan/formats.h"
#include "nibble/plan/kv_cache_size.h"

namespace nibble {
namespace {

constexpr auto kLevels = std::to_array<PageLevel>({{"IQ2_XXS", 2.2},
                                                   {"IQ2_M", 2.7},
                                                   {"IQ3_XXS", 3.1},
                                                   {"Q2_K", 3.4},
                                                   {"Q3_K_S", 3.5},
                                                   {"Q3_K_M", 3.9},
                                                   {"Q4_0", 4.0},
                                                   {"IQ4_XS", 4.3},
                                                   {"Q4_1", 4.5},
                                                   {"Q4_K_S", 4.5},
                                                   {"IQ4_NL", 4.5},
                                                   {"Q4_K_M", 4.8},
                                                   {"Q5_K_S", 5.5},
                                                   {"Q5_K_M", 5.7},
                                                   {"Q6_K", 6.6},
                                                   {"Q8_0", 8.0}});
constexpr double kFrameworkGb = 0.3;
constexpr double kBaseContext = 2048;
constexpr double kHeadroom = 1.3;

double two_decimals(double value) { return std::floor(value * 100 + 0.5) / 100; }

double kv_gb(const PageModel& model, double tokens) {
  return page_kv_bytes_per_token(model) * tokens / 1e9;
}

std::string difference_percent(double page, double fact) {
  return fmt::format("{:.0f} % too {}", std::abs(page / fact - 1) * 100,
                     page < fact ? "low" : "high");
}

}  // namespace

std::span<const PageLevel> page_levels() { return kLevels; }

PageModel page_model(const ModelConfig& config, int64_t stored_elements) {
  return {stored_elements, config.num_hidden_layers, config.num_key_value_heads,
          config.hidden_size / config.num_attention_heads, config.max_position_embeddings};
}

double page_kv_bytes_per_token(const PageModel& model) {
  return 2.0 * static_cast<double>(model.layers) * static_cast<double>(model.kv_heads) *
         static_cast<double>(model.head_dim) * 2;
}

PageRow page_row(const PageModel& model, const PageLevel& level) {
  const double file = static_cast<double>(model.parameters) * level.bits / 8 / 1e9;
  PageRow row;
  row.level = level.name;
  row.bits = level.bits;
  row.file_gb = two_decimals(file);
  row.vram_gb = two_decimals(file + kv_gb(model, kBaseContext) + kFrameworkGb);
  row.context_gb =
      two_decimals(file + kv_gb(model, static_cast<double>(model.max_context)) + kFrameworkGb);
  return row;
}

std::string page_number(double value, int decimals) {
  return fmt::format("{:.{}f}", value, decimals);
}

int64_t page_recommended_gb(const PageRow& row) {
  return static_cast<int64_t>(std::ceil(kHeadroom * row.vram_gb));
}

std::vector<PageDifference> page_differences(const ModelConfig& config, const PageModel& model) {
  std::vector<PageDifference> list;
  const auto v2 = find_format("nvfp4-v2");
  const auto v2_weights = weights_of(config, *v2);
  if (!v2_weights) return list;
  const double true_parameters = static_cast<double>(v2_weights->main_parameters());
  list.push_back(
      {fmt::format("{:.1f} B parameters", static_cast<double>(model.parameters) / 1e9),
       fmt::format("{:.1f} B in the main model; the page counts stored elements: a byte that holds "
                   "two NVFP4 weights as one, the scales, and the MTP layer",
                   true_parameters / 1e9)});
  for (const PageLevel& level : kLevels) {
    const auto format = find_format(level.name);
    if (!format) continue;
    const double page_gb = page_row(model, level).file_gb;
    const double fact_gb =
        static_cast<double>(gguf_weights(config, format->gguf_bits).file_bytes()) / 1e9;
    list.push_back(
        {fmt::format("{} file {:.2f} GB at {:.1f} bits", level.name, page_gb, level.bits),
         fmt::format("{:.2f} GB at {:.3f} bits ({}): {}", fact_gb, format->gguf_bits,
                     format->origin, difference_percent(page_gb, fact_gb))});
  }
  const double context = static_cast<double>(model.max_context);
  const double added = context - kBaseContext;
  const double bf16 = static_cast<double>(kv_bytes_per_token(config, KvFormat::kBf16, false));
  const double fp8 = static_cast<double>(kv_bytes_per_token(config, KvFormat::kFp8, false));
  const double page_kv = page_kv_bytes_per_token(model);
  list.push_back(
      {fmt::format("full context adds {} GB", page_number(page_kv * added / 1e9, 1)),
       fmt::format("{:.2f} GB in BF16, {:.2f} GB in FP8: {:.0f} and {:.0f} times too high; "
                   "the model caches one latent of {} and a key of {} a layer, not {} "
                   "heads of {}",
                   bf16 * added / 1e9, fp8 * added / 1e9, page_kv / bf16, page_kv / fp8,
                   config.kv_lora_rank, config.qk_rope_head_dim, model.kv_heads, model.head_dim)});
  list.push_back(
      {fmt::format("Q4_K_M needs {} GB with the full context",
                   page_number(page_row(model, kLevels[11]).context_gb, 1)),
       fmt::format(
           "NVFP4 v2 needs {:.1f} + {:.1f} GB without MTP: the page's two errors partly cancel",
           static_cast<double>(v2_weights->resident_bytes(false)) / 1e9, bf16 * context / 1e9)});
  list.push_back({"0.3 GB overhead", "2 to 7 GB on each GPU: context, graphs, workspace"});
  list.push_back({"an NVFP4 file at GGUF levels",
                  "the levels are made from the BF16 or FP8 source, not from an NVFP4 file"});
  return list;
}

}  // namespace nibble
