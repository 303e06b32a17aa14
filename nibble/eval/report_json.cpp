// The report for programs.
#include <cmath>
#include <nlohmann/json.hpp>

#include "nibble/eval/report.h"

namespace nibble {
namespace {

using Json = nlohmann::ordered_json;

Json finite(double value) { return std::isfinite(value) ? Json(value) : Json(); }

Json interval_json(const Interval& interval) {
  return Json::array({finite(interval.low), finite(interval.high)});
}

Json task_json(const TaskReport& task) {
  Json json = {{"task", task.task},
               {"questions", task.questions},
               {"samples", task.samples},
               {"k", task.k},
               {"score", task.score},
               {"se", task.se},
               {"wilson_95", interval_json(task.wilson_95)},
               {"sample_sd", task.sample_sd},
               {"pass_at_k", task.pass_at_k},
               {"majority_at_k", task.has_majority ? Json(task.majority_at_k) : Json()},
               {"outcomes", task.outcomes},
               {"right_letters", task.right_letters},
               {"chosen_letters", task.chosen_letters},
               {"mean_tokens", task.mean_tokens},
               {"p99_tokens", task.p99_tokens},
               {"truncated_replies", task.cut},
               {"unclosed_reasoning", task.unclosed},
               {"empty_replies", task.empty},
               {"retries", task.retries},
               {"near_time_limit", task.near_limit},
               {"judged", task.judged},
               {"check", task.needs_check}};
  return json;
}

Json comparison_json(const TaskComparison& one, double threshold) {
  const Comparison& c = one.comparison;
  return {{"task", one.task},
          {"questions", one.questions},
          {"paired", one.is_paired},
          {"comparable", one.is_comparable()},
          {"differences", one.differences},
          {"difference", c.difference},
          {"difference_se", c.difference_se},
          {"difference_95", interval_json(c.difference_95)},
          {"retention", finite(c.retention)},
          {"retention_95", interval_json(c.retention_95)},
          {"retention_se", c.retention_se},
          {"p", c.p_value},
          {"p_holm", one.holm_p},
          {"p_mcnemar", c.mcnemar_p},
          {"right_to_wrong", c.right_to_wrong},
          {"wrong_to_right", c.wrong_to_right},
          {"threshold", threshold},
          {"verdict", std::string(retained_name(one.verdict))},
          {"questions_to_decide", one.questions_to_decide},
          {"check", one.cut_differs}};
}

}  // namespace

Result<std::string> report_json(const std::vector<RunReport>& runs,
                                const ReportSettings& settings) {
  const auto compared = NIBBLE_TRY(compare_all(runs, settings));
  Json all = Json::array();
  for (size_t i = 0; i < runs.size(); ++i) {
    Json tasks = Json::array(), comparisons = Json::array();
    for (const TaskReport& task : runs[i].tasks) tasks.push_back(task_json(task));
    for (const TaskComparison& one : compared[i]) {
      comparisons.push_back(comparison_json(one, settings.threshold));
    }
    all.push_back({{"name", runs[i].name}, {"tasks", tasks}, {"against_baseline", comparisons}});
  }
  Json json = {{"schema", "nibble.eval.report/1"}};
  if (settings.published) {
    const PublishedTable& table = *settings.published;
    json["published"] = {{"source", table.source},
                         {"name", table.rows[table.baseline].name},
                         {"values", table.rows[table.baseline].values}};
  }
  json["runs"] = all;
  return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace nibble
