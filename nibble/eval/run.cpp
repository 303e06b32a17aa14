#include "nibble/eval/run.h"

#include <fmt/format.h>

#include <chrono>
#include <deque>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <unordered_map>

#include "nibble/base/error.h"
#include "nibble/base/interrupt.h"
#include "nibble/base/mapped_file.h"
#include "nibble/base/output_file.h"
#include "nibble/eval/dataset.h"
#include "nibble/eval/stats.h"

namespace nibble {
namespace {

using Json = nlohmann::ordered_json;
using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// Everything that changes an answer or a score.
Result<Json> identity_of(const RunSettings& settings, const CompletionTarget& target) {
  Json tasks = Json::array();
  for (const RunTask& one : settings.tasks) {
    Json files = Json::array();
    for (const auto& file : one.files) {
      const std::string hash = NIBBLE_TRY(sha256_file(file));
      files.push_back({{"path", std::filesystem::absolute(file).string()}, {"sha256", hash}});
    }
    tasks.push_back({{"name", one.task.name},
                     {"task", Json::parse(one.task.json)},
                     {"samples", settings.samples_of(one.task)},
                     {"files", files}});
  }
  return Json{{"target", Json::parse(target.identity())},
              {"tasks", tasks},
              {"prompt_style", settings.prompt_style},
              {"seed", settings.seed},
              {"limit", settings.limit},
              {"shuffle", settings.shuffle},
              {"temperature", settings.sampling.temperature},
              {"top_p", settings.sampling.top_p},
              {"max_tokens", settings.sampling.max_tokens}};
}

// Writes the manifest, or holds the one that is there to be the same.
Status check_manifest(const std::filesystem::path& folder, const Json& identity) {
  const std::filesystem::path path = folder / "manifest.json";
  if (!std::filesystem::exists(path)) {
    const Json manifest = {{"schema", "nibble.eval.manifest/1"}, {"identity", identity}};
    return write_text_file(path, manifest.dump(2) + "\n");
  }
  const std::string text = NIBBLE_TRY(read_text_file(path));
  const Json manifest = Json::parse(text, nullptr, false);
  if (!manifest.is_object() || !manifest.contains("identity")) {
    return corrupt(path.string() + ": not a manifest of nibble eval");
  }
  const Json& before = manifest["identity"];
  if (before == identity) return {};
  std::set<std::string> differing;
  const Json a = before.flatten(), b = identity.flatten();
  for (const auto& [name, value] : a.items()) {
    if (!b.contains(name) || b[name] != value) differing.insert(name);
  }
  for (const auto& [name, value] : b.items()) {
    if (!a.contains(name)) differing.insert(name);
  }
  return invalid_argument(
      fmt::format("{} holds another run: {} differ; choose another --out, or ask the same again",
                  folder.string(), fmt::join(differing, ", ")));
}

LoadOptions load_options(const RunSettings& settings, int sample) {
  LoadOptions options;
  options.prompt_style = settings.prompt_style;
  options.seed = settings.seed;
  options.limit = settings.limit;
  options.shuffle = settings.shuffle;
  options.sample = sample;
  return options;
}

std::string key_of(const std::string& task, const std::string& id, int sample) {
  return fmt::format("{}\n{}\n{}", task, sample, id);
}

// The run, while it goes on.
class Generator {
 public:
  Generator(const RunSettings& settings, CompletionTarget& target, SampleLog log,
            const std::vector<SampleRecord>& known,
            const std::function<void(const RunProgress&)>& progress)
      : settings_(settings), target_(target), log_(std::move(log)), progress_(progress) {
    for (const SampleRecord& record : known) {
      known_.insert(key_of(record.task, record.id, record.sample));
    }
  }

  // `total`: samples of all tasks.
  Status run(int64_t total) {
    state_.total = total;
    for (const RunTask& one : settings_.tasks) NIBBLE_TRY(run_task(one));
    while (!asked_.empty()) NIBBLE_TRY(work(nullptr));
    NIBBLE_TRY(log_.sync());
    report();
    return {};
  }

 private:
  struct Asked {
    TaskKind kind = TaskKind::kMath;
    EvalItem item;
    SampleRecord record;
  };

  // One sample round after the other, so that memory does not grow with their number.
  Status run_task(const RunTask& one) {
    scores_.clear();
    clusters_.clear();
    for (int sample = 0; sample < settings_.samples_of(one.task); ++sample) {
      auto items = NIBBLE_TRY(load_items(one.task, one.files, load_options(settings_, sample)));
      for (EvalItem& item : items) {
        if (known_.count(key_of(one.task.name, item.id, sample)) != 0) {
          ++state_.done;
          ++skipped_;
          continue;
        }
        while (static_cast<int64_t>(asked_.size()) >= settings_.concurrency) {
          NIBBLE_TRY(work(&one));
        }
        NIBBLE_TRY(ask(one, std::move(item), sample));
      }
    }
    return {};
  }

  Status ask(const RunTask& one, EvalItem item, int sample) {
    Asked asked;
    asked.kind = one.task.kind;
    SampleRecord& record = asked.record;
    record.task = one.task.name;
    record.id = item.id;
    record.sample = sample;
    record.cluster = item.cluster;
    record.permutation = item.permutation;
    record.prompt_sha256 = sha256(item.prompt);
    record.seed = static_cast<int64_t>(
        eval_hash(settings_.seed, record.task + "\n" + record.id, sample) & 0x7fffffff);
    NIBBLE_TRY(target_.submit(next_key_, item.prompt, settings_.sampling, record.seed, sample));
    if (asked.kind == TaskKind::kCode || asked.kind == TaskKind::kSciCode) item.tests.clear();
    asked.item = std::move(item);
    asked_.emplace(next_key_++, std::move(asked));
    return {};
  }

  Status work(const RunTask* one) {
    NIBBLE_TRY(check_interrupt());
    auto finished = NIBBLE_TRY(target_.wait());
    for (auto& [key, completion] : finished) {
      const auto found = asked_.find(key);
      if (found == asked_.end()) continue;
      Asked& asked = found->second;
      asked.record.completion = std::move(completion);
      NIBBLE_TRY(log_.append(asked.record));
      ++state_.done;
      if (!asked.record.completion.error.empty()) ++state_.errors;
      if (asked.record.completion.finish_reason == "length") ++state_.truncated;
      if (asked.kind == TaskKind::kChoice || asked.kind == TaskKind::kMath) {
        const Score score =
            NIBBLE_TRY(score_sample(asked.kind, asked.item, asked.record, std::string()));
        scores_.push_back(score.outcome == "correct" ? 1 : 0);
        clusters_.push_back(score.cluster);
      }
      asked_.erase(found);
    }
    if (one != nullptr) state_.task = one->task.title;
    if (seconds_since(synced_) > 1) {
      NIBBLE_TRY(log_.sync());
      synced_ = Clock::now();
      report();
    }
    return {};
  }

  void report() {
    const double seconds = seconds_since(start_);
    state_.score = mean(scores_);
    state_.score_se = clustered_se(scores_, clusters_);
    state_.tokens_per_second = static_cast<double>(target_.num_tokens()) / seconds;
    const auto asked_now = static_cast<double>(state_.done - skipped_);
    state_.eta_seconds =
        asked_now > 0 ? seconds / asked_now * static_cast<double>(state_.total - state_.done) : 0;
    progress_(state_);
  }

  const RunSettings& settings_;
  CompletionTarget& target_;
  SampleLog log_;
  const std::function<void(const RunProgress&)>& progress_;
  std::set<std::string> known_;
  std::unordered_map<uint64_t, Asked> asked_;
  uint64_t next_key_ = 0;
  int64_t skipped_ = 0;
  RunProgress state_;
  std::vector<double> scores_;  // of this task, for the running score
  std::vector<std::string> clusters_;
  Clock::time_point start_ = Clock::now();
  Clock::time_point synced_ = Clock::now();
};

}  // namespace

Status generate(const std::filesystem::path& folder, const RunSettings& settings,
                CompletionTarget& target, const std::function<void(const RunProgress&)>& progress) {
  // Wrong files are told before a folder is made.
  int64_t total = 0;
  for (const RunTask& one : settings.tasks) {
    const auto items = NIBBLE_TRY(load_items(one.task, one.files, load_options(settings, 0)));
    total += static_cast<int64_t>(items.size()) * settings.samples_of(one.task);
  }
  std::vector<SampleRecord> known;
  SampleLog log = NIBBLE_TRY(SampleLog::open(folder, &known));
  const Json identity = NIBBLE_TRY(identity_of(settings, target));
  NIBBLE_TRY(check_manifest(folder, identity));
  return Generator(settings, target, std::move(log), known, progress).run(total);
}

}  // namespace nibble
