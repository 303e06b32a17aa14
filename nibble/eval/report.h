// Tables of scores: one row a run, one column a task, and what each keeps of the first.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "nibble/base/result.h"
#include "nibble/eval/run.h"
#include "nibble/eval/stats.h"

namespace nibble {

struct TaskReport {
  std::string task;
  int64_t questions = 0;
  int64_t samples = 0;   // scored
  double score = 0;      // mean over questions of the mean over their samples, 0..1
  double se = 0;         // clustered
  Interval wilson_95;    // with one sample a question, otherwise 0..0
  double sample_sd = 0;  // of the means of the sample rounds
  double pass_at_k = 0;  // with k = samples of a question
  std::map<std::string, int64_t> outcomes;
  std::map<std::string, int64_t> right_letters, chosen_letters;
  double mean_tokens = 0;
  int64_t p99_tokens = 0;
  bool needs_check = false;  // more than 1 % errors
};

struct RunReport {
  std::string name;
  std::vector<TaskReport> tasks;  // in the order of the scores
  std::vector<Score> scores;
};

RunReport make_report(std::string name, std::vector<Score> scores);

// One task of a run beside the baseline's. Only questions in both count.
struct TaskComparison {
  std::string task;
  int64_t questions = 0;
  Comparison comparison;
  double holm_p = 1;
  Retained verdict = Retained::kInconclusive;
};
// threshold in percent. Errors: kInvalidArgument when a task's questions differ and `intersect` is
// false, or when no task is in both.
Result<std::vector<TaskComparison>> compare_reports(const RunReport& run, const RunReport& baseline,
                                                    double threshold, bool intersect);

enum class ReportForm { kText, kMarkdown };

// The card's table: a row for each run (the first is the baseline), then of every other run its
// retention, interval and verdict; then a health block of each run.
Result<std::string> report_table(const std::vector<RunReport>& runs, double threshold,
                                 bool intersect, ReportForm form);

// Schema nibble.eval.report/1.
Result<std::string> report_json(const std::vector<RunReport>& runs, double threshold,
                                bool intersect);

}  // namespace nibble
