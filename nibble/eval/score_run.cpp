// Scoring: from samples.jsonl and the data files to scores.jsonl.
#include <fmt/format.h>

#include <condition_variable>
#include <deque>
#include <map>
#include <mutex>
#include <nlohmann/json.hpp>
#include <thread>

#include "nibble/base/error.h"
#include "nibble/base/interrupt.h"
#include "nibble/base/output_file.h"
#include "nibble/eval/code_score.h"
#include "nibble/eval/dataset.h"
#include "nibble/eval/extract.h"
#include "nibble/eval/judge.h"
#include "nibble/eval/manifest.h"
#include "nibble/eval/math_equal.h"
#include "nibble/eval/scicode.h"

namespace nibble {
namespace {

using Json = nlohmann::ordered_json;

std::string score_json(const Score& s) {
  Json json = {{"task", s.task},           {"id", s.id},
               {"sample", s.sample},       {"cluster", s.cluster},
               {"extractor", s.extractor}, {"extracted", s.extracted},
               {"gold", s.gold},           {"outcome", s.outcome},
               {"detail", s.detail},       {"judge", s.judge.empty() ? Json() : Json(s.judge)},
               {"cut", s.was_cut},         {"unclosed", s.is_unclosed},
               {"empty", s.is_empty},      {"near_limit", s.is_near_limit},
               {"retries", s.retries},     {"completion_tokens", s.completion_tokens}};
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

// Why there is nothing to extract from, or nothing.
std::string missing_answer(const Completion& completion, bool code_anywhere) {
  if (!completion.error.empty()) return "error";
  if (completion.finish_reason == "error" || completion.finish_reason == "abort") return "error";
  if (completion.is_unclosed && !code_anywhere) {
    return completion.finish_reason == "length" ? "truncated" : "no_answer";
  }
  return "";
}

void score_math(const EvalItem& item, std::string_view text, Score* score) {
  const auto boxed = extract_boxed(text);
  if (!boxed) {
    score->outcome = "no_answer";
    return;
  }
  score->extracted = *boxed;
  switch (math_equal(item.gold, *boxed)) {
    case MathVerdict::kEqual:
      score->outcome = "correct";
      break;
    case MathVerdict::kUnequal:
      score->outcome = "wrong";
      break;
    case MathVerdict::kUndecided:
      score->outcome = "undecided";
      break;
  }
}

void score_choice(const EvalItem& item, std::string_view text, Score* score) {
  const auto letter = score->extractor == "aa-v2"     ? extract_choice_aa_v2(text)
                      : score->extractor == "lm-eval" ? extract_choice_lm_eval(text)
                                                      : extract_choice(text, item.num_options);
  if (letter) score->extracted = std::string(1, *letter);
  score->outcome = !letter ? "no_answer" : score->extracted == item.gold ? "correct" : "wrong";
}

// The code of an answer, by the options.
std::optional<std::string> program_in(const Completion& completion, const ScoreOptions& options) {
  auto program = extract_code(completion.text, options.first_code);
  if (program || !options.code_anywhere) return program;
  return extract_code(completion.reasoning, options.first_code);
}

// Programs that run beside each other; results go where they belong.
class Jobs {
 public:
  explicit Jobs(int count) {
    for (int i = 0; i < count; ++i) {
      threads_.emplace_back([this] { work(); });
    }
  }
  ~Jobs() { finish(); }
  Jobs(const Jobs&) = delete;
  Jobs& operator=(const Jobs&) = delete;

  // Waits while as many are queued as there are threads, so that tests do not pile up in memory.
  void add(std::function<Status()> job) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return jobs_.size() < threads_.size(); });
    jobs_.push_back(std::move(job));
    changed_.notify_all();
  }

  // The first error of any.
  Status finish() {
    {
      const std::lock_guard lock(mutex_);
      is_closing_ = true;
    }
    changed_.notify_all();
    for (std::thread& thread : threads_) thread.join();
    threads_.clear();
    return status_;
  }

  Status status() {
    const std::lock_guard lock(mutex_);
    return status_;
  }

 private:
  void work() {
    for (;;) {
      std::function<Status()> job;
      {
        std::unique_lock lock(mutex_);
        changed_.wait(lock, [&] { return is_closing_ || !jobs_.empty(); });
        if (jobs_.empty()) return;
        job = std::move(jobs_.front());
        jobs_.pop_front();
        changed_.notify_all();
        if (!status_) continue;
      }
      const Status status = job();
      const std::lock_guard lock(mutex_);
      if (!status && status_) status_ = status;
      changed_.notify_all();
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<Status()>> jobs_;
  Status status_;
  bool is_closing_ = false;
  std::vector<std::thread> threads_;
};

// One pass over all samples of a run.
class Scorer {
 public:
  Scorer(const SampleIndex& samples, const ScoreOptions& options,
         const std::function<void(int64_t, int64_t)>& progress)
      : samples_(samples), options_(options), progress_(progress), jobs_(num_jobs(options)) {}

  Status add(const ManifestTask& one) {
    for (int sample = 0; sample < one.samples; ++sample) {
      LoadOptions load = one.load;
      load.sample = sample;
      std::map<std::string, std::string> earlier;  // code of a problem's steps so far
      NIBBLE_TRY(for_each_item(one.run.task, one.run.files, load, [&](EvalItem item) {
        return add_item(one, std::move(item), sample, &earlier);
      }));
    }
    return {};
  }

  Result<std::vector<Score>> finish() {
    NIBBLE_TRY(jobs_.finish());
    return std::vector<Score>(std::make_move_iterator(scores_.begin()),
                              std::make_move_iterator(scores_.end()));
  }

 private:
  static int num_jobs(const ScoreOptions& options) {
    if (options.sandbox_jobs > 0) return options.sandbox_jobs;
    return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  }

  Status add_item(const ManifestTask& one, EvalItem item, int sample,
                  std::map<std::string, std::string>* earlier) {
    const Task& task = one.run.task;
    const bool is_program = task.kind == TaskKind::kCode || task.kind == TaskKind::kSciCode;
    std::string& code = (*earlier)[task.kind == TaskKind::kSciCode ? item.cluster : ""];
    if (item.chain && !item.chain->given.empty()) {
      code += item.chain->given + "\n";
      return {};
    }
    auto record = NIBBLE_TRY(samples_.read({task.name, item.id, sample}));
    if (!record) return {};
    NIBBLE_TRY(check_interrupt());
    const std::string before = code;
    if (task.kind == TaskKind::kSciCode) {
      std::string own = program_in(record->completion, options_).value_or("");
      if (item.chain && !own.empty()) {
        own = NIBBLE_TRY(definition_in(own, item.chain->function, options_.sandbox));
      }
      code += own + "\n";
    }
    Score* const place = &scores_.emplace_back();
    if (!is_program) {
      *place =
          NIBBLE_TRY(score_sample(task, one.load.prompt_style, item, *record, before, options_));
      if (options_.judge != nullptr) NIBBLE_TRY(judge_answer(*options_.judge, place));
      count();
      return {};
    }
    NIBBLE_TRY(jobs_.status());
    jobs_.add([this, &one, place, before, item = std::move(item),
               record = *std::move(record)]() -> Status {
      *place = NIBBLE_TRY(
          score_sample(one.run.task, one.load.prompt_style, item, record, before, options_));
      count();
      return {};
    });
    return {};
  }

  void count() {
    const std::lock_guard lock(mutex_);
    progress_(++done_, static_cast<int64_t>(samples_.size()));
  }

  const SampleIndex& samples_;
  const ScoreOptions& options_;
  const std::function<void(int64_t, int64_t)>& progress_;
  std::deque<Score> scores_;  // places stay while it grows
  std::mutex mutex_;
  int64_t done_ = 0;
  Jobs jobs_;  // ends first: its threads use all of the above
};

}  // namespace

Result<Score> score_sample(const Task& task, const std::string& prompt_style, const EvalItem& item,
                           const SampleRecord& record, const std::string& earlier,
                           const ScoreOptions& options) {
  const Completion& completion = record.completion;
  Score score;
  score.task = record.task;
  score.id = record.id;
  score.sample = record.sample;
  score.cluster = record.cluster;
  score.gold = item.gold;
  score.completion_tokens = completion.completion_tokens;
  score.retries = completion.retries;
  score.was_cut = completion.finish_reason == "length";
  score.is_unclosed = completion.is_unclosed;
  score.is_empty = completion.error.empty() && trim(completion.text).empty();
  const bool is_program = task.kind == TaskKind::kCode || task.kind == TaskKind::kSciCode;
  score.extractor = task.kind == TaskKind::kMath ? "boxed-v1"
                    : is_program ? (options.first_code ? "code-v1 first" : "code-v1")
                    : !options.extractor.empty() ? options.extractor
                                                 : style_settings(task, prompt_style).extractor;
  score.outcome = missing_answer(completion, is_program && options.code_anywhere);
  if (!score.outcome.empty()) {
    score.detail = completion.error;
    return score;
  }
  if (task.kind == TaskKind::kMath) score_math(item, completion.text, &score);
  if (task.kind == TaskKind::kChoice) score_choice(item, completion.text, &score);
  if (is_program) {
    const auto program = program_in(completion, options);
    if (!program) {
      score.outcome = "no_answer";
    } else {
      const CodeScore result =
          NIBBLE_TRY(task.kind == TaskKind::kCode
                         ? score_code(*program, item.tests, options.sandbox)
                         : score_scicode(*program, earlier, item.tests, options.sandbox));
      score.outcome = result.outcome;
      score.detail = result.detail;
      score.is_near_limit = result.is_near_limit;
    }
  }
  // A reply that was cut off and says nothing is truncated, not mute.
  if (score.outcome == "no_answer" && score.was_cut) score.outcome = "truncated";
  return score;
}

Result<std::vector<Score>> score_run(const std::filesystem::path& folder,
                                     const ScoreOptions& options,
                                     const std::function<void(int64_t, int64_t)>& progress) {
  const std::string manifest = NIBBLE_TRY(read_manifest(folder));
  const SampleIndex samples = NIBBLE_TRY(SampleIndex::open(folder));
  const auto tasks = NIBBLE_TRY(manifest_tasks(manifest));
  for (const ManifestTask& one : tasks) {
    if (one.run.task.kind != TaskKind::kCode && one.run.task.kind != TaskKind::kSciCode) continue;
    NIBBLE_TRY(check_sandbox(options.sandbox));
    break;
  }
  std::vector<Score> scores;
  {
    Scorer scorer(samples, options, progress);
    for (const ManifestTask& one : tasks) NIBBLE_TRY(scorer.add(one));
    scores = NIBBLE_TRY(scorer.finish());
  }
  OutputFile file = NIBBLE_TRY(OutputFile::create(folder / "scores.jsonl"));
  for (const Score& score : scores) NIBBLE_TRY(file.write(score_json(score) + "\n"));
  NIBBLE_TRY(file.commit());
  return scores;
}

Result<std::vector<Score>> read_scores(const std::filesystem::path& folder) {
  const std::string path = folder / "scores.jsonl";
  std::vector<Score> scores;
  NIBBLE_TRY(for_each_row(path, [&](std::string_view line) -> Status {
    const Json json = Json::parse(line, nullptr, false);
    try {
      Score s;
      s.task = json.at("task").get<std::string>();
      s.id = json.at("id").get<std::string>();
      s.sample = json.at("sample").get<int>();
      s.cluster = json.at("cluster").get<std::string>();
      s.extractor = json.at("extractor").get<std::string>();
      s.extracted = json.at("extracted").get<std::string>();
      s.gold = json.at("gold").get<std::string>();
      s.outcome = json.at("outcome").get<std::string>();
      s.detail = json.at("detail").get<std::string>();
      if (json.at("judge").is_string()) s.judge = json["judge"].get<std::string>();
      s.was_cut = json.at("cut").get<bool>();
      s.is_unclosed = json.at("unclosed").get<bool>();
      s.is_empty = json.at("empty").get<bool>();
      s.is_near_limit = json.at("near_limit").get<bool>();
      s.retries = json.at("retries").get<int>();
      s.completion_tokens = json.at("completion_tokens").get<int64_t>();
      scores.push_back(std::move(s));
    } catch (const Json::exception& error) {
      return corrupt(fmt::format("{} line {}: {}; nibble eval score makes it again", path,
                                 scores.size() + 1, error.what()));
    }
    return {};
  }));
  return scores;
}

}  // namespace nibble
