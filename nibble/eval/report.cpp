#include "nibble/eval/report.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "nibble/base/error.h"

namespace nibble {
namespace {

using Json = nlohmann::ordered_json;

constexpr uint64_t kBootstrapSeed = 20250101;

struct Question {
  std::string cluster;
  std::map<int, double> samples;  // by sample: right or wrong

  double score() const {
    double sum = 0;
    for (const auto& [sample, right] : samples) sum += right;
    return samples.empty() ? 0 : sum / static_cast<double>(samples.size());
  }
};

std::map<std::string, Question> questions_of(const std::vector<Score>& scores,
                                             const std::string& task) {
  std::map<std::string, Question> questions;
  for (const Score& score : scores) {
    if (score.task != task) continue;
    Question& question = questions[score.id];
    question.cluster = score.cluster;
    question.samples[score.sample] = score.outcome == "correct" ? 1 : 0;
  }
  return questions;
}

TaskReport task_report(const std::vector<Score>& scores, const std::string& task) {
  TaskReport report;
  report.task = task;
  const auto questions = questions_of(scores, task);
  std::vector<double> values, passes;
  std::vector<std::string> clusters;
  std::map<int, std::vector<double>> rounds;
  size_t k = 0;
  for (const auto& [id, question] : questions) {
    values.push_back(question.score());
    clusters.push_back(question.cluster);
    k = std::max(k, question.samples.size());
    int64_t right = 0;
    for (const auto& [sample, value] : question.samples) {
      rounds[sample].push_back(value);
      right += value > 0 ? 1 : 0;
    }
    const auto n = static_cast<int64_t>(question.samples.size());
    passes.push_back(pass_at_k(n, right, n));
  }
  report.questions = static_cast<int64_t>(questions.size());
  report.score = mean(values);
  report.se = clustered_se(values, clusters);
  report.pass_at_k = mean(passes);
  if (k == 1) {
    const auto n = static_cast<double>(values.size());
    report.wilson_95 = wilson(report.score * n, n);
  }
  if (rounds.size() > 1) {
    std::vector<double> means;
    means.reserve(rounds.size());
    for (const auto& [sample, right] : rounds) means.push_back(mean(right));
    const double center = mean(means);
    double squares = 0;
    for (const double one : means) squares += (one - center) * (one - center);
    report.sample_sd = std::sqrt(squares / static_cast<double>(means.size() - 1));
  }
  std::vector<int64_t> lengths;
  for (const Score& score : scores) {
    if (score.task != task) continue;
    ++report.samples;
    ++report.outcomes[score.outcome];
    lengths.push_back(score.completion_tokens);
    report.mean_tokens += static_cast<double>(score.completion_tokens);
    if (score.gold.size() == 1 && score.gold[0] >= 'A' && score.gold[0] <= 'Z') {
      ++report.right_letters[score.gold];
      if (!score.extracted.empty()) ++report.chosen_letters[score.extracted];
    }
  }
  std::sort(lengths.begin(), lengths.end());
  report.mean_tokens /= static_cast<double>(std::max<int64_t>(1, report.samples));
  report.p99_tokens = lengths[(lengths.size() - 1) * 99 / 100];
  const auto count = [&](const char* outcome) {
    const auto found = report.outcomes.find(outcome);
    return found == report.outcomes.end() ? 0 : found->second;
  };
  report.needs_check = (count("error") + count("sandbox_error")) * 100 > report.samples;
  return report;
}

// Rows of cells with the columns aligned, or a Markdown table. The first row is the head.
std::string grid(const std::vector<std::vector<std::string>>& rows, ReportForm form) {
  std::string text;
  if (form == ReportForm::kMarkdown) {
    for (size_t i = 0; i < rows.size(); ++i) {
      text += fmt::format("| {} |\n", fmt::join(rows[i], " | "));
      if (i > 0) continue;
      text += "|---|";
      for (size_t j = 1; j < rows[i].size(); ++j) text += "--:|";
      text += "\n";
    }
    return text;
  }
  std::vector<size_t> widths;
  for (const auto& row : rows) {
    widths.resize(std::max(widths.size(), row.size()));
    for (size_t j = 0; j < row.size(); ++j) widths[j] = std::max(widths[j], row[j].size());
  }
  for (const auto& row : rows) {
    std::string line;
    for (size_t j = 0; j < row.size(); ++j) {
      line += j == 0 ? fmt::format("{:<{}}", row[j], widths[j])
                     : fmt::format("  {:>{}}", row[j], widths[j]);
    }
    text += line + "\n";
  }
  return text;
}

const TaskReport* find_task_report(const RunReport& run, const std::string& task) {
  for (const TaskReport& report : run.tasks) {
    if (report.task == task) return &report;
  }
  return nullptr;
}

std::string number(double value, int digits) {
  return std::isfinite(value) ? fmt::format("{:.{}f}", value, digits) : "-";
}

Json interval_json(const Interval& interval) {
  const auto one = [](double value) { return std::isfinite(value) ? Json(value) : Json(); };
  return Json::array({one(interval.low), one(interval.high)});
}

}  // namespace

RunReport make_report(std::string name, std::vector<Score> scores) {
  RunReport report;
  report.name = std::move(name);
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
                                                    double threshold, bool intersect) {
  std::vector<TaskComparison> all;
  for (const TaskReport& task : run.tasks) {
    if (find_task_report(baseline, task.task) == nullptr) continue;
    const auto ours = questions_of(run.scores, task.task);
    const auto theirs = questions_of(baseline.scores, task.task);
    std::vector<Pair> pairs;
    for (const auto& [id, question] : ours) {
      const auto other = theirs.find(id);
      if (other == theirs.end()) continue;
      pairs.push_back({question.cluster, question.score(), other->second.score()});
    }
    if (!intersect && (pairs.size() != ours.size() || pairs.size() != theirs.size())) {
      return invalid_argument(fmt::format(
          "{}: {} has {} questions and {} has {}, {} of them in both; --intersect compares those",
          task.task, run.name, ours.size(), baseline.name, theirs.size(), pairs.size()));
    }
    if (pairs.empty()) continue;
    TaskComparison one;
    one.task = task.task;
    one.questions = static_cast<int64_t>(pairs.size());
    one.comparison = compare_runs(pairs, kBootstrapSeed);
    one.verdict = judge_retention(one.comparison.retention_95, threshold);
    all.push_back(std::move(one));
  }
  if (all.empty()) {
    return invalid_argument(
        fmt::format("{} and {} have no task in common", run.name, baseline.name));
  }
  std::vector<double> p_values;
  p_values.reserve(all.size());
  for (const TaskComparison& one : all) p_values.push_back(one.comparison.p_value);
  const auto adjusted = holm(p_values);
  for (size_t i = 0; i < all.size(); ++i) all[i].holm_p = adjusted[i];
  return all;
}

Result<std::string> report_table(const std::vector<RunReport>& runs, double threshold,
                                 bool intersect, ReportForm form) {
  const RunReport& baseline = runs.front();
  std::vector<std::vector<std::string>> rows = {{"run"}};
  for (const TaskReport& task : baseline.tasks) rows[0].push_back(task.task);
  for (const RunReport& run : runs) {
    std::vector<std::string> row = {run.name};
    for (const TaskReport& column : baseline.tasks) {
      const TaskReport* task = find_task_report(run, column.task);
      row.push_back(task == nullptr ? "-"
                                    : fmt::format("{:.1f} +- {:.1f}{}", 100 * task->score,
                                                  100 * task->se, task->needs_check ? " !" : ""));
    }
    rows.push_back(std::move(row));
  }
  for (size_t i = 1; i < runs.size(); ++i) {
    const auto compared = NIBBLE_TRY(compare_reports(runs[i], baseline, threshold, intersect));
    std::vector<std::string> retention = {runs[i].name + " keeps %"}, interval = {"  95 %"},
                             p = {"  p (Holm)"}, flips = {"  lost/won"}, verdict = {"  verdict"};
    for (const TaskReport& column : baseline.tasks) {
      const auto found = std::find_if(compared.begin(), compared.end(),
                                      [&](const auto& one) { return one.task == column.task; });
      if (found == compared.end()) {
        for (auto* row : {&retention, &interval, &p, &flips, &verdict}) row->emplace_back("-");
        continue;
      }
      const Comparison& c = found->comparison;
      retention.push_back(number(c.retention, 2));
      interval.push_back(number(c.retention_95.low, 1) + ".." + number(c.retention_95.high, 1));
      p.push_back(number(found->holm_p, 3));
      flips.push_back(fmt::format("{}/{}", c.right_to_wrong, c.wrong_to_right));
      verdict.emplace_back(retained_name(found->verdict));
    }
    for (auto* row : {&retention, &interval, &p, &flips, &verdict}) rows.push_back(std::move(*row));
  }
  std::string text = grid(rows, form);
  text += "\n";
  std::vector<std::vector<std::string>> health = {{"run, task", "questions", "samples", "correct",
                                                   "wrong", "no_answer", "truncated", "undecided",
                                                   "error", "mean tokens", "p99"}};
  for (const RunReport& run : runs) {
    for (const TaskReport& task : run.tasks) {
      const auto count = [&](const char* outcome) {
        const auto found = task.outcomes.find(outcome);
        return std::to_string(found == task.outcomes.end() ? 0 : found->second);
      };
      const auto errors = task.outcomes.find("sandbox_error");
      health.push_back({run.name + ", " + task.task, std::to_string(task.questions),
                        std::to_string(task.samples), count("correct"), count("wrong"),
                        count("no_answer"), count("truncated"), count("undecided"),
                        errors == task.outcomes.end()
                            ? count("error")
                            : count("error") + "+" + std::to_string(errors->second),
                        number(task.mean_tokens, 0), std::to_string(task.p99_tokens)});
    }
  }
  return text + grid(health, form);
}

Result<std::string> report_json(const std::vector<RunReport>& runs, double threshold,
                                bool intersect) {
  Json all = Json::array();
  for (size_t i = 0; i < runs.size(); ++i) {
    Json tasks = Json::array();
    for (const TaskReport& task : runs[i].tasks) {
      tasks.push_back({{"task", task.task},
                       {"questions", task.questions},
                       {"samples", task.samples},
                       {"score", task.score},
                       {"se", task.se},
                       {"wilson_95", interval_json(task.wilson_95)},
                       {"sample_sd", task.sample_sd},
                       {"pass_at_k", task.pass_at_k},
                       {"outcomes", task.outcomes},
                       {"right_letters", task.right_letters},
                       {"chosen_letters", task.chosen_letters},
                       {"mean_tokens", task.mean_tokens},
                       {"p99_tokens", task.p99_tokens},
                       {"check", task.needs_check}});
    }
    Json comparisons = Json::array();
    if (i > 0) {
      const auto compared = NIBBLE_TRY(compare_reports(runs[i], runs[0], threshold, intersect));
      for (const TaskComparison& one : compared) {
        const Comparison& c = one.comparison;
        comparisons.push_back(
            {{"task", one.task},
             {"questions", one.questions},
             {"difference", c.difference},
             {"difference_se", c.difference_se},
             {"difference_95", interval_json(c.difference_95)},
             {"retention", std::isfinite(c.retention) ? Json(c.retention) : Json()},
             {"retention_95", interval_json(c.retention_95)},
             {"retention_se", c.retention_se},
             {"p", c.p_value},
             {"p_holm", one.holm_p},
             {"p_mcnemar", c.mcnemar_p},
             {"right_to_wrong", c.right_to_wrong},
             {"wrong_to_right", c.wrong_to_right},
             {"threshold", threshold},
             {"verdict", std::string(retained_name(one.verdict))}});
      }
    }
    all.push_back({{"name", runs[i].name}, {"tasks", tasks}, {"against_first", comparisons}});
  }
  return Json{{"schema", "nibble.eval.report/1"}, {"runs", all}}.dump(2) + "\n";
}

}  // namespace nibble
