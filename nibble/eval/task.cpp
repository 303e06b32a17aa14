#include "nibble/eval/task.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>

#include "nibble/base/error.h"
#include "nibble/base/mapped_file.h"
#include "nibble/base/text.h"
#include "nibble/eval/shuffle.h"

namespace nibble {
namespace {

using Json = nlohmann::json;

constexpr std::array<std::string_view, 4> kKinds = {"choice", "math", "code", "scicode"};
constexpr std::array<std::string_view, 3> kExtractors = {"choice-v1", "aa-v2", "lm-eval"};

// Whether `names` is a text, or a list of texts that is not empty.
bool is_names(const Json& names) {
  if (names.is_string()) return true;
  return names.is_array() && !names.empty() &&
         std::all_of(names.begin(), names.end(), [](const Json& n) { return n.is_string(); });
}

// What stands in `json[section][style]`, or null.
Json of_style(const Json& json, const char* section, const std::string& style) {
  const auto found = json.find(section);
  if (found == json.end() || !found->is_object()) return {};
  return found->value(style, Json());
}

bool contains_style(const Json& json, const char* section, const std::string& style) {
  const auto found = json.find(section);
  return found != json.end() && found->is_array() &&
         std::find(found->begin(), found->end(), style) != found->end();
}

}  // namespace

Result<Task> parse_task(std::string_view text, std::string_view where) {
  const Json json = Json::parse(text, nullptr, false);
  const auto bad = [&](std::string_view what) {
    return corrupt(fmt::format("{}: {}", where, what));
  };
  if (!json.is_object()) return bad("expected a JSON object");
  for (const char* name : {"name", "kind"}) {
    if (!json.contains(name) || !json[name].is_string()) {
      return bad(fmt::format("'{}' is missing or no text", name));
    }
  }
  for (const char* name : {"fields", "prompts"}) {
    if (!json.contains(name) || !json[name].is_object()) {
      return bad(fmt::format("'{}' is missing or no object", name));
    }
  }
  for (const auto& [style, prompt] : json["prompts"].items()) {
    if (!prompt.is_string()) return bad(fmt::format("the prompt '{}' is no text", style));
  }
  const std::string kind = json["kind"].get<std::string>();
  const auto found = std::find(kKinds.begin(), kKinds.end(), kind);
  if (found == kKinds.end()) {
    return bad(fmt::format("kind is '{}', expected {}", kind, fmt::join(kKinds, ", ")));
  }
  const Json& fields = json["fields"];
  std::vector<std::string> needed = {"id"};
  if (kind == "math") needed.emplace_back("gold");
  if (kind == "choice" && fields.contains("options")) needed.emplace_back("gold");
  if (kind == "choice" && !fields.contains("options")) {
    needed.insert(needed.end(), {"correct", "incorrect"});
  }
  for (const std::string& name : needed) {
    if (!fields.contains(name)) return bad(fmt::format("fields has no '{}'", name));
  }
  for (const auto& [name, value] : fields.items()) {
    if (!is_names(value)) return bad(fmt::format("fields: '{}' is no name or list of names", name));
  }
  if (json.contains("rows") && !json["rows"].is_number_integer()) return bad("rows is no number");
  Task task;
  task.name = json["name"].get<std::string>();
  task.title = json.contains("title") && json["title"].is_string()
                   ? json["title"].get<std::string>()
                   : task.name;
  task.kind = static_cast<TaskKind>(found - kKinds.begin());
  task.samples = json.contains("samples") && json["samples"].is_number_integer()
                     ? std::max(1, json["samples"].get<int>())
                     : 1;
  task.json = json.dump();
  for (const auto& [style, prompt] : json["prompts"].items()) {
    const std::string extractor = style_settings(task, style).extractor;
    if (std::find(kExtractors.begin(), kExtractors.end(), extractor) == kExtractors.end()) {
      return bad(fmt::format("the extractor is '{}', expected {}", extractor,
                             fmt::join(kExtractors, ", ")));
    }
  }
  return task;
}

StyleSettings style_settings(const Task& task, const std::string& prompt_style) {
  const Json json = Json::parse(task.json);
  StyleSettings settings;
  settings.raw_prompt = contains_style(json, "raw_prompt", prompt_style);
  settings.needs_examples = contains_style(json, "examples", prompt_style);
  settings.needs_templates = contains_style(json, "templates", prompt_style);
  settings.with_background = contains_style(json, "background", prompt_style);
  const auto texts = [&](const char* section) {
    std::vector<std::string> all;
    for (const Json& text : of_style(json, section, prompt_style)) {
      if (text.is_string()) all.push_back(text.get<std::string>());
    }
    return all;
  };
  settings.stop = texts("stop");
  settings.window = texts("window");
  if (settings.window.size() != 2) settings.window.clear();
  const Json extractor = of_style(json, "extractor", prompt_style);
  settings.extractor = extractor.is_string() ? extractor.get<std::string>() : "choice-v1";
  return settings;
}

std::string_view task_kind_name(TaskKind kind) { return kKinds[static_cast<size_t>(kind)]; }

Result<Task> find_task(const std::string& name_or_file) {
  std::string name = name_or_file;
  std::replace(name.begin(), name.end(), '_', '-');
  // The names of the specification, too.
  if (name == "math500") name = "math-500";
  if (name == "aime24") name = "aime-2024";
  std::vector<std::string> names;
  for (const Task& task : builtin_tasks()) {
    if (task.name == name) return task;
    names.push_back(task.name);
  }
  if (name_or_file.ends_with(".json")) {
    const std::string text = NIBBLE_TRY(read_text_file(name_or_file));
    return parse_task(text, name_or_file);
  }
  return not_found(fmt::format("no task '{}'{}; the tasks are {}, or a task file ending in .json",
                               name_or_file, did_you_mean(name, names), fmt::join(names, ", ")));
}

uint64_t eval_hash(int64_t seed, std::string_view text, int64_t sample) {
  uint64_t state = 0xcbf29ce484222325ULL ^ static_cast<uint64_t>(seed);
  for (const char c : text) state = (state ^ static_cast<unsigned char>(c)) * 0x100000001b3ULL;
  state ^= static_cast<uint64_t>(sample) << 32;
  (void)splitmix64(&state);
  return splitmix64(&state);
}

}  // namespace nibble
