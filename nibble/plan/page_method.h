// The arithmetic of a public hardware page (llmrun.dev), kept for comparison: what it says, beside
// what is so, and why they differ. Source: planner.md section 9.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/checkpoint/config.h"

namespace nibble {

struct PageLevel {
  std::string_view name;
  double bits;  // as the page has it
};
// IQ2_XXS 2.2 to Q8_0 8.0, in the page's order.
std::span<const PageLevel> page_levels();

// What the page's formulas take.
struct PageModel {
  int64_t parameters = 0;  // for a checkpoint: its stored elements, which is the page's first error
  int64_t layers = 0;
  int64_t kv_heads = 0;
  int64_t head_dim = 0;  // hidden_size / num_attention_heads, which MLA doesn't have
  int64_t max_context = 0;
};
PageModel page_model(const ModelConfig& config, int64_t stored_elements);

struct PageRow {
  std::string_view level;
  double bits = 0;
  double file_gb = 0;     // two decimals
  double vram_gb = 0;     // two decimals; the page prints one
  double context_gb = 0;  // with the full context; two decimals, printed with one
};

// Decimals are rounded twice, as the page does: to two, and when printed to one.
PageRow page_row(const PageModel& model, const PageLevel& level);

// The double's exact value to that many decimals, as JavaScript's toFixed: 284.35 prints 284.4 (it
// is a little more) and 454.15 prints 454.1 (a little less). Both are on the page.
std::string page_number(double value, int decimals);

int64_t page_recommended_gb(const PageRow& row);  // ceil(1.3 * vram)
double page_kv_bytes_per_token(const PageModel& model);

// "page says ... | fact ...": must accompany every use of the method.
struct PageDifference {
  std::string page;
  std::string fact;
};
std::vector<PageDifference> page_differences(const ModelConfig& config, const PageModel& model);

}  // namespace nibble
