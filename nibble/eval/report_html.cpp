// One page with plots as SVG, that needs no network and no script.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "nibble/eval/report.h"

namespace nibble {
namespace {

// Okabe and Ito's colours, that most eyes can tell apart.
constexpr std::array<const char*, 7> kColours = {"#0072b2", "#e69f00", "#009e73", "#cc79a7",
                                                 "#56b4e9", "#d55e00", "#999999"};

struct Outcome {
  const char* name;
  const char* colour;
};
constexpr std::array<Outcome, 7> kOutcomes = {{{"correct", "#009e73"},
                                               {"wrong", "#d55e00"},
                                               {"no_answer", "#e69f00"},
                                               {"truncated", "#56b4e9"},
                                               {"undecided", "#cc79a7"},
                                               {"error", "#444444"},
                                               {"sandbox_error", "#888888"}}};

constexpr const char* kHead = R"html(<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>nibble eval</title><style>
:root{--fg:#1b1f24;--bg:#fff;--line:#c9ced6;--soft:#5b6472}
@media(prefers-color-scheme:dark){:root{--fg:#e6e9ee;--bg:#15181c;--line:#3a414b;--soft:#9aa4b2}}
body{font:15px/1.5 system-ui,sans-serif;color:var(--fg);background:var(--bg);max-width:62rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2.2rem}
svg{width:100%;min-width:44rem;height:auto;display:block}svg text{fill:var(--fg);font:12px system-ui,sans-serif}
svg .soft{fill:var(--soft)}svg .axis{stroke:var(--line)}svg .bar{stroke:var(--fg);stroke-width:1.3}
.scroll{overflow-x:auto}.scroll+.scroll{margin-top:1.8rem}table{border-collapse:collapse;font-size:13px;white-space:nowrap}
th,td{padding:.25rem .6rem;border-bottom:1px solid var(--line);text-align:right}
th:first-child,td:first-child{text-align:left}p,.soft{color:var(--soft)}
.key span{display:inline-block;margin-right:1.2rem}.key i{display:inline-block;width:.8em;height:.8em;margin-right:.4em;border-radius:2px}
pre{white-space:pre-wrap;font-size:12px}
</style></head><body>
)html";

std::string escape(std::string_view text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&quot;";
        break;
      default:
        out += c;
    }
  }
  return out;
}

std::string colour_of(size_t i) { return kColours[i % kColours.size()]; }

std::string line(double x1, double y1, double x2, double y2, const char* kind) {
  return fmt::format("<line x1=\"{:.1f}\" y1=\"{:.1f}\" x2=\"{:.1f}\" y2=\"{:.1f}\" class=\"{}\"/>",
                     x1, y1, x2, y2, kind);
}
std::string rect(double x, double y, double width, double height, const std::string& colour,
                 const std::string& title) {
  return fmt::format(
      "<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"{:.1f}\" "
      "fill=\"{}\"><title>{}</title>"
      "</rect>",
      x, y, std::max(0.0, width), std::max(0.0, height), colour, escape(title));
}
std::string label(double x, double y, std::string_view anchor, std::string_view kind,
                  const std::string& text) {
  return fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"{}\" class=\"{}\">{}</text>", x,
                     y, anchor, kind, escape(text));
}

std::string key(const std::vector<std::pair<std::string, std::string>>& entries) {
  std::string text = "<p class=\"key\">";
  for (const auto& [name, colour] : entries) {
    text += fmt::format("<span><i style=\"background:{}\"></i>{}</span>", colour, escape(name));
  }
  return text + "</p>\n";
}

std::string run_key(const std::vector<RunReport>& runs) {
  std::vector<std::pair<std::string, std::string>> entries;
  for (size_t i = 0; i < runs.size(); ++i) entries.emplace_back(runs[i].name, colour_of(i));
  return key(entries);
}

const TaskReport* find_task(const RunReport& run, const std::string& task) {
  for (const TaskReport& report : run.tasks) {
    if (report.task == task) return &report;
  }
  return nullptr;
}

// Bars for each task with 95 % whiskers, 0 to 100 %.
std::string score_plot(const std::vector<RunReport>& runs) {
  constexpr double kWidth = 960, kHeight = 330, kLeft = 42, kTop = 12, kBottom = 290;
  const auto& tasks = runs.front().tasks;
  const double group = (kWidth - kLeft) / static_cast<double>(tasks.size());
  const double bar = std::min(48.0, group * 0.8 / static_cast<double>(runs.size()));
  const auto y = [&](double share) { return kBottom - (kBottom - kTop) * share; };
  std::string svg = fmt::format("<div class=\"scroll\"><svg viewBox=\"0 0 {} {}\" role=\"img\">",
                                kWidth, kHeight);
  for (int percent = 0; percent <= 100; percent += 20) {
    svg += line(kLeft, y(percent / 100.0), kWidth, y(percent / 100.0), "axis");
    svg += label(kLeft - 6, y(percent / 100.0) + 4, "end", "soft", fmt::format("{}", percent));
  }
  for (size_t t = 0; t < tasks.size(); ++t) {
    const double begin =
        kLeft + group * (static_cast<double>(t) + 0.5) - bar * static_cast<double>(runs.size()) / 2;
    for (size_t r = 0; r < runs.size(); ++r) {
      const TaskReport* const task = find_task(runs[r], tasks[t].task);
      if (task == nullptr) continue;
      const double x = begin + bar * static_cast<double>(r);
      const double low = std::max(0.0, task->score - 1.96 * task->se);
      const double high = std::min(1.0, task->score + 1.96 * task->se);
      svg += rect(x + 1, y(task->score), bar - 2, kBottom - y(task->score), colour_of(r),
                  fmt::format("{}, {}: {:.1f} ± {:.1f} %, {} questions", runs[r].name, task->task,
                              100 * task->score, 100 * task->se, task->questions));
      const double middle = x + bar / 2;
      svg += line(middle, y(low), middle, y(high), "bar");
      svg += line(middle - 4, y(low), middle + 4, y(low), "bar");
      svg += line(middle - 4, y(high), middle + 4, y(high), "bar");
    }
    svg += label(kLeft + group * (static_cast<double>(t) + 0.5), kBottom + 20, "middle", "",
                 tasks[t].task);
  }
  return svg + "</svg></div>\n";
}

// A point and its 95 % interval for each task of each run, beside 100 % and the threshold.
std::string retention_plot(const std::vector<RunReport>& runs,
                           const std::vector<std::vector<TaskComparison>>& compared,
                           double threshold) {
  constexpr double kWidth = 960, kLeft = 230, kRight = 800, kRow = 22;
  double low = threshold - 2, high = 102;
  size_t count = 0;
  for (const auto& all : compared) {
    for (const TaskComparison& one : all) {
      ++count;
      if (!std::isfinite(one.comparison.retention_95.high)) continue;
      low = std::min(low, one.comparison.retention_95.low);
      high = std::max(high, one.comparison.retention_95.high);
    }
  }
  low = std::max(0.0, low);
  const auto x = [&](double percent) {
    return kLeft + (kRight - kLeft) * (std::clamp(percent, low, high) - low) / (high - low);
  };
  const double bottom = 20 + kRow * static_cast<double>(count);
  std::string svg = fmt::format("<div class=\"scroll\"><svg viewBox=\"0 0 {} {}\" role=\"img\">",
                                kWidth, bottom + 30);
  svg += line(x(100), 10, x(100), bottom, "axis") +
         line(x(threshold), 10, x(threshold), bottom, "axis");
  svg += label(x(100), bottom + 18, "start", "soft", "100 %");
  svg += label(x(threshold) - 4, bottom + 18, "end", "soft",
               fmt::format("threshold {:g} %", threshold));
  double y = 24;
  for (size_t r = 0; r < compared.size(); ++r) {
    for (const TaskComparison& one : compared[r]) {
      const Comparison& c = one.comparison;
      svg += label(kLeft - 14, y + 4, "end", "", runs[r].name + ", " + one.task);
      const std::string verdict =
          one.is_comparable() ? std::string(retained_name(one.verdict)) : "not comparable";
      if (std::isfinite(c.retention) && std::isfinite(c.retention_95.high)) {
        svg += line(x(c.retention_95.low), y, x(c.retention_95.high), y, "bar");
        svg += fmt::format("<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"5\" fill=\"{}\"/>",
                           x(c.retention), y, colour_of(r));
        svg += label(kRight + 12, y + 4, "start", "soft",
                     fmt::format("{:.1f} %, {}", c.retention, verdict));
      } else {
        svg += label(kRight + 12, y + 4, "start", "soft", verdict);
      }
      y += kRow;
    }
  }
  return svg + "</svg></div>\n";
}

std::string outcome_plot(const std::vector<RunReport>& runs) {
  constexpr double kWidth = 960, kLeft = 230, kRow = 22;
  size_t count = 0;
  for (const RunReport& run : runs) count += run.tasks.size();
  std::string svg = fmt::format("<div class=\"scroll\"><svg viewBox=\"0 0 {} {}\" role=\"img\">",
                                kWidth, 10 + kRow * static_cast<double>(count));
  double y = 6;
  for (const RunReport& run : runs) {
    for (const TaskReport& task : run.tasks) {
      svg += label(kLeft - 14, y + 13, "end", "", run.name + ", " + task.task);
      double x = kLeft;
      for (const Outcome& outcome : kOutcomes) {
        const int64_t n = task.count(outcome.name);
        const double width = (kWidth - kLeft) * static_cast<double>(n) /
                             static_cast<double>(std::max<int64_t>(1, task.samples));
        if (n > 0) {
          svg += rect(x, y, width, kRow - 6, outcome.colour,
                      fmt::format("{}: {} of {}", outcome.name, n, task.samples));
        }
        x += width;
      }
      y += kRow;
    }
  }
  return svg + "</svg></div>\n";
}

// How many answers are no longer than so many tokens, a curve for each task of the first run on a
// logarithmic axis.
std::string length_plot(const RunReport& run) {
  constexpr double kWidth = 960, kHeight = 280, kLeft = 42, kTop = 10, kBottom = 240;
  double shortest = 1e9, longest = 1;
  for (const TaskReport& task : run.tasks) {
    if (task.lengths.empty()) continue;
    shortest = std::min(shortest, static_cast<double>(task.lengths.front()));
    longest = std::max(longest, static_cast<double>(task.lengths.back()));
  }
  shortest = std::clamp(shortest, 1.0, longest);
  longest = std::max(longest, 2 * shortest);
  const auto x = [&](double tokens) {
    return kLeft + (kWidth - kLeft - 20) * std::log(std::max(shortest, tokens) / shortest) /
                       std::log(longest / shortest);
  };
  const auto y = [&](double share) { return kBottom - (kBottom - kTop) * share; };
  std::string svg = fmt::format("<div class=\"scroll\"><svg viewBox=\"0 0 {} {}\" role=\"img\">",
                                kWidth, kHeight);
  for (int percent = 0; percent <= 100; percent += 25) {
    svg += line(kLeft, y(percent / 100.0), kWidth, y(percent / 100.0), "axis");
    svg += label(kLeft - 6, y(percent / 100.0) + 4, "end", "soft", fmt::format("{}", percent));
  }
  for (int64_t power = 1; static_cast<double>(power) <= longest; power *= 10) {
    for (const int64_t factor : {1, 2, 5}) {
      const auto mark = static_cast<double>(factor * power);
      if (mark < shortest || mark > longest) continue;
      svg += line(x(mark), kTop, x(mark), kBottom, "axis");
      svg += label(x(mark), kBottom + 18, "middle", "soft", fmt::format("{:g}", mark));
    }
  }
  for (size_t t = 0; t < run.tasks.size(); ++t) {
    const auto& lengths = run.tasks[t].lengths;
    if (lengths.empty()) continue;
    std::string points = fmt::format("{:.1f},{:.1f}", x(shortest), y(0));
    for (int step = 1; step <= 100; ++step) {
      const size_t at = (lengths.size() * static_cast<size_t>(step) + 99) / 100 - 1;
      points += fmt::format(" {:.1f},{:.1f}", x(static_cast<double>(lengths[at])), y(step / 100.0));
    }
    svg += fmt::format(
        "<polyline points=\"{}\" fill=\"none\" stroke=\"{}\" "
        "stroke-width=\"2\"><title>{}</title></polyline>",
        points, colour_of(t), escape(run.tasks[t].task));
  }
  svg += "</svg></div>\n";
  std::vector<std::pair<std::string, std::string>> entries;
  for (size_t t = 0; t < run.tasks.size(); ++t) {
    entries.emplace_back(run.tasks[t].task, colour_of(t));
  }
  return svg + key(entries);
}

// The Markdown report as HTML: its tables, and its remarks as they are.
std::string tables(const std::string& markdown) {
  std::string html, remarks;
  bool is_open = false;
  size_t row = 0;
  for (size_t at = 0; at < markdown.size();) {
    const size_t end = std::min(markdown.find('\n', at), markdown.size());
    const std::string text = markdown.substr(at, end - at);
    at = end + 1;
    if (!text.starts_with("| ")) {
      if (text.starts_with("|---")) continue;
      if (is_open) html += "</table></div>\n";
      is_open = false;
      if (!text.empty()) remarks += text + "\n";
      continue;
    }
    if (!is_open) html += "<div class=\"scroll\"><table>\n";
    if (!is_open) row = 0;
    is_open = true;
    const char* const tag = row++ == 0 ? "th" : "td";
    html += "<tr>";
    size_t from = 2;
    while (from < text.size()) {
      const size_t bar = std::min(text.find(" |", from), text.size());
      html += fmt::format("<{0}>{1}</{0}>", tag, escape(text.substr(from, bar - from)));
      from = bar + 3;
    }
    html += "</tr>\n";
  }
  if (is_open) html += "</table></div>\n";
  if (!remarks.empty()) html += "<h2>Remarks</h2><pre>" + escape(remarks) + "</pre>\n";
  return html;
}

}  // namespace

Result<std::string> report_html(const std::vector<RunReport>& runs,
                                const ReportSettings& settings) {
  const auto compared = NIBBLE_TRY(compare_all(runs, settings));
  const std::string markdown = NIBBLE_TRY(report_table(runs, settings, ReportForm::kMarkdown));
  std::string html = kHead;
  html += "<h1>nibble eval</h1>\n";
  if (!runs.empty() && !runs.front().tasks.empty()) {
    html += "<h2>Scores, percent</h2><p>Whiskers: 95 % intervals.</p>\n" + run_key(runs) +
            score_plot(runs);
    if (std::any_of(compared.begin(), compared.end(),
                    [](const auto& all) { return !all.empty(); })) {
      html += "<h2>Retention of the baseline</h2><p>Points with 95 % intervals.</p>\n" +
              retention_plot(runs, compared, settings.threshold);
    }
    std::vector<std::pair<std::string, std::string>> outcomes;
    outcomes.reserve(kOutcomes.size());
    for (const Outcome& outcome : kOutcomes) outcomes.emplace_back(outcome.name, outcome.colour);
    html += "<h2>Outcomes of the samples</h2>\n" + key(outcomes) + outcome_plot(runs);
    html += fmt::format(
        "<h2>Length of answers, {}</h2><p>Percent of the samples with no more tokens.</p>\n{}",
        escape(runs.front().name), length_plot(runs.front()));
  }
  html += "<h2>Tables</h2>\n" + tables(markdown);
  return html + "</body></html>\n";
}

}  // namespace nibble
