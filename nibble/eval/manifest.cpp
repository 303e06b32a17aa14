#include "nibble/eval/manifest.h"

#include <fmt/chrono.h>
#include <fmt/format.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <ctime>
#include <nlohmann/json.hpp>
#include <set>
#include <thread>

#include "nibble/base/error.h"
#include "nibble/base/mapped_file.h"
#include "nibble/base/output_file.h"
#include "nibble/eval/dataset.h"

namespace nibble {
namespace {

using Json = nlohmann::ordered_json;

std::string now_text() {
  return fmt::format("{:%Y-%m-%dT%H:%M:%SZ}", fmt::gmtime(std::time(nullptr)));
}

Result<Json> file_entry(const std::filesystem::path& file) {
  const std::string hash = NIBBLE_TRY(sha256_file(file));
  return Json{{"path", std::filesystem::absolute(file).string()}, {"sha256", hash}};
}

// The paths may change between a run and its continuation, the contents may not.
Json without_paths(Json identity) {
  for (Json& task : identity["tasks"]) {
    for (Json& file : task["files"]) file.erase("path");
    if (task.contains("examples") && task["examples"].is_object()) task["examples"].erase("path");
  }
  return identity;
}

std::string_view shuffle_name(Shuffle shuffle) {
  return shuffle == Shuffle::kItem ? "item" : shuffle == Shuffle::kOpenAi ? "openai" : "none";
}

Result<Json> parse_manifest(const std::string& text) {
  Json manifest = Json::parse(text, nullptr, false);
  if (!manifest.is_object() || !manifest.contains("identity") ||
      !manifest["identity"].is_object() || !manifest["identity"].contains("tasks")) {
    return corrupt("manifest.json: not a manifest of nibble eval");
  }
  return manifest;
}

Json settings_json(const RunSettings& settings) {
  const LoadOptions& load = settings.load;
  return {{"prompt_style", load.prompt_style},
          {"seed", settings.seed},
          {"limit", load.limit},
          {"subset_seed", load.subset_seed ? Json(*load.subset_seed) : Json()},
          {"only", load.only},
          {"after", load.after},
          {"before", load.before},
          {"allow_count", load.allow_count},
          {"shuffle", std::string(shuffle_name(load.shuffle))},
          {"shuffle_seed", load.shuffle_seed},
          {"temperature", settings.sampling.temperature},
          {"top_p", settings.sampling.top_p},
          {"max_tokens", settings.sampling.max_tokens}};
}

LoadOptions load_from(const Json& identity, const Json& task) {
  LoadOptions load;
  load.prompt_style = identity.at("prompt_style").get<std::string>();
  load.limit = identity.at("limit").get<int64_t>();
  if (!identity.at("subset_seed").is_null()) {
    load.subset_seed = identity.at("subset_seed").get<int64_t>();
  }
  load.only = identity.at("only").get<std::vector<std::string>>();
  load.after = identity.at("after").get<std::string>();
  load.before = identity.at("before").get<std::string>();
  load.allow_count = identity.at("allow_count").get<bool>();
  const std::string shuffle = identity.at("shuffle").get<std::string>();
  load.shuffle = shuffle == "openai" ? Shuffle::kOpenAi
                 : shuffle == "none" ? Shuffle::kNone
                                     : Shuffle::kItem;
  load.shuffle_seed = identity.at("shuffle_seed").get<int64_t>();
  if (task.contains("examples")) load.examples = task["examples"].at("path").get<std::string>();
  if (task.contains("templates")) load.templates = task["templates"].get<std::string>();
  return load;
}

Status check_unchanged(const Json& file) {
  const std::string path = file.at("path").get<std::string>();
  const std::string hash = NIBBLE_TRY(sha256_file(path));
  const std::string expected = file.at("sha256").get<std::string>();
  if (hash == expected) return {};
  return corrupt(fmt::format("{} has changed since the run: SHA-256 {}, the manifest has {}", path,
                             hash, expected));
}

const Json* find_task_entry(const Json& identity, const std::string& name) {
  for (const Json& task : identity["tasks"]) {
    if (task.value("name", "") == name) return &task;
  }
  return nullptr;
}

}  // namespace

Result<std::string> run_identity(const RunSettings& settings, const CompletionTarget& target) {
  Json tasks = Json::array();
  for (const RunTask& one : settings.tasks) {
    Json files = Json::array();
    for (const auto& file : one.files) files.push_back(NIBBLE_TRY(file_entry(file)));
    Json task = {{"name", one.task.name},
                 {"task", Json::parse(one.task.json)},
                 {"samples", settings.samples_of(one.task)},
                 {"files", files}};
    if (!one.examples.empty()) task["examples"] = NIBBLE_TRY(file_entry(one.examples));
    if (!one.templates.empty()) {
      task["templates"] = std::filesystem::absolute(one.templates).string();
    }
    tasks.push_back(std::move(task));
  }
  Json identity = {{"target", Json::parse(target.identity())}, {"tasks", tasks}};
  identity.update(settings_json(settings));
  return identity.dump();
}

Status check_manifest(const std::filesystem::path& folder, const std::string& identity,
                      const RunSettings& settings) {
  const std::filesystem::path path = folder / "manifest.json";
  const Json asked = Json::parse(identity);
  if (!std::filesystem::exists(path)) {
    utsname host{};
    (void)::uname(&host);
    const Json manifest = {
        {"schema", "nibble.eval.manifest/1"},
        {"version", NIBBLE_VERSION},
        {"identity", asked},
        {"sandbox", std::string(sandbox_level_name(settings.sandbox))},
        {"concurrency", settings.concurrency},
        {"host",
         {{"system", fmt::format("{} {} {}", host.sysname, host.release, host.machine)},
          {"processors", std::thread::hardware_concurrency()}}},
        {"started", now_text()}};
    return write_text_file(path, manifest.dump(2) + "\n");
  }
  const std::string text = NIBBLE_TRY(read_text_file(path));
  const Json manifest = NIBBLE_TRY(parse_manifest(text));
  const Json a = without_paths(manifest["identity"]).flatten(), b = without_paths(asked).flatten();
  std::set<std::string> differing;
  for (const auto& [name, value] : a.items()) {
    if (!b.contains(name) || b[name] != value) differing.insert(name);
  }
  for (const auto& [name, value] : b.items()) {
    if (!a.contains(name)) differing.insert(name);
  }
  if (differing.empty()) return {};
  return corrupt(
      fmt::format("{} holds another run: {} differ; choose another --out, or ask the same again",
                  folder.string(), fmt::join(differing, ", ")));
}

Status finish_manifest(const std::filesystem::path& folder) {
  const std::string text = NIBBLE_TRY(read_manifest(folder));
  Json manifest = Json::parse(text);
  manifest["ended"] = now_text();
  return write_text_file(folder / "manifest.json", manifest.dump(2) + "\n");
}

Result<std::string> read_manifest(const std::filesystem::path& folder) {
  std::string text = NIBBLE_TRY(read_text_file(folder / "manifest.json"));
  const Json manifest = NIBBLE_TRY(parse_manifest(text));
  (void)manifest;
  return text;
}

Result<std::vector<ManifestTask>> manifest_tasks(const std::string& manifest) {
  const Json json = NIBBLE_TRY(parse_manifest(manifest));
  const Json& identity = json["identity"];
  std::vector<ManifestTask> tasks;
  try {
    for (const Json& one : identity["tasks"]) {
      ManifestTask task;
      task.run.task = NIBBLE_TRY(parse_task(one.at("task").dump(), "manifest.json"));
      task.samples = one.at("samples").get<int>();
      task.load = load_from(identity, one);
      for (const Json& file : one.at("files")) {
        NIBBLE_TRY(check_unchanged(file));
        task.run.files.emplace_back(file.at("path").get<std::string>());
      }
      if (one.contains("examples")) NIBBLE_TRY(check_unchanged(one["examples"]));
      tasks.push_back(std::move(task));
    }
  } catch (const Json::exception& error) {
    return corrupt(fmt::format("manifest.json: {}", error.what()));
  }
  return tasks;
}

std::vector<std::string> manifest_differences(const std::string& a, const std::string& b,
                                              const std::string& task) {
  const Json x = Json::parse(a, nullptr, false), y = Json::parse(b, nullptr, false);
  if (!x.is_object() || !y.is_object()) return {"a manifest is missing"};
  const Json p = without_paths(x["identity"]), q = without_paths(y["identity"]);
  std::vector<std::string> differences;
  const auto compare = [&](const char* name, const Json& u, const Json& v) {
    if (u != v) differences.push_back(fmt::format("{}: {} and {}", name, u.dump(), v.dump()));
  };
  for (const char* name :
       {"prompt_style", "temperature", "top_p", "max_tokens", "shuffle", "shuffle_seed"}) {
    compare(name, p.value(name, Json()), q.value(name, Json()));
  }
  const Json* s = find_task_entry(p, task);
  const Json* t = find_task_entry(q, task);
  if (s != nullptr && t != nullptr) {
    compare("samples", s->value("samples", Json()), t->value("samples", Json()));
    if (s->value("task", Json()) != t->value("task", Json())) {
      differences.emplace_back("the task files differ");
    }
    if (s->value("files", Json()) != t->value("files", Json()) ||
        s->value("examples", Json()) != t->value("examples", Json())) {
      differences.emplace_back("the data files differ");
    }
  }
  // A server does not tell its chat template.
  const Json u = p["target"].value("prompt_sha256", Json());
  const Json v = q["target"].value("prompt_sha256", Json());
  if (!u.is_null() && !v.is_null() && u != v) differences.emplace_back("the chat templates differ");
  const std::string level = x.value("sandbox", ""), other = y.value("sandbox", "");
  if (level != other) compare("sandbox", level, other);
  return differences;
}

}  // namespace nibble
