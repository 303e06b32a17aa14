// A run: questions asked of a target into a folder that can be resumed, and scored without a model.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "nibble/base/result.h"
#include "nibble/eval/sample_log.h"
#include "nibble/eval/sandbox.h"
#include "nibble/eval/target.h"
#include "nibble/eval/task.h"

namespace nibble {

struct RunTask {
  Task task;
  std::vector<std::filesystem::path> files;
  std::filesystem::path examples;   // of styles that show worked ones
  std::filesystem::path templates;  // SciCode's eval/data
};

struct RunSettings {
  std::vector<RunTask> tasks;
  LoadOptions load;            // of all tasks; its sample, examples and templates are not used
  std::optional<int> samples;  // none: as each task says
  int64_t seed = 0;
  Sampling sampling;
  int64_t concurrency = 32;
  bool log_prompts = false;
  SandboxLevel sandbox = SandboxLevel::kBubblewrap;

  int samples_of(const Task& task) const { return samples.value_or(task.samples); }
};

// How far one task is.
struct TaskProgress {
  std::string title;
  int64_t done = 0;  // samples, those of earlier runs too
  int64_t total = 0;
  int64_t errors = 0;
  int64_t truncated = 0;
  bool has_score = false;  // choice and math: scored as they come
  double score = 0;
  double score_se = 0;
};

// How far a run is, for people.
struct RunProgress {
  std::vector<TaskProgress> tasks;
  size_t current = 0;
  int64_t done = 0;  // samples of all tasks
  int64_t total = 0;
  int64_t running = 0;
  int64_t retries = 0;
  double tokens_per_second = 0;
  double elapsed_seconds = 0;
  double eta_seconds = -1;  // below 0: not known yet
};

// Asks every question that FOLDER does not hold an answer to. The folder's manifest.json must match
// in everything that changes answers. After an interrupt, what runs gets a moment, then kCancelled
// is returned: the next run goes on from there. Errors: kCorrupt naming the fields of the manifest
// that differ, or a data file with another count of rows; those of loading, of the log and of the
// target.
Status generate(const std::filesystem::path& folder, const RunSettings& settings,
                CompletionTarget& target, const std::function<void(const RunProgress&)>& progress);

struct Score {
  std::string task;
  std::string id;
  int sample = 0;
  std::string cluster;
  std::string extractor;
  std::string extracted;
  std::string gold;
  std::string outcome;  // correct, wrong, no_answer, truncated, error, sandbox_error, undecided
  std::string detail;
  std::string judge;           // what a judge model decided: "", "yes", "no"
  bool was_cut = false;        // finish_reason length
  bool is_unclosed = false;    // thinking that never ended
  bool is_empty = false;       // nothing behind the thinking
  bool is_near_limit = false;  // a program that took more than 80 % of its time
  int retries = 0;
  int64_t completion_tokens = 0;
};

struct ScoreOptions {
  std::string extractor;       // of choices, instead of the prompt style's; "" as the style says
  bool first_code = false;     // the first block of code, not the last one
  bool code_anywhere = false;  // of the reasoning too
  SandboxLevel sandbox = SandboxLevel::kBubblewrap;
  int sandbox_jobs = 0;               // programs at once; 0: a core each
  CompletionTarget* judge = nullptr;  // asked about undecided and unequal answers of math
  std::string judge_name;
};

// One answer by its task's extractor; code is run in the sandbox. `earlier` as in code_score.h.
Result<Score> score_sample(const Task& task, const std::string& prompt_style, const EvalItem& item,
                           const SampleRecord& record, const std::string& earlier,
                           const ScoreOptions& options);

// Scores every sample of a finished run and writes scores.jsonl. Needs the data files of the
// manifest, unchanged. Errors: kCorrupt when one has changed; kUnsupported without a sandbox.
Result<std::vector<Score>> score_run(const std::filesystem::path& folder,
                                     const ScoreOptions& options,
                                     const std::function<void(int64_t, int64_t)>& progress);

// What score_run wrote. Errors: kNotFound, kCorrupt.
Result<std::vector<Score>> read_scores(const std::filesystem::path& folder);

// What the manifest of a run says, as JSON text. Errors: kNotFound, kCorrupt.
Result<std::string> read_manifest(const std::filesystem::path& folder);

}  // namespace nibble
