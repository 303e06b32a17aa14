// The card's table, as text and as Markdown.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "nibble/eval/report.h"

namespace nibble {
namespace {

using Row = std::vector<std::string>;

// Bytes that begin a character: what a UTF-8 text takes on a terminal.
size_t columns_of(const std::string& text) {
  return static_cast<size_t>(std::count_if(text.begin(), text.end(), [](char c) {
    return (static_cast<unsigned char>(c) & 0xc0) != 0x80;
  }));
}

// Rows of cells with the columns aligned, or a Markdown table. The first row is the head.
std::string grid(const std::vector<Row>& rows, ReportForm form) {
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
  for (const Row& row : rows) {
    widths.resize(std::max(widths.size(), row.size()));
    for (size_t j = 0; j < row.size(); ++j) widths[j] = std::max(widths[j], columns_of(row[j]));
  }
  for (const Row& row : rows) {
    std::string line;
    for (size_t j = 0; j < row.size(); ++j) {
      const std::string pad(widths[j] - columns_of(row[j]), ' ');
      line += j == 0 ? row[j] + pad : "  " + pad + row[j];
    }
    line.erase(line.find_last_not_of(' ') + 1);
    text += line + "\n";
  }
  return text;
}

std::string number(double value, int digits) {
  return std::isfinite(value) ? fmt::format("{:.{}f}", value, digits) : "-";
}

const TaskReport* find_task(const RunReport& run, const std::string& task) {
  for (const TaskReport& report : run.tasks) {
    if (report.task == task) return &report;
  }
  return nullptr;
}

Row score_row(const RunReport& run, const std::vector<std::string>& tasks) {
  Row row = {run.name};
  for (const std::string& name : tasks) {
    const TaskReport* task = find_task(run, name);
    row.push_back(task == nullptr ? "-"
                                  : fmt::format("{:.1f} +- {:.1f}{}", 100 * task->score,
                                                100 * task->se, task->needs_check ? " !" : ""));
  }
  return row;
}

std::string verdict_text(const TaskComparison& one, bool force) {
  if (!one.is_comparable() && !force) return "not comparable";
  std::string text(retained_name(one.verdict));
  if (one.cut_differs) text += ", check";
  return text;
}

void add_comparison(const std::string& name, const std::vector<TaskComparison>& compared,
                    const std::vector<std::string>& tasks, const ReportSettings& settings,
                    std::vector<Row>* rows) {
  const bool is_paired = compared.front().is_paired;
  Row retention = {name + " keeps %"}, interval = {"  95 %"}, p = {"  p (Holm)"},
      flips = {"  lost/won"}, verdict = {"  verdict"}, needed = {"  questions to decide"};
  bool has_needed = false;
  for (const std::string& task : tasks) {
    const auto found = std::find_if(compared.begin(), compared.end(),
                                    [&](const auto& one) { return one.task == task; });
    if (found == compared.end()) {
      for (Row* row : {&retention, &interval, &p, &flips, &verdict, &needed})
        row->emplace_back("-");
      continue;
    }
    const Comparison& c = found->comparison;
    retention.push_back(number(c.retention, 2));
    interval.push_back(number(c.retention_95.low, 1) + ".." + number(c.retention_95.high, 1));
    p.push_back(number(found->holm_p, 3));
    flips.push_back(fmt::format("{}/{}", c.right_to_wrong, c.wrong_to_right));
    verdict.push_back(verdict_text(*found, settings.force));
    has_needed |= found->questions_to_decide > 0;
    needed.push_back(found->questions_to_decide > 0 ? fmt::format("{}", found->questions_to_decide)
                                                    : "-");
  }
  rows->insert(rows->end(), {retention, interval, p});
  if (is_paired) rows->push_back(flips);
  rows->push_back(verdict);
  if (has_needed) rows->push_back(needed);
}

std::string health_table(const std::vector<RunReport>& runs, ReportForm form) {
  std::vector<Row> rows = {{"run, task", "questions", "samples", "correct", "wrong", "no_answer",
                            "truncated", "undecided", "error", "sandbox", "unclosed", "empty",
                            "retries", "mean tokens", "p99"}};
  for (const RunReport& run : runs) {
    for (const TaskReport& t : run.tasks) {
      rows.push_back({run.name + ", " + t.task, std::to_string(t.questions),
                      std::to_string(t.samples), std::to_string(t.count("correct")),
                      std::to_string(t.count("wrong")), std::to_string(t.count("no_answer")),
                      std::to_string(t.count("truncated")), std::to_string(t.count("undecided")),
                      std::to_string(t.count("error")), std::to_string(t.count("sandbox_error")),
                      std::to_string(t.unclosed), std::to_string(t.empty),
                      std::to_string(t.retries), number(t.mean_tokens, 0),
                      std::to_string(t.p99_tokens)});
    }
  }
  return grid(rows, form);
}

// What several samples of a question add, and what else a reader has to know.
std::string notes(const std::vector<RunReport>& runs) {
  std::string text;
  const auto letters = [](const std::map<std::string, int64_t>& counts) {
    std::string line;
    for (const auto& [letter, count] : counts) line += fmt::format(" {} {}", letter, count);
    return line;
  };
  for (const RunReport& run : runs) {
    for (const TaskReport& t : run.tasks) {
      const std::string head = fmt::format("- {}, {}: ", run.name, t.task);
      if (t.k > 1) {
        text += head + fmt::format("{} samples a question: pass@{} {:.1f} %, ", t.k, t.k,
                                   100 * t.pass_at_k);
        if (t.has_majority)
          text += fmt::format("majority@{} {:.1f} %, ", t.k, 100 * t.majority_at_k);
        text += fmt::format("rounds differ by {:.1f} points (SD)\n", 100 * t.sample_sd);
      } else {
        text += head + fmt::format("Wilson's 95 % interval {:.1f}..{:.1f} %\n",
                                   100 * t.wilson_95.low, 100 * t.wilson_95.high);
      }
      if (!t.right_letters.empty()) {
        text += fmt::format("{}right letters{}; chosen{}\n", head, letters(t.right_letters),
                            letters(t.chosen_letters));
      }
      if (t.near_limit > 0) {
        text += head + fmt::format("{} programs took more than 80 % of their time\n", t.near_limit);
      }
      if (t.judged > 0) text += head + fmt::format("{} answers were judged by a model\n", t.judged);
      if (t.needs_check) text += head + "CHECK: more than 1 % of the samples failed\n";
    }
  }
  return text;
}

std::vector<std::string> undecided_lines(const std::vector<RunReport>& runs) {
  constexpr size_t kMost = 20;
  std::vector<std::string> lines;
  for (const RunReport& run : runs) {
    for (const Score& s : run.scores) {
      if (s.outcome != "undecided" || lines.size() >= kMost) continue;
      lines.push_back(fmt::format("- undecided: {}, {} {} sample {}: {} against {}", run.name,
                                  s.task, s.id, s.sample, s.extracted, s.gold));
    }
  }
  return lines;
}

}  // namespace

Result<std::string> report_table(const std::vector<RunReport>& runs, const ReportSettings& settings,
                                 ReportForm form) {
  std::vector<std::string> tasks;
  if (!runs.empty()) {
    for (const TaskReport& task : runs.front().tasks) tasks.push_back(task.task);
  } else if (settings.published) {
    for (const char* name :
         {"mmlu-pro", "gpqa-diamond", "livecodebench", "scicode", "math-500", "aime-2024"}) {
      tasks.emplace_back(name);
    }
  }
  std::vector<Row> rows = {{"run"}};
  rows[0].insert(rows[0].end(), tasks.begin(), tasks.end());
  if (settings.published) {
    const PublishedTable& table = *settings.published;
    const PublishedRow& baseline = table.rows[table.baseline];
    for (const PublishedRow& one : table.rows) {
      Row values = {one.name + " (published)"}, kept = {"  keeps %"};
      for (const std::string& task : tasks) {
        const auto value = one.values.find(task);
        const auto base = baseline.values.find(task);
        const bool known = value != one.values.end();
        values.push_back(known ? fmt::format("{:g}", value->second) : "-");
        kept.push_back(known && base != baseline.values.end()
                           ? number(100 * value->second / base->second, 2)
                           : "-");
      }
      rows.push_back(std::move(values));
      if (&one != &baseline) rows.push_back(std::move(kept));
    }
  }
  for (const RunReport& run : runs) rows.push_back(score_row(run, tasks));
  const auto compared = NIBBLE_TRY(compare_all(runs, settings));
  std::string remarks;
  for (size_t i = 0; i < runs.size(); ++i) {
    if (compared[i].empty()) continue;
    add_comparison(runs[i].name, compared[i], tasks, settings, &rows);
    for (const TaskComparison& one : compared[i]) {
      for (const std::string& difference : one.differences) {
        remarks +=
            fmt::format("- {}, {} is not comparable: {}\n", runs[i].name, one.task, difference);
      }
      if (one.cut_differs) {
        remarks += fmt::format(
            "- {}, {}: the shares of answers that were cut off differ by more "
            "than 2 points\n",
            runs[i].name, one.task);
      }
    }
  }
  std::string text = grid(rows, form);
  if (settings.published) {
    text += fmt::format(
        "\nUnpaired, against published values ({}): the interval holds the run's "
        "own error and the rounding alone.\n",
        settings.published->source);
  }
  if (runs.empty()) return text;
  text += "\n" + health_table(runs, form);
  remarks += notes(runs);
  for (const std::string& line : undecided_lines(runs)) remarks += line + "\n";
  if (!remarks.empty()) text += "\n" + remarks;
  return text;
}

}  // namespace nibble
