// nibble eval report: a table of runs, and what each keeps of the first.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <filesystem>
#include <memory>

#include "nibble/base/error.h"
#include "nibble/base/mapped_file.h"
#include "nibble/base/output_file.h"
#include "nibble/cli/cli_common.h"
#include "nibble/cli/eval_command.h"
#include "nibble/eval/report.h"

namespace nibble {
namespace {

struct EvalReportOptions {
  std::vector<std::string> runs;
  std::string baseline, published;
  std::string json, markdown, html;
  ReportSettings settings;
  std::optional<double> require_retention;
};

Result<RunReport> read_run(const std::string& folder) {
  auto path = std::filesystem::path(folder).lexically_normal();
  if (path.filename().empty()) path = path.parent_path();
  auto scores = NIBBLE_TRY(read_scores(folder));
  if (scores.empty()) return corrupt(fmt::format("{}: no scores", folder));
  std::string manifest = NIBBLE_TRY(read_manifest(folder));
  return make_report(path.filename().string(), std::move(scores), std::move(manifest));
}

Status write_forms(const EvalReportOptions& o, const std::vector<RunReport>& runs) {
  if (!o.markdown.empty()) {
    const std::string text = NIBBLE_TRY(report_table(runs, o.settings, ReportForm::kMarkdown));
    NIBBLE_TRY(write_text_file(o.markdown, text));
  }
  if (!o.json.empty()) {
    const std::string text = NIBBLE_TRY(report_json(runs, o.settings));
    NIBBLE_TRY(write_text_file(o.json, text));
  }
  if (!o.html.empty()) {
    const std::string text = NIBBLE_TRY(report_html(runs, o.settings));
    NIBBLE_TRY(write_text_file(o.html, text));
  }
  return {};
}

Result<int> eval_report(EvalReportOptions o) {
  if (!o.baseline.empty() && !o.published.empty()) {
    return invalid_argument("--baseline and --baseline-published are two baselines: give one");
  }
  if (!o.published.empty()) {
    const std::string text = NIBBLE_TRY(read_text_file(o.published));
    o.settings.published = NIBBLE_TRY(parse_published(text, o.published));
  }
  if (!o.baseline.empty()) o.runs.insert(o.runs.begin(), o.baseline);
  if (o.runs.empty() && o.published.empty()) {
    return invalid_argument("no run: give the folder of one, or more, the baseline first");
  }
  std::vector<RunReport> runs;
  for (const std::string& folder : o.runs) runs.push_back(NIBBLE_TRY(read_run(folder)));
  if (o.require_retention) o.settings.threshold = *o.require_retention;
  const std::string table = NIBBLE_TRY(report_table(runs, o.settings, ReportForm::kText));
  print(table);
  NIBBLE_TRY(write_forms(o, runs));
  const size_t compared_runs = runs.size() - (o.published.empty() && !runs.empty() ? 1 : 0);
  if (o.require_retention && compared_runs == 0) {
    return invalid_argument("--require-retention compares: give two runs");
  }
  bool is_comparable = true, is_retained = true;
  const auto all = NIBBLE_TRY(compare_all(runs, o.settings));
  for (const auto& compared : all) {
    for (const TaskComparison& one : compared) {
      is_comparable &= one.is_comparable() || o.settings.force;
      is_retained &= one.verdict == Retained::kRetained;
    }
  }
  if (!is_comparable) return kExitMismatch;
  return o.require_retention && !is_retained ? kExitNotRetained : 0;
}

}  // namespace

void add_eval_report(CLI::App& eval, int* exit_code) {
  CLI::App* command =
      eval.add_subcommand("report", "A table of runs; the first is the baseline of the others");
  command->footer(
      "retained: the whole 95 % interval of the retention is at or above the threshold; lost: "
      "below\n"
      "it; inconclusive: more questions or samples are needed.\n"
      "Example, the model card's own table:\n"
      "  nibble eval report --baseline-published models/suites/published-nvfp4-card.json");
  auto o = std::make_shared<EvalReportOptions>();
  command->add_option("RUN", o->runs, "Folders of runs, the baseline first");
  command->add_option("--baseline", o->baseline, "The baseline, instead of the first run")
      ->type_name("RUN");
  command
      ->add_option("--baseline-published", o->published, "A table of published values as baseline")
      ->type_name("FILE");
  command->add_option("--threshold", o->settings.threshold, "Percent of the baseline [98]")
      ->type_name("X");
  command
      ->add_option("--require-retention", o->require_retention,
                   "Exit 6 unless every task is retained at X percent")
      ->type_name("X");
  command->add_flag("--intersect", o->settings.intersect,
                    "Compare the questions that are in both runs");
  command->add_flag("--force", o->settings.force, "Judge runs whose manifests differ");
  command->add_option("--json", o->json, "Write the report as JSON")->type_name("FILE");
  command->add_option("--markdown", o->markdown, "Write the table as Markdown")->type_name("FILE");
  command->add_option("--html", o->html, "Write a page with plots")->type_name("FILE");
  command->callback([o, exit_code] { *exit_code = finish_eval(eval_report(*o), "eval report"); });
}

}  // namespace nibble
