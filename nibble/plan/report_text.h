// Plans for people: the table of one plan, tables of formats and devices as text, Markdown or CSV,
// and the web page. Source of the layout: planner.md section 12.
#pragma once

#include <string>
#include <vector>

#include "nibble/plan/device_sets.h"
#include "nibble/plan/page_method.h"
#include "nibble/plan/planner.h"
#include "nibble/plan/published.h"

namespace nibble {

// `verbose`: weights by class too.
std::string plan_text(const PlanReport& report, bool verbose = false);

enum class TableStyle { kText, kMarkdown, kCsv };

// Rows of equal length, the first of them the heads. kText aligns columns of numbers to the right.
std::string table_text(const std::vector<std::vector<std::string>>& rows, TableStyle style);

std::string sets_text(const std::vector<DeviceSet>& sets, TableStyle style);
std::string catalogue_text(const Catalogue& catalogue, TableStyle style);

// One line for each format on some hardware: which of them this memory holds.
struct FormatRow {
  PlanFormat format;
  ModelWeights weights;
  double kv_gb = 0;  // of the request
  std::string smallest_set;
  Verdict verdict = Verdict::kDoesNotFit;
};
std::string formats_text(const std::vector<FormatRow>& rows, TableStyle style);

// The page's table, the true figures beside it, and why they differ.
std::string page_text(const ModelConfig& config, const PageModel& model, TableStyle style);

std::string accuracy_text(const AccuracyReport& report, TableStyle style);

// One self-contained HTML file: the device table and a bar of where memory goes. Works offline.
std::string page_html(const PlanModel& model, const PlanRequest& request,
                      const std::string& format_title, const std::vector<DeviceSet>& sets);

}  // namespace nibble
