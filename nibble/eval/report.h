// Tables of scores: one row a run, one column a task, and what each keeps of the first.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "nibble/base/result.h"
#include "nibble/eval/run.h"
#include "nibble/eval/stats.h"

namespace nibble {

struct TaskReport {
  std::string task;
  int64_t questions = 0;
  int64_t samples = 0;       // scored
  double score = 0;          // mean over questions of the mean over their samples, 0..1
  double se = 0;             // clustered
  Interval wilson_95;        // with one sample a question, otherwise 0..0
  double sample_sd = 0;      // of the means of the sample rounds
  int64_t k = 1;             // most samples of a question
  double pass_at_k = 0;      // with k = samples of a question
  double majority_at_k = 0;  // of choices and math: right by the answer that most samples give
  bool has_majority = false;
  std::map<std::string, int64_t> outcomes;
  std::map<std::string, int64_t> right_letters, chosen_letters;
  std::vector<int64_t> lengths;  // tokens of each sample, sorted
  double mean_tokens = 0;
  int64_t p99_tokens = 0;
  int64_t cut = 0, unclosed = 0, empty = 0, retries = 0, near_limit = 0, judged = 0;
  bool needs_check = false;  // more than 1 % errors

  int64_t count(const std::string& outcome) const;
  double cut_share() const;
};

struct RunReport {
  std::string name;
  std::vector<TaskReport> tasks;  // in the order of the scores
  std::vector<Score> scores;
  std::string manifest;  // JSON text
};

RunReport make_report(std::string name, std::vector<Score> scores, std::string manifest = {});

// A published table: values without samples. File: {"schema": "nibble.eval.published/1", "source",
// "baseline": NAME, "rows": [{"name", "values": {TASK: percent}, "unit": {TASK: last digit} or
// X}]}.
struct PublishedRow {
  std::string name;
  std::map<std::string, double> values;  // percent
  std::map<std::string, double> units;   // what values are rounded to
};
struct PublishedTable {
  std::string source;
  std::vector<PublishedRow> rows;
  size_t baseline = 0;
};
// Errors: kCorrupt naming `where`.
Result<PublishedTable> parse_published(const std::string& text, const std::string& where);

struct ReportSettings {
  double threshold = 98;                    // percent
  bool intersect = false;                   // compare the questions that both runs have
  bool force = false;                       // judge runs that are not comparable
  std::optional<PublishedTable> published;  // the baseline of all runs, instead of the first one
};

// One task of a run beside the baseline's. Only questions in both count.
struct TaskComparison {
  std::string task;
  int64_t questions = 0;
  bool is_paired = true;  // false: against a published value
  Comparison comparison;
  double holm_p = 1;
  Retained verdict = Retained::kInconclusive;
  int64_t questions_to_decide = 0;       // of an inconclusive one; 0: not to be said
  std::vector<std::string> differences;  // why the runs are not comparable
  bool cut_differs = false;              // shares of truncated answers more than 2 points apart

  bool is_comparable() const { return differences.empty(); }
};
// Errors: kInvalidArgument when a task's questions differ and `intersect` is false, or when no task
// is in both.
Result<std::vector<TaskComparison>> compare_reports(const RunReport& run, const RunReport& baseline,
                                                    const ReportSettings& settings);
Result<std::vector<TaskComparison>> compare_published(const RunReport& run,
                                                      const PublishedTable& table,
                                                      double threshold);
// Of each run against its baseline; empty for the baseline itself.
Result<std::vector<std::vector<TaskComparison>>> compare_all(const std::vector<RunReport>& runs,
                                                             const ReportSettings& settings);

enum class ReportForm { kText, kMarkdown };

// The card's table: a row for each run (the first is the baseline), then of every other run its
// retention, interval and verdict; then a health block of each run.
Result<std::string> report_table(const std::vector<RunReport>& runs, const ReportSettings& settings,
                                 ReportForm form);

// Schema nibble.eval.report/1.
Result<std::string> report_json(const std::vector<RunReport>& runs, const ReportSettings& settings);

// One page with plots, that needs nothing else: scores, retention, outcomes, lengths.
Result<std::string> report_html(const std::vector<RunReport>& runs, const ReportSettings& settings);

}  // namespace nibble
