// nibble eval: benchmarks from local files, asked of a model, scored, compared.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <memory>

#include "nibble/base/error.h"
#include "nibble/base/output_file.h"
#include "nibble/cli/cli_common.h"
#include "nibble/cli/command.h"
#include "nibble/cli/eval_command.h"
#include "nibble/eval/dataset.h"
#include "nibble/eval/task.h"

namespace nibble {
namespace {

struct ConvertOptions {
  std::string in, out, task;
};

// Rows as JSON lines. With a task, every row has to be one of its questions.
Result<int> convert(const ConvertOptions& o) {
  OutputFile file = NIBBLE_TRY(OutputFile::create(o.out));
  int64_t rows = 0;
  const auto write = [&](std::string_view row) -> Status {
    ++rows;
    NIBBLE_TRY(file.write(row));
    return file.write("\n");
  };
  NIBBLE_TRY(for_each_row(o.in, write));
  NIBBLE_TRY(file.commit());
  if (!o.task.empty()) {
    const Task task = NIBBLE_TRY(find_task(o.task));
    LoadOptions load;
    load.allow_count = true;
    load.prompt_style = "demo";
    if (task.kind == TaskKind::kSciCode) {
      return invalid_argument("SciCode's problems need their targets: nibble eval run checks them");
    }
    NIBBLE_TRY(for_each_item(task, {o.out}, load, [](const EvalItem&) { return Status(); }));
  }
  print(fmt::format("{} rows in {}\n", rows, o.out));
  return 0;
}

}  // namespace

int finish_eval(const Result<int>& result, const char* command) {
  if (result) return *result;
  const int code = report_error(result.error(), command);
  return result.error().code == ErrorCode::kCorrupt ? kExitMismatch : code;
}

void add_eval_convert(CLI::App& eval, int* exit_code) {
  CLI::App* command =
      eval.add_subcommand("convert", "Rows of Parquet, CSV or JSON (also .gz) as JSON lines");
  auto o = std::make_shared<ConvertOptions>();
  command->add_option("IN", o->in, "A file ending in .parquet, .csv, .json or .jsonl")->required();
  command->add_option("OUT", o->out, "The file to write: JSON lines")->required();
  command->add_option("--task", o->task, "Check that the rows are questions of this task")
      ->type_name("NAME");
  command->callback([o, exit_code] { *exit_code = finish_eval(convert(*o), "eval convert"); });
}

void add_eval_tasks(CLI::App& eval, int* exit_code) {
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

void add_eval_command(CLI::App& app, int* exit_code) {
  CLI::App* eval = app.add_subcommand("eval", "Measure a model's quality on benchmarks");
  eval->require_subcommand(1);
  add_eval_run(*eval, exit_code);
  add_eval_score(*eval, exit_code);
  add_eval_report(*eval, exit_code);
  add_eval_fidelity(*eval, exit_code);
  add_eval_convert(*eval, exit_code);
  add_eval_tasks(*eval, exit_code);
}

}  // namespace nibble
