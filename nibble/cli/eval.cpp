// nibble eval: benchmarks from local files, asked of a model, scored, compared.
#include <fmt/format.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <memory>

#include "nibble/base/error.h"
#include "nibble/base/output_file.h"
#include "nibble/base/text.h"
#include "nibble/checkpoint/model_path.h"
#include "nibble/cli/cli_common.h"
#include "nibble/cli/command.h"
#include "nibble/eval/report.h"
#include "nibble/eval/run.h"

namespace nibble {
namespace {

constexpr int kExitFailedSamples = 3;
constexpr int kExitMismatch = 4;
constexpr int kExitNotRetained = 6;

struct EvalRunOptions {
  std::string model = "demo";
  std::string out;
  std::vector<std::string> tasks;
  std::string suite;
  std::string prompt_style;
  std::optional<int> samples;
  int64_t seed = 0;
  int64_t limit = 0;
  bool no_shuffle = false;
  Sampling sampling;
  int64_t concurrency = 32;
  int64_t max_failed = 0;
  std::string chat_template;
  std::string backend = "auto";
  int threads = 0;
  bool w4a4 = false;
  int64_t num_drafts = 0;
  bool relaxed = false;
  int64_t relaxed_topk = 10;
  double relaxed_delta = 0.6;
  std::string progress = "auto";
};

struct EvalReportOptions {
  std::vector<std::string> runs;
  std::string json, markdown;
  double threshold = 98;
  bool intersect = false;
  std::optional<double> require_retention;
};

// The files of a folder that holds the six suites by their names.
std::vector<std::string> suite_tasks(const std::string& folder) {
  const auto file = [&](const char* name) { return folder + "/" + name; };
  return {"mmlu-pro=" + file("mmlu-pro.jsonl"),
          "gpqa-diamond=" + file("gpqa-diamond.csv"),
          "livecodebench=" + file("livecodebench.jsonl"),
          "scicode=" + file("scicode.jsonl") + "," + file("scicode-targets.json"),
          "math-500=" + file("math-500.jsonl"),
          "aime-2024=" + file("aime-2024.jsonl")};
}

Result<RunTask> parse_run_task(const std::string& text) {
  const size_t equals = text.find('=');
  if (equals == std::string::npos || equals == 0 || equals + 1 == text.size()) {
    return invalid_argument(
        fmt::format("--task is '{}', expected NAME=FILE or NAME=FILE,FILE2", text));
  }
  RunTask task;
  task.task = NIBBLE_TRY(find_task(text.substr(0, equals)));
  std::string rest = text.substr(equals + 1);
  while (!rest.empty()) {
    const size_t comma = std::min(rest.find(','), rest.size());
    task.files.emplace_back(rest.substr(0, comma));
    rest.erase(0, comma + 1);
  }
  return task;
}

Result<RunSettings> run_settings(const EvalRunOptions& o) {
  RunSettings settings;
  std::vector<std::string> tasks = o.tasks;
  if (!o.suite.empty()) {
    const auto suite = suite_tasks(o.suite);
    tasks.insert(tasks.end(), suite.begin(), suite.end());
  }
  if (tasks.empty())
    return invalid_argument("--task NAME=FILE is missing; nibble eval tasks lists");
  for (const std::string& task : tasks) {
    settings.tasks.push_back(NIBBLE_TRY(parse_run_task(task)));
    for (size_t i = 0; i + 1 < settings.tasks.size(); ++i) {
      if (settings.tasks[i].task.name == settings.tasks.back().task.name) {
        return invalid_argument(
            fmt::format("--task {} is given twice; several files of one task go "
                        "behind one '=', with commas",
                        settings.tasks.back().task.name));
      }
    }
  }
  const auto check = [](std::string_view option, double value, double low, double high) -> Status {
    if (value >= low && value <= high) return {};
    return invalid_argument(fmt::format("{} is {}, expected {} to {}", option, value, low, high));
  };
  NIBBLE_TRY(check("--k", o.samples.value_or(1), 1, 10'000));
  NIBBLE_TRY(check("--limit", static_cast<double>(o.limit), 0, 1e9));
  NIBBLE_TRY(check("--temperature", o.sampling.temperature, 0, 2));
  NIBBLE_TRY(check("--top-p", o.sampling.top_p, 1e-6, 1));
  NIBBLE_TRY(check("--max-tokens", static_cast<double>(o.sampling.max_tokens), 1, 1e7));
  NIBBLE_TRY(check("--concurrency", static_cast<double>(o.concurrency), 1, 4096));
  NIBBLE_TRY(check("--num-drafts", static_cast<double>(o.num_drafts), 0, 8));
  if (o.relaxed && o.num_drafts == 0) {
    return invalid_argument("--relaxed judges drafts: give --num-drafts too");
  }
  settings.prompt_style = !o.prompt_style.empty() ? o.prompt_style
                          : o.suite.empty()       ? "aa"
                                                  : "demo";
  settings.samples = o.samples;
  settings.seed = o.seed;
  settings.limit = o.limit;
  settings.shuffle = !o.no_shuffle;
  settings.sampling = o.sampling;
  settings.concurrency = o.concurrency;
  return settings;
}

// One line on a terminal that is written over, or a line every 30 seconds.
class ProgressLine {
 public:
  explicit ProgressLine(const std::string& mode)
      : is_tty_(mode == "tty" || (mode == "auto" && ::isatty(STDERR_FILENO) != 0)),
        is_off_(mode == "none") {}
  ~ProgressLine() {
    if (is_tty_ && written_) std::fputs("\n", stderr);
  }
  ProgressLine(const ProgressLine&) = delete;
  ProgressLine& operator=(const ProgressLine&) = delete;

  void show(const std::string& line) {
    const auto now = std::chrono::steady_clock::now();
    if (is_off_ || (!is_tty_ && written_ && now - last_ < std::chrono::seconds(30))) return;
    last_ = now;
    written_ = true;
    (void)std::fprintf(stderr, is_tty_ ? "\r\x1b[K%s" : "%s\n", line.c_str());
    (void)std::fflush(stderr);
  }

 private:
  bool is_tty_;
  bool is_off_;
  bool written_ = false;
  std::chrono::steady_clock::time_point last_;
};

std::string progress_text(const RunProgress& p) {
  std::string line = fmt::format("{}/{} {}", p.done, p.total, p.task);
  if (p.score_se > 0) line += fmt::format("  {:.1f} +- {:.1f} %", 100 * p.score, 100 * p.score_se);
  line +=
      fmt::format("  {:.0f} tok/s  {} left", p.tokens_per_second, format_duration(p.eta_seconds));
  if (p.truncated > 0) line += fmt::format("  {} truncated", p.truncated);
  if (p.errors > 0) line += fmt::format("  {} errors", p.errors);
  return line;
}

std::string run_name(const std::string& folder) {
  auto path = std::filesystem::path(folder).lexically_normal();
  if (path.filename().empty()) path = path.parent_path();
  return path.filename().string();
}

// Scores a run and writes its report.json and report.md.
Result<RunReport> score_and_report(const std::string& folder, const std::string& progress) {
  std::vector<Score> scores;
  {
    ProgressLine line(progress);
    scores = NIBBLE_TRY(score_run(folder, [&](int64_t done, int64_t total) {
      if (done % 10 == 0 || done == total) line.show(fmt::format("scored {}/{}", done, total));
    }));
  }
  std::vector<RunReport> reports;
  reports.push_back(make_report(run_name(folder), std::move(scores)));
  const std::string json = NIBBLE_TRY(report_json(reports, 98, false));
  const std::string table = NIBBLE_TRY(report_table(reports, 98, false, ReportForm::kMarkdown));
  NIBBLE_TRY(write_text_file(std::filesystem::path(folder) / "report.json", json));
  NIBBLE_TRY(write_text_file(std::filesystem::path(folder) / "report.md", table));
  return std::move(reports.front());
}

Result<int> print_scored(const std::string& folder, const std::string& progress,
                         int64_t max_failed) {
  const RunReport report = NIBBLE_TRY(score_and_report(folder, progress));
  const std::string table = NIBBLE_TRY(report_table({report}, 98, false, ReportForm::kText));
  print(table);
  int64_t failed = 0;
  for (const TaskReport& task : report.tasks) {
    for (const char* outcome : {"error", "sandbox_error"}) {
      const auto found = task.outcomes.find(outcome);
      if (found != task.outcomes.end()) failed += found->second;
    }
  }
  return failed > max_failed ? kExitFailedSamples : 0;
}

Result<int> eval_run(const EvalRunOptions& o) {
  const RunSettings settings = NIBBLE_TRY(run_settings(o));
  if (o.out.empty()) return invalid_argument("--out FOLDER is missing");
  EngineTargetOptions target_options;
  target_options.chat_template = o.chat_template;
  target_options.model.backend = o.backend;
  target_options.model.threads = o.threads;
  target_options.model.load_mtp = o.num_drafts > 0;
  target_options.model.nvfp4_activation =
      o.w4a4 ? ActivationFormat::kNvfp4 : ActivationFormat::kUnquantized;
  target_options.engine.max_batch_size = o.concurrency;
  target_options.engine.max_num_tokens = std::max<int64_t>(512, o.concurrency * (1 + o.num_drafts));
  target_options.engine.num_drafts = o.num_drafts;
  target_options.engine.relaxed_thinking = {o.relaxed, o.relaxed_topk, o.relaxed_delta};
  const auto directory = NIBBLE_TRY(resolve_model(o.model));
  const auto target = NIBBLE_TRY(make_engine_target(directory, target_options));
  {
    ProgressLine line(o.progress);
    const auto show = [&](const RunProgress& p) { line.show(progress_text(p)); };
    NIBBLE_TRY(generate(o.out, settings, *target, show));
  }
  return print_scored(o.out, o.progress, o.max_failed);
}

Result<int> eval_report(const EvalReportOptions& o) {
  std::vector<RunReport> runs;
  for (const std::string& folder : o.runs) {
    auto scores = NIBBLE_TRY(read_scores(folder));
    runs.push_back(make_report(run_name(folder), std::move(scores)));
  }
  const double threshold = o.require_retention.value_or(o.threshold);
  const std::string table =
      NIBBLE_TRY(report_table(runs, threshold, o.intersect, ReportForm::kText));
  print(table);
  if (!o.markdown.empty()) {
    const std::string text =
        NIBBLE_TRY(report_table(runs, threshold, o.intersect, ReportForm::kMarkdown));
    NIBBLE_TRY(write_text_file(o.markdown, text));
  }
  if (!o.json.empty()) {
    const std::string text = NIBBLE_TRY(report_json(runs, threshold, o.intersect));
    NIBBLE_TRY(write_text_file(o.json, text));
  }
  if (!o.require_retention) return 0;
  if (runs.size() < 2) return invalid_argument("--require-retention compares: give two runs");
  for (size_t i = 1; i < runs.size(); ++i) {
    const auto compared = NIBBLE_TRY(compare_reports(runs[i], runs[0], threshold, o.intersect));
    for (const TaskComparison& one : compared) {
      if (one.verdict != Retained::kRetained) return kExitNotRetained;
    }
  }
  return 0;
}

int finish(const Result<int>& result, const char* command, bool mismatch = false) {
  if (result) return *result;
  const int code = report_error(result.error(), command);
  return mismatch && result.error().code == ErrorCode::kCorrupt ? kExitMismatch : code;
}

void add_run(CLI::App& eval, int* exit_code) {
  CLI::App* command =
      eval.add_subcommand("run", "Ask a model all questions, and score its answers");
  command->footer(
      "A run that was stopped goes on when the same command is given again.\n"
      "Example, all six miniature suites on the bundled model:\n"
      "  nibble eval run --suite models/suites --out runs/fp8 --temperature 0 --k 1");
  auto o = std::make_shared<EvalRunOptions>();
  command->add_option("--task", o->tasks, "NAME=FILE[,FILE2...]; may repeat")->type_name("TASK");
  command->add_option("--suite", o->suite, "Folder with the six miniature suites; prompts: demo")
      ->type_name("DIR");
  command->add_option("--model", o->model, "Checkpoint directory, or a model's name [demo]");
  command->add_option("--out", o->out, "Folder of the run")->type_name("DIR");
  command->add_option("--prompt-style", o->prompt_style, "aa, r1 or demo, as the task has [aa]");
  command->add_option("--k", o->samples, "Samples of a question [the task's]")->type_name("N");
  command->add_option("--temperature", o->sampling.temperature, "0..2 [0.6]")->type_name("X");
  command->add_option("--top-p", o->sampling.top_p, "(0, 1] [0.95]")->type_name("X");
  command->add_option("--max-tokens", o->sampling.max_tokens, "Of an answer [32768]")
      ->type_name("N");
  command->add_option("--seed", o->seed, "Of answers and of shuffled options [0]")->type_name("N");
  command->add_option("--limit", o->limit, "Only the first N questions of a task")->type_name("N");
  command->add_flag("--no-shuffle", o->no_shuffle, "GPQA's options in the file's order");
  command->add_option("--concurrency", o->concurrency, "Questions at once [32]")->type_name("N");
  command->add_option("--max-failed", o->max_failed, "Failed samples for exit status 0 [0]")
      ->type_name("N");
  command->add_option("--chat-template", o->chat_template, "A built-in name or a file");
  command->add_option("--backend", o->backend, "auto, cpu, reference or cuda [auto]");
  command->add_option("--threads", o->threads, "Threads [all processors]")->type_name("N");
  command->add_flag("--w4a4", o->w4a4, "Quantize activations to NVFP4 too");
  command->add_option("--num-drafts", o->num_drafts, "Drafts of the MTP layer, 0..8 [0]")
      ->type_name("N");
  command->add_flag("--relaxed", o->relaxed, "Relaxed acceptance of drafts while thinking");
  command->add_option("--relaxed-topk", o->relaxed_topk, "Of --relaxed [10]")->type_name("N");
  command->add_option("--relaxed-delta", o->relaxed_delta, "Of --relaxed [0.6]")->type_name("X");
  command->add_option("--progress", o->progress, "auto, tty, plain or none [auto]")
      ->check(CLI::IsMember({"auto", "tty", "plain", "none"}));
  command->callback([o, exit_code] { *exit_code = finish(eval_run(*o), "eval run", true); });
}

void add_score(CLI::App& eval, int* exit_code) {
  CLI::App* command = eval.add_subcommand("score", "Score a run's answers again, without a model");
  auto folder = std::make_shared<std::string>();
  command->add_option("RUN", *folder, "Folder of the run")->required();
  command->callback([folder, exit_code] {
    *exit_code = finish(print_scored(*folder, "auto", 0), "eval score", true);
  });
}

void add_report(CLI::App& eval, int* exit_code) {
  CLI::App* command =
      eval.add_subcommand("report", "A table of runs; the first is the baseline of the others");
  command->footer(
      "retained: the whole 95 % interval of the retention is at or above the threshold; lost: "
      "below\n"
      "it; inconclusive: more questions or samples are needed.");
  auto o = std::make_shared<EvalReportOptions>();
  command->add_option("RUN", o->runs, "Folders of runs, the baseline first")->required();
  command->add_option("--threshold", o->threshold, "Percent of the baseline [98]")->type_name("X");
  command
      ->add_option("--require-retention", o->require_retention,
                   "Exit 6 unless every task is retained at X percent")
      ->type_name("X");
  command->add_flag("--intersect", o->intersect, "Compare the questions that are in both runs");
  command->add_option("--json", o->json, "Write the report as JSON")->type_name("FILE");
  command->add_option("--markdown", o->markdown, "Write the table as Markdown")->type_name("FILE");
  command->callback([o, exit_code] { *exit_code = finish(eval_report(*o), "eval report"); });
}

void add_tasks(CLI::App& eval, int* exit_code) {
  CLI::App* command = eval.add_subcommand("tasks", "List the built-in tasks, or print one");
  auto name = std::make_shared<std::string>();
  command->add_option("NAME", *name, "Print this task's file");
  command->callback([name, exit_code] {
    if (name->empty()) {
      for (const Task& task : builtin_tasks()) {
        print(fmt::format("{:<14} {:<14} {:<8} {} samples a question\n", task.name, task.title,
                          task_kind_name(task.kind), task.samples));
      }
      return;
    }
    const auto task = find_task(*name);
    if (!task) {
      *exit_code = report_error(task.error(), "eval tasks");
      return;
    }
    print(task->json + "\n");
  });
}

}  // namespace

void add_eval_command(CLI::App& app, int* exit_code) {
  CLI::App* eval = app.add_subcommand("eval", "Measure a model's quality on benchmarks");
  eval->require_subcommand(1);
  add_run(*eval, exit_code);
  add_score(*eval, exit_code);
  add_report(*eval, exit_code);
  add_tasks(*eval, exit_code);
}

}  // namespace nibble
