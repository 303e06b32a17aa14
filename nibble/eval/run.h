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
#include "nibble/eval/target.h"
#include "nibble/eval/task.h"

namespace nibble {

struct RunTask {
  Task task;
  std::vector<std::filesystem::path> files;
};

struct RunSettings {
  std::vector<RunTask> tasks;
  std::string prompt_style = "aa";
  std::optional<int> samples;  // none: as each task says
  int64_t seed = 0;
  int64_t limit = 0;  // questions of a task; 0: all
  bool shuffle = true;
  Sampling sampling;
  int64_t concurrency = 32;

  int samples_of(const Task& task) const { return samples.value_or(task.samples); }
};

// How far a run is, for people.
struct RunProgress {
  std::string task;
  int64_t done = 0;  // samples of all tasks
  int64_t total = 0;
  int64_t errors = 0;
  int64_t truncated = 0;
  double score = 0;  // of the task, over what can be scored at once (choice and math)
  double score_se = 0;
  double tokens_per_second = 0;
  double eta_seconds = 0;
};

// Asks every question that FOLDER does not hold an answer to. The folder's manifest.json must match
// in everything that changes answers. After an interrupt, what runs is dropped and kCancelled
// returned: the next run goes on from there. Errors: kInvalidArgument naming the fields of the
// manifest that differ; those of loading, of the log and of the target.
Status generate(const std::filesystem::path& folder, const RunSettings& settings,
                CompletionTarget& target, const std::function<void(const RunProgress&)>& progress);

struct Score {
  std::string task;
  std::string id;
  int sample = 0;
  std::string cluster;
  std::string extracted;
  std::string gold;
  std::string outcome;  // correct, wrong, no_answer, truncated, error, sandbox_error, undecided
  std::string detail;
  int64_t completion_tokens = 0;
};

// One answer by its task's extractor; code is run in the sandbox. `earlier` as in code_score.h.
Result<Score> score_sample(TaskKind kind, const EvalItem& item, const SampleRecord& record,
                           const std::string& earlier);

// Scores every sample of a finished run and writes scores.jsonl. Needs the data files of the
// manifest, unchanged. Errors: kCorrupt when one has changed; kUnsupported without a sandbox.
Result<std::vector<Score>> score_run(const std::filesystem::path& folder,
                                     const std::function<void(int64_t, int64_t)>& progress);

// What score_run wrote. Errors: kNotFound, kCorrupt.
Result<std::vector<Score>> read_scores(const std::filesystem::path& folder);

}  // namespace nibble
