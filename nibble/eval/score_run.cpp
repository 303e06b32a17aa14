// Scoring: from samples.jsonl and the data files to scores.jsonl.
#include <fmt/format.h>

#include <map>
#include <nlohmann/json.hpp>

#include "nibble/base/error.h"
#include "nibble/base/mapped_file.h"
#include "nibble/base/output_file.h"
#include "nibble/eval/code_score.h"
#include "nibble/eval/dataset.h"
#include "nibble/eval/extract.h"
#include "nibble/eval/math_equal.h"
#include "nibble/eval/run.h"
#include "nibble/eval/sandbox.h"

namespace nibble {
namespace {

using Json = nlohmann::ordered_json;

std::string score_json(const Score& s) {
  return Json{{"task", s.task},
              {"id", s.id},
              {"sample", s.sample},
              {"cluster", s.cluster},
              {"extracted", s.extracted},
              {"gold", s.gold},
              {"outcome", s.outcome},
              {"detail", s.detail},
              {"completion_tokens", s.completion_tokens}}
      .dump(-1, ' ', false, Json::error_handler_t::replace);
}

// Why there is nothing to extract from, or nothing.
std::string missing_answer(const Completion& completion) {
  if (!completion.error.empty()) return "error";
  if (completion.finish_reason == "error" || completion.finish_reason == "abort") return "error";
  if (completion.is_unclosed) {
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

struct ManifestTask {
  Task task;
  std::vector<std::filesystem::path> files;
  int samples = 1;
};

// The tasks of a manifest, their files unchanged.
Result<std::vector<ManifestTask>> manifest_tasks(const Json& identity) {
  std::vector<ManifestTask> tasks;
  for (const Json& one : identity["tasks"]) {
    ManifestTask task;
    task.task = NIBBLE_TRY(parse_task(one["task"].dump(), "manifest.json"));
    task.samples = one["samples"].get<int>();
    for (const Json& file : one["files"]) {
      const std::string path = file["path"].get<std::string>();
      const std::string hash = NIBBLE_TRY(sha256_file(path));
      if (hash != file["sha256"].get<std::string>()) {
        return corrupt(fmt::format("{} has changed since the run: SHA-256 {}, the manifest has {}",
                                   path, hash, file["sha256"].get<std::string>()));
      }
      task.files.emplace_back(path);
    }
    tasks.push_back(std::move(task));
  }
  return tasks;
}

}  // namespace

Result<Score> score_sample(TaskKind kind, const EvalItem& item, const SampleRecord& record,
                           const std::string& earlier) {
  Score score;
  score.task = record.task;
  score.id = record.id;
  score.sample = record.sample;
  score.cluster = record.cluster;
  score.gold = item.gold;
  score.completion_tokens = record.completion.completion_tokens;
  score.outcome = missing_answer(record.completion);
  if (!score.outcome.empty()) {
    score.detail = record.completion.error;
    return score;
  }
  const std::string& text = record.completion.text;
  switch (kind) {
    case TaskKind::kMath:
      score_math(item, text, &score);
      break;
    case TaskKind::kChoice: {
      const auto letter = extract_choice(text, item.num_options);
      if (letter) score.extracted = std::string(1, *letter);
      score.outcome = !letter ? "no_answer" : score.extracted == item.gold ? "correct" : "wrong";
      break;
    }
    case TaskKind::kCode:
    case TaskKind::kSciCode: {
      const auto program = extract_code(text);
      if (!program) {
        score.outcome = "no_answer";
        break;
      }
      const CodeScore result =
          NIBBLE_TRY(kind == TaskKind::kCode ? score_code(*program, item.tests)
                                             : score_scicode(*program, earlier, item.tests));
      score.outcome = result.outcome;
      score.detail = result.detail;
      break;
    }
  }
  // A reply that was cut off and says nothing is truncated, not mute.
  if (score.outcome == "no_answer" && record.completion.finish_reason == "length") {
    score.outcome = "truncated";
  }
  return score;
}

Result<std::vector<Score>> score_run(const std::filesystem::path& folder,
                                     const std::function<void(int64_t, int64_t)>& progress) {
  const std::string text = NIBBLE_TRY(read_text_file(folder / "manifest.json"));
  const Json manifest = Json::parse(text, nullptr, false);
  if (!manifest.is_object() || !manifest.contains("identity")) {
    return corrupt((folder / "manifest.json").string() + ": not a manifest of nibble eval");
  }
  const Json& identity = manifest["identity"];
  std::map<std::tuple<std::string, int, std::string>, SampleRecord> records;
  auto samples = NIBBLE_TRY(read_samples(folder));
  const auto total = static_cast<int64_t>(samples.size());
  for (SampleRecord& record : samples) {
    auto key = std::make_tuple(record.task, record.sample, record.id);
    records.emplace(std::move(key), std::move(record));
  }
  const auto tasks = NIBBLE_TRY(manifest_tasks(identity));
  for (const ManifestTask& one : tasks) {
    if (one.task.kind != TaskKind::kCode && one.task.kind != TaskKind::kSciCode) continue;
    NIBBLE_TRY(check_sandbox());
    break;
  }
  std::vector<Score> scores;
  std::string lines;
  for (const ManifestTask& one : tasks) {
    for (int sample = 0; sample < one.samples; ++sample) {
      LoadOptions options;
      options.prompt_style = identity["prompt_style"].get<std::string>();
      options.seed = identity["seed"].get<int64_t>();
      options.limit = identity["limit"].get<int64_t>();
      options.shuffle = identity["shuffle"].get<bool>();
      options.sample = sample;
      const auto items = NIBBLE_TRY(load_items(one.task, one.files, options));
      std::map<std::string, std::string> earlier;  // code of a problem's steps so far
      for (const EvalItem& item : items) {
        const auto found = records.find({one.task.name, sample, item.id});
        if (found == records.end()) continue;
        std::string& code = earlier[item.cluster];
        scores.push_back(NIBBLE_TRY(score_sample(one.task.kind, item, found->second, code)));
        if (one.task.kind == TaskKind::kSciCode) {
          code += extract_code(found->second.completion.text).value_or("") + "\n";
        }
        lines += score_json(scores.back()) + "\n";
        progress(static_cast<int64_t>(scores.size()), total);
      }
    }
  }
  NIBBLE_TRY(write_text_file(folder / "scores.jsonl", lines));
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
      s.extracted = json.at("extracted").get<std::string>();
      s.gold = json.at("gold").get<std::string>();
      s.outcome = json.at("outcome").get<std::string>();
      s.detail = json.at("detail").get<std::string>();
      s.completion_tokens = json.at("completion_tokens").get<int64_t>();
      scores.push_back(std::move(s));
    } catch (const Json::exception& error) {
      return corrupt(fmt::format("{} line {}: {}", path, scores.size() + 1, error.what()));
    }
    return {};
  }));
  return scores;
}

}  // namespace nibble
