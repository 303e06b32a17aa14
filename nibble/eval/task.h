// A benchmark as data: where its questions are in a file's rows, how they are asked and scored.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
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

// The built-in tasks: mmlu-pro, gpqa-diamond, livecodebench, scicode, math-500, aime-2024.
const std::vector<Task>& builtin_tasks();

// A built-in task by its name, with '_' as '-'; or a task file (docs/eval.md).
// Errors: kNotFound with near names; kCorrupt for a malformed file.
Result<Task> find_task(const std::string& name_or_file);

// A task from the text of its file. Errors: kCorrupt naming `where` and the field.
Result<Task> parse_task(std::string_view text, std::string_view where);

// What a prompt style asks of the target, beside its text.
struct StyleSettings {
  bool raw_prompt = false;          // a text that goes on, without a chat template
  std::vector<std::string> stop;    // texts that end an answer
  std::string extractor;            // of choices: "choice-v1", "aa-v2", "lm-eval"
  bool needs_examples = false;      // worked examples for each category
  bool needs_templates = false;     // SciCode's own
  bool with_background = false;     // of SciCode's steps
  std::vector<std::string> window;  // first and last contest_date, of code
};
StyleSettings style_settings(const Task& task, const std::string& prompt_style);

// One step of a problem whose later steps build on the answers to earlier ones (SciCode).
struct ChainStep {
  std::string text;          // what is asked, with its background where the style has it
  std::string code;          // header and return line
  std::string function;      // the name of the function or class that is carried forward
  std::string given;         // a step that is not asked: its code
  std::string dependencies;  // import lines of the problem
};

// One question as a model gets it.
struct EvalItem {
  std::string id;
  std::string cluster;             // questions that are not independent share it
  std::string prompt;              // of a chained question: the template, see chain_prompt()
  std::string gold;                // a letter, or LaTeX
  int num_options = 0;             // of a choice
  std::string permutation;         // of a choice whose options were shuffled: "2031"
  std::string tests;               // JSON, of code: what code_score.h takes
  std::optional<ChainStep> chain;  // with prompts that need earlier answers
};

// How the options of GPQA are shuffled: by splitmix64 from seed, id and sample; as simple-evals
// does, by Python's Random(0) over the questions in the file's order; or not.
enum class Shuffle { kItem, kOpenAi, kNone };

struct LoadOptions {
  std::string prompt_style = "aa";  // a name of the task's "prompts"
  int sample = 0;                   // options are shuffled for each sample of a question
  Shuffle shuffle = Shuffle::kItem;
  int64_t shuffle_seed = 0;
  int64_t limit = 0;                   // questions; 0: all
  std::optional<int64_t> subset_seed;  // with limit: a random subset, not the first ones
  std::vector<std::string> only;       // ids of questions (SciCode: of problems); empty: all
  std::string after, before;           // YYYY-MM-DD of contest_date, both included; "": the style's
  bool allow_count = false;            // another count of rows than the task states
  bool with_tests = true;              // of code
  std::filesystem::path examples;      // rows with worked examples (MMLU-Pro's validation file)
  std::filesystem::path templates;     // SciCode's eval/data
};

// Calls `take` with each question of one sample round, in order. `files` are read in order;
// SciCode's last one may be its targets (.json or .h5). Errors: those of for_each_row and of
// `take`; kCorrupt naming row and field that is missing, or the count of rows; kInvalidArgument for
// an unknown prompt style, naming those that the task has, or a file that the style needs.
Status for_each_item(const Task& task, const std::vector<std::filesystem::path>& files,
                     const LoadOptions& options, const std::function<Status(EvalItem)>& take);

// All of them. Errors: kCorrupt also for none.
Result<std::vector<EvalItem>> load_items(const Task& task,
                                         const std::vector<std::filesystem::path>& files,
                                         const LoadOptions& options);

// The prompt of a chained question behind these steps and their code.
struct EarlierStep {
  std::string text;
  std::string code;
};
std::string chain_prompt(const EvalItem& item, const std::vector<EarlierStep>& earlier);

// A number that depends on all three alone (splitmix64 over FNV-1a).
uint64_t eval_hash(int64_t seed, std::string_view text, int64_t sample);

}  // namespace nibble
