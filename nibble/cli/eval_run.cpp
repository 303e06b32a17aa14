// nibble eval run and score.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cstdlib>
#include <memory>

#include "nibble/base/error.h"
#include "nibble/base/output_file.h"
#include "nibble/checkpoint/model_path.h"
#include "nibble/cli/backend_options.h"
#include "nibble/cli/cli_common.h"
#include "nibble/cli/eval_command.h"
#include "nibble/cli/eval_progress.h"
#include "nibble/cli/parallel_options.h"
#include "nibble/comm/mpi_communicator.h"
#include "nibble/eval/report.h"
#include "nibble/eval/run.h"

namespace nibble {
namespace {

struct SandboxOptions {
  std::string level = "auto";
  bool accept_none = false;
  int jobs = 0;
};

struct ScoringOptions {
  std::string folder;
  std::string extractor;
  bool first_code = false;
  bool code_anywhere = false;
  std::string judge_url, judge_model, api_key_env;
  int64_t max_failed = 0;
  SandboxOptions sandbox;
  std::string progress = "auto";
};

struct EvalRunOptions {
  std::string model = "demo";
  std::string base_url, served_model, api_key_env, extra_body;
  double request_timeout = 3600;
  ParallelOptions parallel;
  int retries = 5;
  std::string out;
  std::vector<std::string> tasks;
  std::string suite;
  std::string prompt_style;
  std::optional<int> samples;
  int64_t seed = 0;
  int64_t limit = 0;
  std::optional<int64_t> subset_seed;
  std::string only, after, before;
  std::string shuffle = "item";
  int64_t shuffle_seed = 0;
  bool no_shuffle = false;
  bool allow_count = false;
  bool log_prompts = false;
  std::string examples, templates;
  Sampling sampling;
  int64_t concurrency = 0;
  std::string chat_template;
  BackendOptions backend;
  bool w4a4 = false;
  int64_t num_drafts = 0;
  bool relaxed = false;
  int64_t relaxed_topk = 10;
  double relaxed_delta = 0.6;
  ScoringOptions scoring;
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

std::vector<std::string> split_commas(const std::string& text) {
  std::vector<std::string> parts;
  for (size_t at = 0; at < text.size();) {
    const size_t comma = std::min(text.find(',', at), text.size());
    if (comma > at) parts.push_back(text.substr(at, comma - at));
    at = comma + 1;
  }
  return parts;
}

Result<RunTask> parse_run_task(const std::string& text) {
  const size_t equals = text.find('=');
  if (equals == std::string::npos || equals == 0 || equals + 1 == text.size()) {
    return invalid_argument(
        fmt::format("--task is '{}', expected NAME=FILE or NAME=FILE,FILE2", text));
  }
  RunTask task;
  task.task = NIBBLE_TRY(find_task(text.substr(0, equals)));
  for (const std::string& file : split_commas(text.substr(equals + 1))) {
    task.files.emplace_back(file);
  }
  return task;
}

Result<SandboxLevel> sandbox_level(const SandboxOptions& o) {
  if (o.level != "none") return SandboxLevel::kBubblewrap;
  if (o.accept_none) return SandboxLevel::kNone;
  return invalid_argument(
      "--sandbox none runs programs of a model with all that you may do yourself: say so with "
      "--i-accept-unsandboxed-code");
}

Status check_range(std::string_view option, double value, double low, double high) {
  if (value >= low && value <= high) return {};
  return invalid_argument(fmt::format("{} is {}, expected {} to {}", option, value, low, high));
}

Status check_date(std::string_view option, const std::string& date) {
  bool fits = date.empty() || (date.size() == 10 && date[4] == '-' && date[7] == '-');
  for (size_t i = 0; i < date.size() && fits; ++i) {
    if (i != 4 && i != 7) fits = date[i] >= '0' && date[i] <= '9';
  }
  if (fits) return {};
  return invalid_argument(fmt::format("{} is '{}', expected YYYY-MM-DD", option, date));
}

Status check_options(const EvalRunOptions& o) {
  NIBBLE_TRY(check_range("--k", o.samples.value_or(1), 1, 10'000));
  NIBBLE_TRY(check_range("--limit", static_cast<double>(o.limit), 0, 1e9));
  NIBBLE_TRY(check_range("--temperature", o.sampling.temperature, 0, 2));
  NIBBLE_TRY(check_range("--top-p", o.sampling.top_p, 1e-6, 1));
  NIBBLE_TRY(check_range("--max-tokens", static_cast<double>(o.sampling.max_tokens), 1, 1e7));
  NIBBLE_TRY(check_range("--concurrency", static_cast<double>(o.concurrency), 0, 4096));
  NIBBLE_TRY(check_range("--num-drafts", static_cast<double>(o.num_drafts), 0, 8));
  NIBBLE_TRY(check_range("--request-timeout", o.request_timeout, 0.1, 1e6));
  NIBBLE_TRY(check_range("--retries", o.retries, 0, 1000));
  NIBBLE_TRY(check_date("--after", o.after));
  NIBBLE_TRY(check_date("--before", o.before));
  if (o.relaxed && o.num_drafts == 0) {
    return invalid_argument("--relaxed judges drafts: give --num-drafts too");
  }
  if (o.subset_seed && o.limit == 0) {
    return invalid_argument("--subset-seed chooses as many questions as --limit says: give it too");
  }
  if (!o.base_url.empty() && (o.w4a4 || o.num_drafts > 0 || !o.chat_template.empty())) {
    return invalid_argument(
        "--base-url asks a server, which has its own model: --w4a4, --num-drafts, --relaxed and "
        "--chat-template are options of nibble serve");
  }
  if (o.base_url.empty() && (!o.served_model.empty() || !o.extra_body.empty())) {
    return invalid_argument("--served-model and --extra-body need --base-url");
  }
  return {};
}

Result<std::vector<RunTask>> run_tasks(const EvalRunOptions& o) {
  std::vector<std::string> texts = o.tasks;
  if (!o.suite.empty()) {
    const auto suite = suite_tasks(o.suite);
    texts.insert(texts.end(), suite.begin(), suite.end());
  }
  if (texts.empty())
    return invalid_argument("--task NAME=FILE is missing; nibble eval tasks lists");
  std::vector<RunTask> tasks;
  for (const std::string& text : texts) {
    tasks.push_back(NIBBLE_TRY(parse_run_task(text)));
    RunTask& task = tasks.back();
    for (size_t i = 0; i + 1 < tasks.size(); ++i) {
      if (tasks[i].task.name == task.task.name) {
        return invalid_argument(
            fmt::format("--task {} is given twice; several files of one task go "
                        "behind one '=', with commas",
                        task.task.name));
      }
    }
    task.examples = o.examples;
    if (task.task.kind == TaskKind::kSciCode) task.templates = o.templates;
  }
  return tasks;
}

Result<RunSettings> run_settings(const EvalRunOptions& o) {
  NIBBLE_TRY(check_options(o));
  RunSettings settings;
  settings.tasks = NIBBLE_TRY(run_tasks(o));
  LoadOptions& load = settings.load;
  load.prompt_style = !o.prompt_style.empty() ? o.prompt_style : o.suite.empty() ? "aa" : "demo";
  load.limit = o.limit;
  load.subset_seed = o.subset_seed;
  load.only = split_commas(o.only);
  load.after = o.after;
  load.before = o.before;
  load.allow_count = o.allow_count;
  load.shuffle = o.no_shuffle || o.shuffle == "none" ? Shuffle::kNone
                 : o.shuffle == "openai"             ? Shuffle::kOpenAi
                                                     : Shuffle::kItem;
  load.shuffle_seed = o.shuffle_seed;
  for (RunTask& one : settings.tasks) {
    const StyleSettings style = style_settings(one.task, load.prompt_style);
    if (!style.needs_examples) one.examples.clear();
    if (!style.needs_templates) one.templates.clear();
  }
  settings.samples = o.samples;
  settings.seed = o.seed;
  settings.sampling = o.sampling;
  settings.concurrency = o.concurrency > 0 ? o.concurrency : o.base_url.empty() ? 32 : 8;
  settings.log_prompts = o.log_prompts;
  settings.sandbox = NIBBLE_TRY(sandbox_level(o.scoring.sandbox));
  return settings;
}

// The key in the variable that the user named. Errors: kInvalidArgument when it is not set.
Result<std::string> api_key(const std::string& name) {
  if (name.empty()) return std::string();
  const char* key = std::getenv(name.c_str());
  if (key != nullptr && *key != '\0') return std::string(key);
  return invalid_argument(
      fmt::format("--api-key-env names the variable {}, which is not set", name));
}

std::string run_name(const std::string& folder) {
  auto path = std::filesystem::path(folder).lexically_normal();
  if (path.filename().empty()) path = path.parent_path();
  return path.filename().string();
}

Result<ScoreOptions> score_options(const ScoringOptions& o) {
  ScoreOptions options;
  options.extractor = o.extractor;
  options.first_code = o.first_code;
  options.code_anywhere = o.code_anywhere;
  options.sandbox = NIBBLE_TRY(sandbox_level(o.sandbox));
  options.sandbox_jobs = o.sandbox.jobs;
  return options;
}

// Scores a run, writes its report in three forms and prints it.
Result<int> score_and_print(const ScoringOptions& o) {
  ScoreOptions options = NIBBLE_TRY(score_options(o));
  std::unique_ptr<CompletionTarget> judge;
  if (!o.judge_url.empty()) {
    HttpTargetOptions target;
    target.base_url = o.judge_url;
    target.served_model = o.judge_model;
    target.concurrency = 1;
    target.api_key = NIBBLE_TRY(api_key(o.api_key_env));
    judge = NIBBLE_TRY(make_http_target(target));
    options.judge = judge.get();
  }
  std::vector<Score> scores;
  {
    EvalProgress line(o.progress);
    scores = NIBBLE_TRY(score_run(
        o.folder, options, [&](int64_t done, int64_t total) { line.show_scored(done, total); }));
  }
  std::string manifest = NIBBLE_TRY(read_manifest(o.folder));
  std::vector<RunReport> reports;
  reports.push_back(make_report(run_name(o.folder), std::move(scores), std::move(manifest)));
  const ReportSettings settings;
  const std::filesystem::path folder = o.folder;
  const std::string json = NIBBLE_TRY(report_json(reports, settings));
  const std::string markdown = NIBBLE_TRY(report_table(reports, settings, ReportForm::kMarkdown));
  const std::string html = NIBBLE_TRY(report_html(reports, settings));
  const std::string text = NIBBLE_TRY(report_table(reports, settings, ReportForm::kText));
  NIBBLE_TRY(write_text_file(folder / "report.json", json));
  NIBBLE_TRY(write_text_file(folder / "report.md", markdown));
  NIBBLE_TRY(write_text_file(folder / "report.html", html));
  print(text);
  int64_t failed = 0;
  for (const TaskReport& task : reports.front().tasks) {
    failed += task.count("error") + task.count("sandbox_error");
  }
  return failed > o.max_failed ? kExitFailedSamples : 0;
}

Result<std::unique_ptr<CompletionTarget>> open_server(const EvalRunOptions& o,
                                                      int64_t concurrency) {
  HttpTargetOptions options;
  options.base_url = o.base_url;
  options.served_model = o.served_model;
  options.concurrency = concurrency;
  options.request_timeout = o.request_timeout;
  options.retries = o.retries;
  options.extra_body = o.extra_body;
  options.api_key = NIBBLE_TRY(api_key(o.api_key_env));
  return make_http_target(options);
}

Result<EngineTargetOptions> engine_options(const EvalRunOptions& o, int64_t concurrency) {
  EngineTargetOptions options;
  options.chat_template = o.chat_template;
  NIBBLE_TRY(validate(o.backend));
  apply(o.backend, &options.model);
  apply(o.backend, &options.engine);
  options.model.load_mtp = o.num_drafts > 0;
  options.model.nvfp4_activation =
      o.w4a4 ? ActivationFormat::kNvfp4 : ActivationFormat::kUnquantized;
  options.engine.max_batch_size = concurrency;
  options.engine.max_num_tokens = std::max<int64_t>(512, concurrency * (1 + o.num_drafts));
  options.engine.num_drafts = o.num_drafts;
  options.engine.relaxed_thinking = {o.relaxed, o.relaxed_topk, o.relaxed_delta};
  return options;
}

// Everything up to the last answer. Unreachable servers get their own exit status.
Result<int> generate_answers(const EvalRunOptions& o, const RunSettings& settings,
                             Result<std::unique_ptr<CompletionTarget>> target) {
  const auto unreachable = [&](const Error& error) {
    return !o.base_url.empty() && error.code == ErrorCode::kUnavailable;
  };
  if (!target) {
    if (!unreachable(target.error())) return tl::unexpected(std::move(target).error());
    (void)report_error(target.error(), "eval run");
    return kExitUnreachable;
  }
  EvalProgress progress(o.scoring.progress);
  const auto show = [&](const RunProgress& p) { progress.show(p); };
  const Status status = generate(o.out, settings, **target, show);
  if (status) return 0;
  if (status.error().code == ErrorCode::kCancelled) {
    return cancelled("interrupted; the answers so far are kept, and the same command goes on");
  }
  if (!unreachable(status.error()) ||
      status.error().message.find(" is gone: ") == std::string::npos)
    return tl::unexpected(status.error());
  (void)report_error(status.error(), "eval run");
  return kExitUnreachable;
}

Result<int> eval_run(EvalRunOptions o) {
  const RunSettings settings = NIBBLE_TRY(run_settings(o));
  if (o.out.empty()) return invalid_argument("--out FOLDER is missing");
  for (const RunTask& one : settings.tasks) {
    // Told now, not after hours of answers.
    if (one.task.kind != TaskKind::kCode && one.task.kind != TaskKind::kSciCode) continue;
    NIBBLE_TRY(check_sandbox(settings.sandbox));
    break;
  }
  int code = 0;
  if (!o.base_url.empty()) {
    if (started_by_mpi()) {
      return invalid_argument("--base-url needs no ranks of its own: start it without mpirun");
    }
    code = NIBBLE_TRY(generate_answers(o, settings, open_server(o, settings.concurrency)));
  } else {
    EngineTargetOptions options = NIBBLE_TRY(engine_options(o, settings.concurrency));
    const RankOptions rank_options = NIBBLE_TRY(apply(o.parallel, &options.model));
    const auto directory = NIBBLE_TRY(resolve_model(o.model));
    auto ranks = NIBBLE_TRY(RankGroup::start(directory, options.model, rank_options));
    if (ranks->is_worker()) {  // under mpirun: rank 0 asks, writes and scores
      NIBBLE_TRY(ranks->serve());
      return 0;
    }
    code = NIBBLE_TRY(
        generate_answers(o, settings, make_engine_target(directory, options, std::move(ranks))));
  }
  if (code != 0) return code;
  o.scoring.folder = o.out;
  return score_and_print(o.scoring);
}

void add_scoring_options(CLI::App* command, ScoringOptions* o) {
  command->add_option("--max-failed", o->max_failed, "Failed samples for exit status 0 [0]")
      ->type_name("N");
  command->add_option("--sandbox", o->sandbox.level, "auto, bwrap or none [auto]")
      ->check(CLI::IsMember({"auto", "bwrap", "none"}));
  command->add_flag("--i-accept-unsandboxed-code", o->sandbox.accept_none,
                    "Needed for --sandbox none");
  command->add_option("--sandbox-jobs", o->sandbox.jobs, "Programs at once [processors]")
      ->check(CLI::Range(0, 1024))
      ->type_name("N");
  command->add_flag("--code-from-anywhere", o->code_anywhere,
                    "Take code from the reasoning too, for parity with other tools");
  command->add_flag("--first-code", o->first_code, "Take the first block of code, not the last");
  command
      ->add_option("--extractor", o->extractor,
                   "Of letters: choice-v1, aa-v2 or lm-eval [the prompt style's]")
      ->check(CLI::IsMember({"choice-v1", "aa-v2", "lm-eval"}));
  command
      ->add_option("--judge-base-url", o->judge_url,
                   "Server that judges answers to math that the rules find unequal")
      ->type_name("URL");
  command->add_option("--judge-model", o->judge_model, "Its model [the first it lists]");
  command->add_option("--progress", o->progress, "auto, tty, plain or none [auto]")
      ->check(CLI::IsMember({"auto", "tty", "plain", "none"}));
}

void add_question_options(CLI::App* command, EvalRunOptions* o) {
  command->add_option("--task", o->tasks, "NAME=FILE[,FILE2...]; may repeat")->type_name("TASK");
  command->add_option("--suite", o->suite, "Folder with the six miniature suites; prompts: demo")
      ->type_name("DIR");
  command->add_option("--prompt-style", o->prompt_style,
                      "aa, aa-ten, r1, lm-eval, no-background or demo, as the task has [aa]");
  command->add_option("--k", o->samples, "Samples of a question [the task's]")->type_name("N");
  command->add_option("--limit", o->limit, "Only the first N questions of a task")->type_name("N");
  command->add_option("--subset-seed", o->subset_seed, "N questions at random, not the first")
      ->type_name("N");
  command->add_option("--only", o->only, "Only these questions")->type_name("ID,...");
  command->add_option("--after", o->after, "Code: first contest date")->type_name("YYYY-MM-DD");
  command->add_option("--before", o->before, "Code: last contest date")->type_name("YYYY-MM-DD");
  command->add_flag("--allow-count", o->allow_count, "Take files with another count of rows");
  command->add_option("--shuffle", o->shuffle, "GPQA's options: item, openai or none [item]")
      ->check(CLI::IsMember({"item", "openai", "none"}));
  command->add_option("--shuffle-seed", o->shuffle_seed, "Of --shuffle item [0]")->type_name("N");
  command->add_flag("--no-shuffle", o->no_shuffle, "The same as --shuffle none");
  command->add_option("--examples", o->examples, "MMLU-Pro's validation file, for lm-eval prompts")
      ->type_name("FILE");
  command->add_option("--scicode-templates", o->templates, "eval/data of a SciCode checkout")
      ->type_name("DIR");
}

void add_target_options(CLI::App* command, EvalRunOptions* o) {
  command->add_option("--model", o->model, "Checkpoint directory, or a model's name [demo]");
  command
      ->add_option("--base-url,--target", o->base_url,
                   "Ask a server with OpenAI's API instead, http://HOST:PORT")
      ->type_name("URL");
  command->add_option("--served-model", o->served_model, "Its model [the first it lists]")
      ->type_name("NAME");
  command->add_option("--api-key-env", o->api_key_env, "Variable with the API key")
      ->type_name("NAME");
  command->add_option("--extra-body", o->extra_body, "Further fields of each request")
      ->type_name("JSON");
  command->add_option("--request-timeout", o->request_timeout, "Of a request to a server [3600]")
      ->type_name("S");
  command->add_option("--retries", o->retries, "Of a request to a server [5]")->type_name("N");
  command->add_option("--chat-template", o->chat_template, "A built-in name or a file");
  add_backend_options(*command, &o->backend);
  add_parallel_options(*command, &o->parallel, "Ranks");
  command->add_flag("--w4a4", o->w4a4, "Quantize activations to NVFP4 too");
  command->add_option("--num-drafts", o->num_drafts, "Drafts of the MTP layer, 0..8 [0]")
      ->type_name("N");
  command->add_flag("--relaxed", o->relaxed, "Relaxed acceptance of drafts while thinking");
  command->add_option("--relaxed-topk", o->relaxed_topk, "Of --relaxed [10]")->type_name("N");
  command->add_option("--relaxed-delta", o->relaxed_delta, "Of --relaxed [0.6]")->type_name("X");
}

}  // namespace

void add_eval_run(CLI::App& eval, int* exit_code) {
  CLI::App* command =
      eval.add_subcommand("run", "Ask a model all questions, and score its answers");
  command->footer(
      "A run that was stopped goes on when the same command is given again.\n"
      "Example, all six miniature suites on the bundled model:\n"
      "  nibble eval run --suite models/suites --out runs/fp8 --temperature 0 --k 1");
  auto o = std::make_shared<EvalRunOptions>();
  add_target_options(command, o.get());
  add_question_options(command, o.get());
  command->add_option("--out", o->out, "Folder of the run")->type_name("DIR");
  command->add_option("--temperature", o->sampling.temperature, "0..2 [0.6]")->type_name("X");
  command->add_option("--top-p", o->sampling.top_p, "(0, 1] [0.95]")->type_name("X");
  command->add_option("--max-tokens", o->sampling.max_tokens, "Of an answer [32768]")
      ->type_name("N");
  command->add_option("--seed", o->seed, "Of answers [0]")->type_name("N");
  command->add_option("--concurrency", o->concurrency, "Questions at once [32; of a server 8]")
      ->type_name("N");
  command->add_flag("--log-prompts", o->log_prompts, "Write prompts into samples.jsonl");
  add_scoring_options(command, &o->scoring);
  command->callback([o, exit_code] {
    o->scoring.api_key_env = o->api_key_env;
    *exit_code = finish_eval(eval_run(*o), "eval run");
  });
}

void add_eval_score(CLI::App& eval, int* exit_code) {
  CLI::App* command = eval.add_subcommand("score", "Score a run's answers again, without a model");
  auto o = std::make_shared<ScoringOptions>();
  command->add_option("RUN", o->folder, "Folder of the run")->required();
  add_scoring_options(command, o.get());
  command->add_option("--api-key-env", o->api_key_env, "Variable with the judge's API key")
      ->type_name("NAME");
  command->callback(
      [o, exit_code] { *exit_code = finish_eval(score_and_print(*o), "eval score"); });
}

}  // namespace nibble
