#include "nibble/eval/task.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>

#include "nibble/base/error.h"
#include "nibble/base/mapped_file.h"
#include "nibble/base/text.h"
#include "nibble/eval/dataset.h"

namespace nibble {
namespace {

using Json = nlohmann::json;

constexpr std::array<std::string_view, 4> kKinds = {"choice", "math", "code", "scicode"};

// A value as text: numbers as they are written.
std::string text_of(const Json& value) {
  return value.is_string() ? value.get<std::string>() : value.dump();
}

// The text of the first of the names ("x" or ["x", "y"]) that the row has.
Result<std::string> field(const Json& row, const Json& names, int64_t number) {
  const std::vector<std::string> all = names.is_array()
                                           ? names.get<std::vector<std::string>>()
                                           : std::vector<std::string>{names.get<std::string>()};
  for (const std::string& name : all) {
    if (row.contains(name)) return text_of(row[name]);
  }
  return corrupt(
      fmt::format("row {}: the field '{}' is missing", number, fmt::join(all, "' or '")));
}

// {name} is replaced where the name is known; any other brace is literal.
std::string fill(std::string_view format, const std::map<std::string, std::string>& values) {
  std::string result;
  for (size_t at = 0; at < format.size();) {
    const size_t end = format[at] == '{' ? format.find('}', at) : std::string_view::npos;
    if (end != std::string_view::npos) {
      const auto value = values.find(std::string(format.substr(at + 1, end - at - 1)));
      if (value != values.end()) {
        result += value->second;
        at = end + 1;
        continue;
      }
    }
    result += format[at++];
  }
  return result;
}

uint64_t splitmix64(uint64_t* state) {
  uint64_t x = *state += 0x9e3779b97f4a7c15ULL;
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ x >> 27) * 0x94d049bb133111ebULL;
  return x ^ x >> 31;
}

// Fisher-Yates over 0 .. count - 1.
std::vector<size_t> permutation(size_t count, uint64_t seed) {
  std::vector<size_t> order(count);
  std::iota(order.begin(), order.end(), size_t{0});
  uint64_t state = seed;
  for (size_t i = count; i > 1; --i) {
    std::swap(order[i - 1], order[static_cast<size_t>(splitmix64(&state) % i)]);
  }
  return order;
}

class Loader {
 public:
  Loader(const Task& task, const LoadOptions& options)
      : options_(options), task_(Json::parse(task.json)), kind_(task.kind) {}

  Status choose_prompt(const std::string& name) {
    const Json& prompts = task_["prompts"];
    if (prompts.contains(options_.prompt_style)) {
      prompt_ = prompts[options_.prompt_style].get<std::string>();
      return {};
    }
    std::vector<std::string> known;
    for (const auto& [style, text] : prompts.items()) known.push_back(style);
    return invalid_argument(fmt::format("the task {} has no prompt style '{}', but {}", name,
                                        options_.prompt_style, fmt::join(known, ", ")));
  }

  void set_targets(Json targets) { targets_ = std::move(targets); }

  Status add(std::string_view text) {
    const Json row = Json::parse(text, nullptr, false);
    ++number_;
    values_.clear();
    for (const auto& [name, value] : row.items()) values_[name] = text_of(value);
    EvalItem item;
    item.id = NIBBLE_TRY(field(row, task_["fields"]["id"], number_));
    if (!ids_.emplace(item.id, 0).second) {
      return corrupt(fmt::format("row {}: the id '{}' occurs twice", number_, item.id));
    }
    item.cluster = item.id;
    switch (kind_) {
      case TaskKind::kChoice:
        return add_choice(row, std::move(item));
      case TaskKind::kMath:
        return add_math(row, std::move(item));
      case TaskKind::kCode:
        return add_code(row, std::move(item));
      case TaskKind::kSciCode:
        return add_steps(row, item);
    }
    return {};
  }

  std::vector<EvalItem> take() { return std::move(items_); }
  bool is_full() const {
    return options_.limit > 0 && static_cast<int64_t>(items_.size()) >= options_.limit;
  }

 private:
  void push(EvalItem item) {
    if (is_full()) return;
    item.prompt = fill(prompt_, values_);
    items_.push_back(std::move(item));
  }

  Status add_choice(const Json& row, EvalItem item) {
    const Json& fields = task_["fields"];
    std::vector<std::string> options;
    size_t right = 0;
    if (fields.contains("options")) {
      const std::string name = fields["options"].get<std::string>();
      if (!row.contains(name) || !row[name].is_array()) {
        return corrupt(fmt::format("row {}: the field '{}' is no list", number_, name));
      }
      for (const Json& option : row[name]) options.push_back(text_of(option));
      item.gold = NIBBLE_TRY(field(row, fields["gold"], number_));
      if (item.gold.size() != 1 || item.gold[0] < 'A' ||
          item.gold[0] >= 'A' + static_cast<int>(options.size())) {
        return corrupt(fmt::format("row {}: the answer '{}' is none of the {} options", number_,
                                   item.gold, options.size()));
      }
    } else {
      std::vector<std::string> columns;
      columns.push_back(NIBBLE_TRY(field(row, fields["correct"], number_)));
      for (const Json& name : fields["incorrect"]) {
        columns.push_back(NIBBLE_TRY(field(row, name, number_)));
      }
      std::vector<size_t> order(columns.size());
      std::iota(order.begin(), order.end(), size_t{0});
      if (options_.shuffle) {
        order = permutation(columns.size(), eval_hash(options_.seed, item.id, options_.sample));
      }
      for (const size_t column : order) {
        if (column == 0) right = options.size();
        options.push_back(columns[column]);
        item.permutation += fmt::format("{}", column);
      }
      item.gold = std::string(1, static_cast<char>('A' + right));
    }
    if (options.size() < 2 || options.size() > 26) {
      return corrupt(fmt::format("row {}: {} options, expected 2 to 26", number_, options.size()));
    }
    item.num_options = static_cast<int>(options.size());
    std::string lines, letters;
    for (size_t i = 0; i < options.size(); ++i) {
      const char letter = static_cast<char>('A' + i);
      lines += fmt::format("{}{}) {}", i == 0 ? "" : "\n", letter, options[i]);
      letters += fmt::format("{}{}", i == 0 ? "" : "/", letter);
    }
    const Json letters_all = task_.value("letters_all", Json::object());
    values_["options"] = lines;
    values_["letters"] = letters_all.value(options_.prompt_style, letters);
    push(std::move(item));
    return {};
  }

  Status add_math(const Json& row, EvalItem item) {
    const Json& fields = task_["fields"];
    item.gold = NIBBLE_TRY(field(row, fields["gold"], number_));
    if (fields.contains("question")) {
      values_["question"] = NIBBLE_TRY(field(row, fields["question"], number_));
    }
    push(std::move(item));
    return {};
  }

  Status add_code(const Json& row, EvalItem item) {
    Json tests = Json::array();
    for (const char* name : {"public_test_cases", "private_test_cases"}) {
      const std::string text = NIBBLE_TRY(field(row, name, number_));
      auto plain = decode_private_tests(text);
      if (!plain) {
        return tl::unexpected(
            std::move(plain).error().with_context(fmt::format("row {}: {}", number_, name)));
      }
      const Json list = Json::parse(*plain, nullptr, false);
      if (!list.is_array()) {
        return corrupt(fmt::format("row {}: {} is no JSON list", number_, name));
      }
      for (const Json& test : list) tests.push_back(test);
    }
    const Json metadata = Json::parse(row.value("metadata", "{}"), nullptr, false);
    const std::string starter = row.value("starter_code", "");
    item.tests = Json{{"tests", tests},
                      {"func_name", metadata.is_object() ? metadata.value("func_name", "") : ""}}
                     .dump();
    values_["starter"] = starter.empty() ? "# YOUR CODE HERE" : starter;
    values_["format"] =
        starter.empty()
            ? "Read the inputs from stdin solve the problem and write the answer to stdout (do not "
              "directly test on the sample inputs). Enclose your code within delimiters as "
              "follows. "
              "Ensure that when the python program runs, it reads the inputs, runs the algorithm "
              "and "
              "writes output to STDOUT."
            : "You will use the following starter code to write the solution to the problem and "
              "enclose your code within delimiters.";
    push(std::move(item));
    return {};
  }

  Status add_steps(const Json& row, const EvalItem& problem) {
    if (!row.contains("sub_steps") || !row["sub_steps"].is_array()) {
      return corrupt(fmt::format("row {}: the field 'sub_steps' is no list", number_));
    }
    for (const Json& step : row["sub_steps"]) {
      EvalItem item = problem;
      item.id = NIBBLE_TRY(field(step, "step_number", number_));
      for (const auto& [name, value] : step.items()) values_[name] = text_of(value);
      if (!targets_.contains(item.id)) {
        return corrupt(
            fmt::format("row {}: no targets for step {}; give the file of targets behind "
                        "the problems: --task scicode=PROBLEMS.jsonl,TARGETS.json",
                        number_, item.id));
      }
      item.tests = Json{{"dependencies", row.value("required_dependencies", "")},
                        {"test_cases", step.value("test_cases", Json::array())},
                        {"targets", targets_[item.id]}}
                       .dump();
      push(std::move(item));
    }
    return {};
  }

  LoadOptions options_;
  Json task_;
  TaskKind kind_;
  std::string prompt_;
  Json targets_ = Json::object();
  int64_t number_ = 0;
  std::map<std::string, std::string> values_;
  std::map<std::string, int> ids_;
  std::vector<EvalItem> items_;
};

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
  Task task;
  task.name = json["name"].get<std::string>();
  task.title = json.value("title", task.name);
  task.kind = static_cast<TaskKind>(found - kKinds.begin());
  task.samples = json.contains("samples") && json["samples"].is_number_integer()
                     ? std::max(1, json["samples"].get<int>())
                     : 1;
  task.json = json.dump();
  return task;
}

std::string_view task_kind_name(TaskKind kind) { return kKinds[static_cast<size_t>(kind)]; }

Result<Task> find_task(const std::string& name_or_file) {
  std::string name = name_or_file;
  std::replace(name.begin(), name.end(), '_', '-');
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

Result<std::vector<EvalItem>> load_items(const Task& task,
                                         const std::vector<std::filesystem::path>& files,
                                         const LoadOptions& options) {
  Loader loader(task, options);
  NIBBLE_TRY(loader.choose_prompt(task.name));
  std::vector<std::filesystem::path> rows = files;
  if (task.kind == TaskKind::kSciCode && rows.size() > 1 && rows.back().extension() == ".json") {
    const std::string text = NIBBLE_TRY(read_text_file(rows.back()));
    Json targets = Json::parse(text, nullptr, false);
    if (!targets.is_object()) return corrupt(rows.back().string() + ": expected a JSON object");
    loader.set_targets(std::move(targets));
    rows.pop_back();
  }
  for (const std::filesystem::path& file : rows) {
    auto status = for_each_row(file, [&](std::string_view row) { return loader.add(row); });
    if (!status) {
      return tl::unexpected(std::move(status).error().with_context(file.filename().string()));
    }
  }
  std::vector<EvalItem> items = loader.take();
  if (items.empty()) {
    return corrupt(fmt::format("{}: no questions in {}", task.name, files.front().string()));
  }
  return items;
}

uint64_t eval_hash(int64_t seed, std::string_view text, int64_t sample) {
  uint64_t state = 0xcbf29ce484222325ULL ^ static_cast<uint64_t>(seed);
  for (const char c : text) state = (state ^ static_cast<unsigned char>(c)) * 0x100000001b3ULL;
  state ^= static_cast<uint64_t>(sample) << 32;
  (void)splitmix64(&state);
  return splitmix64(&state);
}

}  // namespace nibble
