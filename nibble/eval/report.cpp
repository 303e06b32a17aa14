#include "nibble/eval/report.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "nibble/base/error.h"
#include "nibble/eval/manifest.h"

namespace nibble {
namespace {

constexpr uint64_t kBootstrapSeed = 20250101;
constexpr double kNormal95 = 1.959963984540054;
constexpr double kCutDifference = 0.02;

struct Question {
  std::string cluster;
  std::map<int, double> samples;       // by sample: right or wrong
  std::map<int, std::string> answers;  // by sample: what was extracted; none without an answer

  double score() const {
    double sum = 0;
    for (const auto& [sample, right] : samples) sum += right;
    return samples.empty() ? 0 : sum / static_cast<double>(samples.size());
  }

  // Whether the answer that most samples give is right. Right answers are one, whatever their form;
  // a tie is for the one that came first.
  double majority() const {
    std::map<std::string, int> votes;
    for (const auto& [sample, answer] : answers) ++votes[answer_key(sample)];
    int most = 0;
    double right = 0;
    for (const auto& [sample, answer] : answers) {
      if (votes[answer_key(sample)] <= most) continue;
      most = votes[answer_key(sample)];
      right = samples.at(sample);
    }
    return right;
  }

 private:
  std::string answer_key(int sample) const {
    return samples.at(sample) > 0 ? "+" : "-" + answers.at(sample);
  }
};

using Questions = std::map<std::string, Question>;

Questions questions_of(const std::vector<Score>& scores, const std::string& task) {
  Questions questions;
  for (const Score& score : scores) {
    if (score.task != task) continue;
    Question& question = questions[score.id];
    question.cluster = score.cluster;
    question.samples[score.sample] = score.outcome == "correct" ? 1 : 0;
    if (!score.extracted.empty()) question.answers[score.sample] = score.extracted;
  }
  return questions;
}

void add_rounds(const std::map<int, std::vector<double>>& rounds, TaskReport* report) {
  if (rounds.size() < 2) return;
  std::vector<double> means;
  means.reserve(rounds.size());
  for (const auto& [sample, right] : rounds) means.push_back(mean(right));
  const double center = mean(means);
  double squares = 0;
  for (const double one : means) squares += (one - center) * (one - center);
  report->sample_sd = std::sqrt(squares / static_cast<double>(means.size() - 1));
}

void add_scores(const Questions& questions, TaskReport* report) {
  std::vector<double> values, passes, majorities;
  std::vector<std::string> clusters;
  std::map<int, std::vector<double>> rounds;
  for (const auto& [id, question] : questions) {
    values.push_back(question.score());
    clusters.push_back(question.cluster);
    majorities.push_back(question.majority());
    report->k = std::max(report->k, static_cast<int64_t>(question.samples.size()));
    int64_t right = 0;
    for (const auto& [sample, value] : question.samples) {
      rounds[sample].push_back(value);
      right += value > 0 ? 1 : 0;
    }
    const auto n = static_cast<int64_t>(question.samples.size());
    passes.push_back(pass_at_k(n, right, n));
  }
  report->questions = static_cast<int64_t>(questions.size());
  report->score = mean(values);
  report->se = clustered_se(values, clusters);
  report->pass_at_k = mean(passes);
  report->majority_at_k = mean(majorities);
  if (report->k == 1) {
    const auto n = static_cast<double>(values.size());
    report->wilson_95 = wilson(report->score * n, n);
  }
  add_rounds(rounds, report);
}

TaskReport task_report(const std::vector<Score>& scores, const std::string& task) {
  TaskReport report;
  report.task = task;
  add_scores(questions_of(scores, task), &report);
  for (const Score& score : scores) {
    if (score.task != task) continue;
    ++report.samples;
    ++report.outcomes[score.outcome];
    report.lengths.push_back(score.completion_tokens);
    report.mean_tokens += static_cast<double>(score.completion_tokens);
    report.cut += score.was_cut ? 1 : 0;
    report.unclosed += score.is_unclosed ? 1 : 0;
    report.empty += score.is_empty ? 1 : 0;
    report.near_limit += score.is_near_limit ? 1 : 0;
    report.judged += score.judge.empty() ? 0 : 1;
    report.retries += score.retries;
    report.has_majority |= !score.gold.empty();
    const bool is_choice = score.extractor != "boxed-v1" && score.gold.size() == 1;
    if (is_choice) {
      ++report.right_letters[score.gold];
      if (!score.extracted.empty()) ++report.chosen_letters[score.extracted];
    }
  }
  std::sort(report.lengths.begin(), report.lengths.end());
  report.mean_tokens /= static_cast<double>(std::max<int64_t>(1, report.samples));
  report.p99_tokens = report.lengths[(report.lengths.size() - 1) * 99 / 100];
  report.needs_check =
      (report.count("error") + report.count("sandbox_error")) * 100 > report.samples;
  return report;
}

const TaskReport* find_task_report(const RunReport& run, const std::string& task) {
  for (const TaskReport& report : run.tasks) {
    if (report.task == task) return &report;
  }
  return nullptr;
}

// The extractor of a task's scores, and whether a judge helped.
std::string scored_by(const std::vector<Score>& scores, const std::string& task) {
  std::string by;
  bool is_judged = false;
  for (const Score& score : scores) {
    if (score.task != task) continue;
    by = score.extractor;
    is_judged |= !score.judge.empty();
  }
  return by + (is_judged ? " with a judge" : "");
}

// How many questions would bring the interval to one side of the threshold: its half width falls
// with the root of their number.
int64_t questions_to_decide(double retention, double se, double threshold, int64_t questions) {
  const double distance = std::abs(retention - threshold);
  if (!std::isfinite(retention) || distance < 1e-9 || se <= 0) return 0;
  const double factor = kNormal95 * se / distance;
  const double needed = std::ceil(static_cast<double>(questions) * factor * factor);
  return needed < 1e9 ? std::max(questions, static_cast<int64_t>(needed)) : 0;
}

void adjust(std::vector<TaskComparison>* all) {
  std::vector<double> p_values;
  p_values.reserve(all->size());
  for (const TaskComparison& one : *all) p_values.push_back(one.comparison.p_value);
  const auto adjusted = holm(p_values);
  for (size_t i = 0; i < all->size(); ++i) (*all)[i].holm_p = adjusted[i];
}

}  // namespace

int64_t TaskReport::count(const std::string& outcome) const {
  const auto found = outcomes.find(outcome);
  return found == outcomes.end() ? 0 : found->second;
}

double TaskReport::cut_share() const {
  return static_cast<double>(cut) / static_cast<double>(std::max<int64_t>(1, samples));
}

RunReport make_report(std::string name, std::vector<Score> scores, std::string manifest) {
  RunReport report;
  report.name = std::move(name);
  report.manifest = std::move(manifest);
  std::vector<std::string> tasks;
  for (const Score& score : scores) {
    if (std::find(tasks.begin(), tasks.end(), score.task) == tasks.end()) {
      tasks.push_back(score.task);
    }
  }
  for (const std::string& task : tasks) report.tasks.push_back(task_report(scores, task));
  report.scores = std::move(scores);
  return report;
}

Result<std::vector<TaskComparison>> compare_reports(const RunReport& run, const RunReport& baseline,
                                                    const ReportSettings& settings) {
  std::vector<TaskComparison> all;
  for (const TaskReport& task : run.tasks) {
    const TaskReport* const other_task = find_task_report(baseline, task.task);
    if (other_task == nullptr) continue;
    const auto ours = questions_of(run.scores, task.task);
    const auto theirs = questions_of(baseline.scores, task.task);
    std::vector<Pair> pairs;
    for (const auto& [id, question] : ours) {
      const auto other = theirs.find(id);
      if (other == theirs.end()) continue;
      pairs.push_back({question.cluster, question.score(), other->second.score()});
    }
    if (!settings.intersect && (pairs.size() != ours.size() || pairs.size() != theirs.size())) {
      return invalid_argument(fmt::format(
          "{}: {} has {} questions and {} has {}, {} of them in both; --intersect compares those",
          task.task, run.name, ours.size(), baseline.name, theirs.size(), pairs.size()));
    }
    if (pairs.empty()) continue;
    TaskComparison one;
    one.task = task.task;
    one.questions = static_cast<int64_t>(pairs.size());
    one.comparison = compare_runs(pairs, kBootstrapSeed);
    one.verdict = judge_retention(one.comparison.retention_95, settings.threshold);
    if (one.verdict == Retained::kInconclusive) {
      one.questions_to_decide = questions_to_decide(
          one.comparison.retention, one.comparison.retention_se, settings.threshold, one.questions);
    }
    if (!run.manifest.empty() && !baseline.manifest.empty()) {
      one.differences = manifest_differences(baseline.manifest, run.manifest, task.task);
    }
    const std::string ours_by = scored_by(run.scores, task.task);
    const std::string theirs_by = scored_by(baseline.scores, task.task);
    if (ours_by != theirs_by) {
      one.differences.push_back(fmt::format("scored by {} and {}", theirs_by, ours_by));
    }
    one.cut_differs = std::abs(task.cut_share() - other_task->cut_share()) > kCutDifference;
    all.push_back(std::move(one));
  }
  if (all.empty()) {
    return invalid_argument(
        fmt::format("{} and {} have no task in common", run.name, baseline.name));
  }
  adjust(&all);
  return all;
}

Result<std::vector<TaskComparison>> compare_published(const RunReport& run,
                                                      const PublishedTable& table,
                                                      double threshold) {
  const PublishedRow& baseline = table.rows[table.baseline];
  std::vector<TaskComparison> all;
  for (const TaskReport& task : run.tasks) {
    const auto found = baseline.values.find(task.task);
    if (found == baseline.values.end() || found->second <= 0) continue;
    TaskComparison one;
    one.task = task.task;
    one.questions = task.questions;
    one.is_paired = false;
    // A rounded value may stand anywhere in its last digit: a uniform error of unit / sqrt(12).
    const double base = found->second / 100;
    const double base_se = baseline.units.at(task.task) / 100 / std::sqrt(12.0);
    Comparison& c = one.comparison;
    c.difference = task.score - base;
    c.difference_se = std::hypot(task.se, base_se);
    c.difference_95 = {c.difference - kNormal95 * c.difference_se,
                       c.difference + kNormal95 * c.difference_se};
    c.retention = 100 * task.score / base;
    c.retention_se = 100 * std::hypot(task.se / base, task.score * base_se / (base * base));
    c.retention_95 = {c.retention - kNormal95 * c.retention_se,
                      c.retention + kNormal95 * c.retention_se};
    c.p_value = c.difference_se > 0
                    ? std::erfc(std::abs(c.difference) / c.difference_se / std::sqrt(2.0))
                    : 1;
    one.verdict = judge_retention(c.retention_95, threshold);
    if (one.verdict == Retained::kInconclusive) {
      one.questions_to_decide =
          questions_to_decide(c.retention, c.retention_se, threshold, task.questions);
    }
    all.push_back(std::move(one));
  }
  if (all.empty()) {
    return invalid_argument(
        fmt::format("{} and the published {} have no task in common", run.name, baseline.name));
  }
  adjust(&all);
  return all;
}

Result<std::vector<std::vector<TaskComparison>>> compare_all(const std::vector<RunReport>& runs,
                                                             const ReportSettings& settings) {
  std::vector<std::vector<TaskComparison>> all;
  for (size_t i = 0; i < runs.size(); ++i) {
    if (settings.published) {
      all.push_back(
          NIBBLE_TRY(compare_published(runs[i], *settings.published, settings.threshold)));
    } else if (i == 0) {
      all.emplace_back();
    } else {
      all.push_back(NIBBLE_TRY(compare_reports(runs[i], runs[0], settings)));
    }
  }
  return all;
}

}  // namespace nibble
