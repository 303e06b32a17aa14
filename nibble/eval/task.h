// A benchmark as data: where its questions are in a file's rows, how they are asked and scored.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/base/result.h"

namespace nibble {

enum class TaskKind { kChoice, kMath, kCode, kSciCode };
std::string_view task_kind_name(TaskKind kind);  // "choice", "math", "code", "scicode"

struct Task {
  std::string name;   // "math-500"
  std::string title;  // "MATH-500"
  TaskKind kind = TaskKind::kMath;
  int samples = 1;  // a question, as the model card's harness takes
  std::string json;
};

// One question as a model gets it.
struct EvalItem {
  std::string id;
  std::string cluster;  // questions that are not independent share it
  std::string prompt;
  std::string gold;         // a letter, or LaTeX
  int num_options = 0;      // of a choice
  std::string permutation;  // of a choice whose options were shuffled: "2031"
  std::string tests;        // JSON, of code: what code_score.h takes
};

// The built-in tasks: mmlu-pro, gpqa-diamond, livecodebench, scicode, math-500, aime-2024.
const std::vector<Task>& builtin_tasks();

// A built-in task by its name, with '_' as '-'; or a task file (docs/eval.md).
// Errors: kNotFound with near names; kCorrupt for a malformed file.
Result<Task> find_task(const std::string& name_or_file);

struct LoadOptions {
  std::string prompt_style = "aa";  // a name of the task's "prompts"
  int sample = 0;                   // options are shuffled for each sample of a question
  int64_t seed = 0;
  int64_t limit = 0;  // 0: all
  bool shuffle = true;
};

// A task from the text of its file. Errors: kCorrupt naming `where` and the field.
Result<Task> parse_task(std::string_view text, std::string_view where);

// The questions of one sample round. `files` are read in order; SciCode's last one may be its
// targets (.json). Errors: those of for_each_row; kCorrupt naming row and field that is missing;
// kInvalidArgument for an unknown prompt style, naming those that the task has.
Result<std::vector<EvalItem>> load_items(const Task& task,
                                         const std::vector<std::filesystem::path>& files,
                                         const LoadOptions& options);

// A number that depends on all three alone (splitmix64 over FNV-1a).
uint64_t eval_hash(int64_t seed, std::string_view text, int64_t sample);

}  // namespace nibble
