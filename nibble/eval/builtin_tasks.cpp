// The six benchmarks of the model card, as task files.
#include <nlohmann/json.hpp>

#include "nibble/base/check.h"
#include "nibble/eval/task.h"

namespace nibble {
namespace {

constexpr std::string_view kTasks[] = {
    R"json({"name": "mmlu-pro", "title": "MMLU-Pro", "kind": "choice", "samples": 1, "rows": 12032,
  "fields": {"id": "question_id", "options": "options", "gold": "answer"},
  "prompts": {
    "aa": "Answer the following multiple choice question. The last line of your response should be in the following format: 'Answer: {letters}' (e.g. 'Answer: A').\n\n{question}\n\n{options}",
    "aa-ten": "Answer the following multiple choice question. The last line of your response should be in the following format: 'Answer: {letters}' (e.g. 'Answer: A').\n\n{question}\n\n{options_ten}",
    "lm-eval": "The following are multiple choice questions (with answers) about {category}. Think step by step and then finish your answer with \"the answer is (X)\" where X is the correct letter choice.\n{examples}Question:\n{question}\nOptions:\n{options_dots}\nAnswer: Let's think step by step.",
    "demo": "Answer the following multiple choice question. The last line of your response should be in the following format: 'Answer: {letters}' (e.g. 'Answer: A').\n\n{question}\n\n{options}"},
  "letters_all": {"aa-ten": "A/B/C/D/E/F/G/H/I/J", "demo": "A/.../J"},
  "examples": ["lm-eval"], "raw_prompt": ["lm-eval"], "stop": {"lm-eval": ["Q:"]},
  "extractor": {"lm-eval": "lm-eval"}})json",
    R"json({"name": "gpqa-diamond", "title": "GPQA Diamond", "kind": "choice", "samples": 5, "rows": 198,
  "fields": {"id": "Record ID", "correct": "Correct Answer",
             "incorrect": ["Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3"]},
  "prompts": {
    "aa": "Answer the following multiple choice question. The last line of your response should be in the following format: 'Answer: {letters}' (e.g. 'Answer: A').\n\n{Question}\n\n{options}",
    "demo": "Answer the following multiple choice question. The last line of your response should be in the following format: 'Answer: {letters}' (e.g. 'Answer: A').\n\n{Question}\n\n{options}"}})json",
    R"json({"name": "livecodebench", "title": "LiveCodeBench", "kind": "code", "samples": 3,
  "fields": {"id": "question_id"}, "window": {"aa": ["2024-07-01", "2025-01-01"]},
  "prompts": {
    "aa": "### Question:\n{question_content}\n\n### Format: {format}\n```python\n{starter}\n```\n\n### Answer: (use the provided format with backticks)\n\n",
    "demo": "{question_content}"}})json",
    R"json({"name": "scicode", "title": "SciCode", "kind": "scicode", "samples": 3,
  "fields": {"id": "problem_id"},
  "prompts": {"aa": "multistep_template.txt", "no-background": "background_comment_template.txt",
              "demo": "{step_description_prompt}"},
  "templates": ["aa", "no-background"], "background": ["aa"]})json",
    R"json({"name": "math-500", "title": "MATH-500", "kind": "math", "samples": 3, "rows": 500,
  "fields": {"id": "unique_id", "gold": "answer"},
  "prompts": {
    "aa": "Solve the following math problem step by step. Put your answer inside \\boxed{}.\n\n{problem}\n\nRemember to put your answer inside \\boxed{}.",
    "r1": "{problem}\n\nPlease reason step by step, and put your final answer within \\boxed{}.",
    "demo": "{problem} Please reason step by step, and put your final answer within \\boxed{}."}})json",
    R"json({"name": "aime-2024", "title": "AIME 2024", "kind": "math", "samples": 10, "rows": 30,
  "fields": {"id": ["ID", "id"], "gold": ["Answer", "answer"], "question": ["Problem", "problem"]},
  "prompts": {
    "aa": "Solve the following math problem step by step. Put your answer inside \\boxed{}.\n\n{question}\n\nRemember to put your answer inside \\boxed{}.",
    "r1": "{question}\n\nPlease reason step by step, and put your final answer within \\boxed{}.",
    "demo": "{question} Please reason step by step, and put your final answer within \\boxed{}."}})json",
};

}  // namespace

const std::vector<Task>& builtin_tasks() {
  static const std::vector<Task> kAll = [] {
    std::vector<Task> tasks;
    for (const std::string_view text : kTasks) {
      auto task = parse_task(text, "built-in");
      NIBBLE_CHECK(task.has_value());
      tasks.push_back(*std::move(task));
    }
    return tasks;
  }();
  return kAll;
}

}  // namespace nibble
