#include "nibble/eval/run.h"

#include <fmt/format.h>

#include <chrono>
#include <deque>
#include <map>
#include <unordered_map>

#include "nibble/base/error.h"
#include "nibble/base/interrupt.h"
#include "nibble/eval/dataset.h"
#include "nibble/eval/extract.h"
#include "nibble/eval/manifest.h"
#include "nibble/eval/scicode.h"
#include "nibble/eval/stats.h"

namespace nibble {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

LoadOptions load_options(const RunSettings& settings, const RunTask& one, int sample) {
  LoadOptions options = settings.load;
  options.sample = sample;
  options.examples = one.examples;
  options.templates = one.templates;
  options.with_tests = false;
  return options;
}

// The run, while it goes on.
class Generator {
 public:
  Generator(const RunSettings& settings, CompletionTarget& target, SampleLog log,
            const SampleIndex& known, const std::function<void(const RunProgress&)>& progress)
      : settings_(settings),
        target_(target),
        log_(std::move(log)),
        known_(known),
        progress_(progress) {}

  // `totals`: samples of each task.
  Status run(const std::vector<int64_t>& totals) {
    for (size_t i = 0; i < settings_.tasks.size(); ++i) {
      const Task& task = settings_.tasks[i].task;
      TaskProgress one;
      one.title = task.title;
      one.total = totals[i];
      one.has_score = task.kind == TaskKind::kChoice || task.kind == TaskKind::kMath;
      state_.tasks.push_back(std::move(one));
      state_.total += totals[i];
    }
    scores_.resize(totals.size());
    report();
    auto status = all_tasks();
    if (!status && status.error().code == ErrorCode::kCancelled) {
      // What was running when the interrupt came and has ended since is kept.
      for (auto& [key, completion] : target_.drain()) NIBBLE_TRY(end(key, std::move(completion)));
    }
    NIBBLE_TRY(log_.sync());
    report();
    return status;
  }

 private:
  struct Asked {
    size_t task = 0;
    EvalItem item;
    SampleRecord record;
  };
  // A problem whose steps are asked one after the other.
  struct Chain {
    std::deque<EvalItem> steps;
    std::vector<EarlierStep> earlier;
  };

  Status all_tasks() {
    for (size_t i = 0; i < settings_.tasks.size(); ++i) NIBBLE_TRY(run_task(i));
    while (!asked_.empty()) NIBBLE_TRY(work());
    return {};
  }

  // One sample round after the other, so that memory does not grow with their number.
  Status run_task(size_t index) {
    const RunTask& one = settings_.tasks[index];
    state_.current = index;
    for (int sample = 0; sample < settings_.samples_of(one.task); ++sample) {
      const auto take = [&](EvalItem item) -> Status {
        if (item.chain) {
          chains_[item.cluster].steps.push_back(std::move(item));
          return {};
        }
        if (known_.is_answered({one.task.name, item.id, sample})) {
          count_known(index, 1);
          return {};
        }
        NIBBLE_TRY(wait_for_room());
        return ask(index, std::move(item), sample);
      };
      NIBBLE_TRY(for_each_item(one.task, one.files, load_options(settings_, one, sample), take));
      if (!chains_.empty()) NIBBLE_TRY(run_chains(index, sample));
    }
    return {};
  }

  Status wait_for_room() {
    while (static_cast<int64_t>(asked_.size()) >= settings_.concurrency) NIBBLE_TRY(work());
    return {};
  }

  Status run_chains(size_t index, int sample) {
    std::vector<std::string> problems;
    for (const auto& [problem, chain] : chains_) problems.push_back(problem);
    for (const std::string& problem : problems) {
      NIBBLE_TRY(wait_for_room());
      NIBBLE_TRY(next_step(index, problem, sample));
    }
    while (!chains_.empty()) NIBBLE_TRY(work());
    return {};
  }

  // Asks the next step of a problem that has no answer yet; the problem goes with its last one.
  Status next_step(size_t index, const std::string& problem, int sample) {
    Chain& chain = chains_[problem];
    while (!chain.steps.empty()) {
      EvalItem item = std::move(chain.steps.front());
      chain.steps.pop_front();
      if (!item.chain->given.empty()) {
        chain.earlier.push_back({item.chain->text, item.chain->given});
        continue;
      }
      item.prompt = chain_prompt(item, chain.earlier);
      const SampleIndex::Key key = {settings_.tasks[index].task.name, item.id, sample};
      if (!known_.is_answered(key)) return ask(index, std::move(item), sample);
      count_known(index, 1);
      const auto record = NIBBLE_TRY(known_.read(key));
      NIBBLE_TRY(carry_forward(item, record->completion));
    }
    chains_.erase(problem);
    return {};
  }

  Status carry_forward(const EvalItem& item, const Completion& completion) {
    const auto program = extract_code(completion.text);
    std::string code;
    if (program) {
      code = NIBBLE_TRY(definition_in(*program, item.chain->function, settings_.sandbox));
    }
    chains_[item.cluster].earlier.push_back({item.chain->text, std::move(code)});
    return {};
  }

  void count_known(size_t index, int64_t count) {
    state_.tasks[index].done += count;
    state_.done += count;
    skipped_ += count;
  }

  Status ask(size_t index, EvalItem item, int sample) {
    NIBBLE_TRY(check_interrupt());
    const Task& task = settings_.tasks[index].task;
    const StyleSettings style = style_settings(task, settings_.load.prompt_style);
    Asked asked;
    asked.task = index;
    SampleRecord& record = asked.record;
    record.task = task.name;
    record.id = item.id;
    record.sample = sample;
    record.cluster = item.cluster;
    record.permutation = item.permutation;
    record.prompt_sha256 = sha256(item.prompt);
    if (settings_.log_prompts) record.prompt = item.prompt;
    record.seed = static_cast<int64_t>(
        eval_hash(settings_.seed, record.task + "\n" + record.id, sample) & 0x7fffffff);
    Sampling sampling = settings_.sampling;
    sampling.stop = style.stop;
    sampling.raw_prompt = style.raw_prompt;
    NIBBLE_TRY(target_.submit(next_key_, item.prompt, sampling, record.seed));
    item.prompt.clear();
    asked.item = std::move(item);
    asked_.emplace(next_key_++, std::move(asked));
    return {};
  }

  Status end(uint64_t key, Completion completion) {
    const auto found = asked_.find(key);
    if (found == asked_.end()) return {};
    Asked asked = std::move(found->second);
    asked_.erase(found);
    SampleRecord& record = asked.record;
    record.completion = std::move(completion);
    NIBBLE_TRY(log_.append(record));
    TaskProgress& progress = state_.tasks[asked.task];
    ++state_.done;
    ++progress.done;
    state_.retries += record.completion.retries;
    if (!record.completion.error.empty()) ++progress.errors;
    if (record.completion.finish_reason == "length") ++progress.truncated;
    if (progress.has_score) {
      const Score score =
          NIBBLE_TRY(score_sample(settings_.tasks[asked.task].task, settings_.load.prompt_style,
                                  asked.item, record, std::string(), {}));
      scores_[asked.task].add(score.cluster, score.outcome == "correct" ? 1 : 0);
    }
    if (!asked.item.chain || interrupted()) return {};
    NIBBLE_TRY(carry_forward(asked.item, record.completion));
    return next_step(asked.task, asked.item.cluster, record.sample);
  }

  Status work() {
    NIBBLE_TRY(check_interrupt());
    auto finished = NIBBLE_TRY(target_.wait());
    for (auto& [key, completion] : finished) NIBBLE_TRY(end(key, std::move(completion)));
    if (seconds_since(synced_) > 1) {
      NIBBLE_TRY(log_.sync());
      synced_ = Clock::now();
      report();
    }
    return {};
  }

  void report() {
    const double seconds = seconds_since(start_);
    for (size_t i = 0; i < state_.tasks.size(); ++i) {
      state_.tasks[i].score = scores_[i].mean();
      state_.tasks[i].score_se = scores_[i].clustered_se();
    }
    state_.running = static_cast<int64_t>(asked_.size());
    state_.tokens_per_second = static_cast<double>(target_.num_tokens()) / seconds;
    state_.elapsed_seconds = seconds;
    const auto asked_now = static_cast<double>(state_.done - skipped_);
    state_.eta_seconds =
        asked_now > 0 ? seconds / asked_now * static_cast<double>(state_.total - state_.done) : -1;
    progress_(state_);
  }

  const RunSettings& settings_;
  CompletionTarget& target_;
  SampleLog log_;
  const SampleIndex& known_;
  const std::function<void(const RunProgress&)>& progress_;
  std::unordered_map<uint64_t, Asked> asked_;
  std::map<std::string, Chain> chains_;  // of this task and sample round
  uint64_t next_key_ = 0;
  int64_t skipped_ = 0;
  RunProgress state_;
  std::vector<RunningMean> scores_;  // by task
  Clock::time_point start_ = Clock::now();
  Clock::time_point synced_ = Clock::now();
};

}  // namespace

Status generate(const std::filesystem::path& folder, const RunSettings& settings,
                CompletionTarget& target, const std::function<void(const RunProgress&)>& progress) {
  // Wrong files are told before a folder is made.
  std::vector<int64_t> totals;
  for (const RunTask& one : settings.tasks) {
    int64_t count = 0;
    NIBBLE_TRY(for_each_item(one.task, one.files, load_options(settings, one, 0),
                             [&](const EvalItem& item) -> Status {
                               if (!item.chain || item.chain->given.empty()) ++count;
                               return {};
                             }));
    if (count == 0) {
      return corrupt(
          fmt::format("{}: no questions in {}", one.task.name, one.files.front().string()));
    }
    totals.push_back(count * settings.samples_of(one.task));
  }
  const std::string identity = NIBBLE_TRY(run_identity(settings, target));
  SampleLog log = NIBBLE_TRY(SampleLog::lock(folder));
  NIBBLE_TRY(check_manifest(folder, identity, settings));
  const SampleIndex known = NIBBLE_TRY(SampleIndex::open(folder));
  NIBBLE_TRY(log.open(folder, known.whole_bytes()));
  NIBBLE_TRY(Generator(settings, target, std::move(log), known, progress).run(totals));
  return finish_manifest(folder);
}

}  // namespace nibble
