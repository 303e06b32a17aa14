// From the rows of data files to questions.
#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>
#include <set>

#include "nibble/base/error.h"
#include "nibble/base/mapped_file.h"
#include "nibble/eval/dataset.h"
#include "nibble/eval/scicode.h"
#include "nibble/eval/shuffle.h"
#include "nibble/eval/task.h"

namespace nibble {
namespace {

using Json = nlohmann::json;

constexpr size_t kExamples = 5;   // of the lm-eval style
constexpr size_t kLongList = 10;  // options of the styles that always print as many

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

// The text at `name`, empty where it is missing or no text.
std::string text_or_none(const Json& row, const char* name) {
  const auto found = row.find(name);
  return found != row.end() && found->is_string() ? found->get<std::string>() : std::string();
}

using Values = std::map<std::string, std::string>;

// {name} is replaced where the name is known; any other brace is literal.
std::string fill(std::string_view format, const Values& values) {
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

// One "X) option" a line, or "X. option"; options beyond the list are "None".
std::string option_lines(const std::vector<std::string>& options, size_t count, char mark) {
  std::string lines;
  for (size_t i = 0; i < count; ++i) {
    lines += fmt::format("{}{}{} {}", i == 0 ? "" : "\n", static_cast<char>('A' + i), mark,
                         i < options.size() ? options[i] : "None");
  }
  return lines;
}

std::string letter_list(size_t count) {
  std::string letters;
  for (size_t i = 0; i < count; ++i) {
    letters += fmt::format("{}{}", i == 0 ? "" : "/", static_cast<char>('A' + i));
  }
  return letters;
}

Result<std::vector<std::string>> option_list(const Json& row, const std::string& name,
                                             int64_t number) {
  if (!row.contains(name) || !row[name].is_array()) {
    return corrupt(fmt::format("row {}: the field '{}' is no list", number, name));
  }
  std::vector<std::string> options;
  for (const Json& option : row[name]) options.push_back(text_of(option));
  return options;
}

void replace_all(std::string* text, std::string_view from, std::string_view to) {
  for (size_t at = 0; (at = text->find(from, at)) != std::string::npos; at += to.size()) {
    text->replace(at, from.size(), to);
  }
}

class Loader {
 public:
  using Take = std::function<Status(EvalItem)>;

  Loader(const Task& task, const LoadOptions& options, const Take& take)
      : options_(options),
        task_(task),
        json_(Json::parse(task.json)),
        style_(style_settings(task, options.prompt_style)),
        take_(take) {}

  // The prompt, and the files that it needs.
  Status prepare() {
    const Json& prompts = json_["prompts"];
    if (!prompts.contains(options_.prompt_style)) {
      std::vector<std::string> known;
      for (const auto& [style, text] : prompts.items()) known.push_back(style);
      return invalid_argument(fmt::format("the task {} has no prompt style '{}', but {}",
                                          task_.name, options_.prompt_style,
                                          fmt::join(known, ", ")));
    }
    prompt_ = prompts[options_.prompt_style].get<std::string>();
    after_ = options_.after;
    before_ = options_.before;
    if (after_.empty() && before_.empty() && !style_.window.empty()) {
      after_ = style_.window[0];
      before_ = style_.window[1];
    }
    if (style_.needs_examples) NIBBLE_TRY(read_examples());
    if (style_.needs_templates) {
      if (options_.templates.empty()) {
        return invalid_argument(fmt::format(
            "the prompt style {} of {} is SciCode's own: --scicode-templates DIR names eval/data "
            "of a SciCode checkout; or choose --prompt-style demo",
            options_.prompt_style, task_.name));
      }
      // The prompt names the file that holds it.
      prompt_ = NIBBLE_TRY(read_text_file(options_.templates / prompt_));
    }
    return {};
  }

  void set_targets(Json targets, std::string file) {
    targets_ = std::move(targets);
    targets_file_ = std::move(file);
  }

  // Ids only, to choose among them.
  Status add_id(std::string_view text) {
    const Json row = Json::parse(text, nullptr, false);
    ids_.push_back(NIBBLE_TRY(field(row, json_["fields"]["id"], ++number_)));
    return {};
  }

  // What was counted with add_id() becomes the subset.
  void choose_subset() {
    std::sort(ids_.begin(), ids_.end(), [&](const std::string& a, const std::string& b) {
      return std::make_pair(eval_hash(*options_.subset_seed, a, 0), a) <
             std::make_pair(eval_hash(*options_.subset_seed, b, 0), b);
    });
    ids_.resize(std::min<size_t>(ids_.size(), static_cast<size_t>(options_.limit)));
    subset_.insert(ids_.begin(), ids_.end());
    number_ = 0;
  }

  Status add(std::string_view text) {
    const Json row = Json::parse(text, nullptr, false);
    ++number_;
    values_.clear();
    for (const auto& [name, value] : row.items()) {
      if (task_.kind != TaskKind::kCode || !name.ends_with("_test_cases")) {
        values_[name] = text_of(value);
      }
    }
    EvalItem item;
    item.id = NIBBLE_TRY(field(row, json_["fields"]["id"], number_));
    if (!seen_.insert(item.id).second) {
      return corrupt(fmt::format("row {}: the id '{}' occurs twice", number_, item.id));
    }
    item.cluster = item.id;
    std::vector<size_t> order;
    if (options_.shuffle == Shuffle::kOpenAi) order = openai_order();
    if (!is_wanted(item.id, row)) return {};
    switch (task_.kind) {
      case TaskKind::kChoice:
        return add_choice(row, std::move(item), std::move(order));
      case TaskKind::kMath:
        return add_math(row, std::move(item));
      case TaskKind::kCode:
        return add_code(row, std::move(item));
      case TaskKind::kSciCode:
        return add_steps(row, item);
    }
    return {};
  }

  // The count that the task states, where it states one.
  Status check_rows() const {
    const int64_t expected = json_.value("rows", int64_t{0});
    if (expected == 0 || expected == number_ || options_.allow_count ||
        options_.prompt_style == "demo") {
      return {};
    }
    return corrupt(
        fmt::format("{}: {} rows, but the data set has {}; --allow-count takes this file as it is",
                    task_.name, number_, expected));
  }

  // The draws of simple-evals go round by round through all rows of the file.
  void skip_draws(int64_t rows) {
    for (int64_t i = 0; i < rows * options_.sample; ++i) (void)python_.next();
  }
  int64_t num_rows() const { return number_; }
  void restart() {
    number_ = 0;
    seen_.clear();
  }

 private:
  bool is_wanted(const std::string& id, const Json& row) const {
    if (!subset_.empty() && subset_.count(id) == 0) return false;
    if (!options_.only.empty() &&
        std::find(options_.only.begin(), options_.only.end(), id) == options_.only.end()) {
      return false;
    }
    if (task_.kind != TaskKind::kCode || (after_.empty() && before_.empty())) return true;
    const std::string date = text_or_none(row, "contest_date").substr(0, 10);
    return (after_.empty() || date >= after_) && (before_.empty() || date <= before_);
  }

  Status push(EvalItem item) {
    if (subset_.empty() && options_.limit > 0 && taken_ >= options_.limit) return {};
    ++taken_;
    if (!item.chain) item.prompt = fill(prompt_, values_);
    return take_(std::move(item));
  }

  std::vector<size_t> openai_order() { return python_.next(); }

  Status read_examples() {
    if (options_.examples.empty()) {
      return invalid_argument(
          fmt::format("the prompt style {} of {} shows worked examples: --examples FILE names the "
                      "validation file",
                      options_.prompt_style, task_.name));
    }
    int64_t number = 0;
    return for_each_row(options_.examples, [&](std::string_view text) -> Status {
      const Json row = Json::parse(text, nullptr, false);
      ++number;
      const std::string category = NIBBLE_TRY(field(row, "category", number));
      std::string& block = examples_[category];
      if (++num_examples_[category] > kExamples) return {};
      const std::string question = NIBBLE_TRY(field(row, "question", number));
      const auto options = NIBBLE_TRY(option_list(row, "options", number));
      std::string worked = NIBBLE_TRY(field(row, "cot_content", number));
      replace_all(&worked, "A: Let's think step by step.", "Answer: Let's think step by step.");
      block += fmt::format("Question:\n{}\nOptions:\n{}\n{}\n\n", question,
                           option_lines(options, options.size(), '.'), worked);
      return {};
    });
  }

  Status add_choice(const Json& row, EvalItem item, std::vector<size_t> order) {
    const Json& fields = json_["fields"];
    std::vector<std::string> options;
    size_t right = 0;
    if (fields.contains("options")) {
      options = NIBBLE_TRY(option_list(row, fields["options"].get<std::string>(), number_));
      item.gold = NIBBLE_TRY(field(row, fields["gold"], number_));
      if (item.gold.size() != 1 || item.gold[0] < 'A' ||
          item.gold[0] >= 'A' + static_cast<int>(options.size())) {
        return corrupt(fmt::format("row {}: the answer '{}' is none of the {} options", number_,
                                   item.gold, options.size()));
      }
    } else {
      std::vector<std::string> columns;
      columns.push_back(NIBBLE_TRY(field(row, fields["correct"], number_)));
      const Json names =
          fields["incorrect"].is_array() ? fields["incorrect"] : Json::array({fields["incorrect"]});
      for (const Json& name : names) columns.push_back(NIBBLE_TRY(field(row, name, number_)));
      if (options_.shuffle == Shuffle::kItem) {
        order = shuffled_order(columns.size(),
                               eval_hash(options_.shuffle_seed, item.id, options_.sample));
      } else if (options_.shuffle == Shuffle::kNone) {
        order.resize(columns.size());
        std::iota(order.begin(), order.end(), size_t{0});
      } else if (columns.size() != order.size()) {
        return invalid_argument(fmt::format("--shuffle openai is for four options, {} has {}",
                                            task_.name, columns.size()));
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
    const Json letters_all = json_.value("letters_all", Json::object());
    values_["options"] = option_lines(options, options.size(), ')');
    values_["options_ten"] = option_lines(options, std::max(options.size(), kLongList), ')');
    values_["options_dots"] = option_lines(options, options.size(), '.');
    values_["letters"] = letters_all.value(options_.prompt_style, letter_list(options.size()));
    if (style_.needs_examples) {
      const std::string category = NIBBLE_TRY(field(row, "category", number_));
      const auto found = examples_.find(category);
      if (found == examples_.end()) {
        return corrupt(fmt::format("row {}: {} has no example of the category '{}'", number_,
                                   options_.examples.string(), category));
      }
      values_["examples"] = found->second;
    }
    return push(std::move(item));
  }

  Status add_math(const Json& row, EvalItem item) {
    const Json& fields = json_["fields"];
    item.gold = NIBBLE_TRY(field(row, fields["gold"], number_));
    if (fields.contains("question")) {
      values_["question"] = NIBBLE_TRY(field(row, fields["question"], number_));
    }
    return push(std::move(item));
  }

  Result<Json> read_tests(const Json& row) const {
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
      for (const Json& test : list) {
        if (!test.is_object()) {
          return corrupt(fmt::format("row {}: {}: a test is no object", number_, name));
        }
        tests.push_back(test);
      }
    }
    return tests;
  }

  Status add_code(const Json& row, EvalItem item) {
    const std::string starter = text_or_none(row, "starter_code");
    if (options_.with_tests) {
      const Json tests = NIBBLE_TRY(read_tests(row));
      const std::string metadata_text = text_or_none(row, "metadata");
      const Json metadata =
          Json::parse(metadata_text.empty() ? "{}" : metadata_text, nullptr, false);
      item.tests =
          Json{{"tests", tests},
               {"func_name", metadata.is_object() ? text_or_none(metadata, "func_name") : ""}}
              .dump(-1, ' ', false, Json::error_handler_t::replace);
    }
    values_["starter"] = starter.empty() ? "# YOUR CODE HERE" : starter;
    values_["format"] =
        starter.empty()
            ? "Read the inputs from stdin solve the problem and write the answer to stdout (do not "
              "directly test on the sample inputs). Enclose your code within delimiters as "
              "follows. Ensure that when the python program runs, it reads the inputs, runs the "
              "algorithm and writes output to STDOUT."
            : "You will use the following starter code to write the solution to the problem and "
              "enclose your code within delimiters.";
    return push(std::move(item));
  }

  Result<std::string> step_tests(const Json& row, const Json& step, const std::string& id) const {
    if (targets_file_.empty() || (targets_.is_object() && !targets_.contains(id))) {
      return corrupt(
          fmt::format("row {}: no targets for step {}; give the file of targets behind the "
                      "problems: --task scicode=PROBLEMS.jsonl,TARGETS.h5 (or .json)",
                      number_, id));
    }
    Json tests = {{"step", id},
                  {"dependencies", text_or_none(row, "required_dependencies")},
                  {"test_cases", step.value("test_cases", Json::array())}};
    if (targets_.is_object()) {
      tests["targets"] = targets_[id];
    } else {
      tests["targets_file"] = targets_file_;
    }
    return tests.dump(-1, ' ', false, Json::error_handler_t::replace);
  }

  Status add_steps(const Json& row, const EvalItem& problem) {
    if (!row.contains("sub_steps") || !row["sub_steps"].is_array()) {
      return corrupt(fmt::format("row {}: the field 'sub_steps' is no list", number_));
    }
    for (const Json& step : row["sub_steps"]) {
      EvalItem item = problem;
      item.id = NIBBLE_TRY(field(step, "step_number", number_));
      for (const auto& [name, value] : step.items()) values_[name] = text_of(value);
      if (style_.needs_templates) {
        item.prompt = prompt_;
        item.chain = NIBBLE_TRY(scicode_step(row, step, item.id));
      }
      if (!item.chain || item.chain->given.empty()) {
        item.tests = NIBBLE_TRY(step_tests(row, step, item.id));
      }
      NIBBLE_TRY(push(std::move(item)));
    }
    return {};
  }

  Result<ChainStep> scicode_step(const Json& row, const Json& step, const std::string& id) const {
    ChainStep chain;
    chain.text = NIBBLE_TRY(field(step, "step_description_prompt", number_));
    if (style_.with_background) chain.text += "\n" + text_or_none(step, "step_background");
    const std::string header = NIBBLE_TRY(field(step, "function_header", number_));
    chain.code = header + "\n\n" + text_or_none(step, "return_line");
    chain.function = name_in_header(header);
    chain.dependencies = text_or_none(row, "required_dependencies");
    if (is_given_step(id)) {
      chain.given = NIBBLE_TRY(read_text_file(options_.templates / (id + ".txt")));
    }
    return chain;
  }

  const LoadOptions& options_;
  const Task& task_;
  Json json_;
  StyleSettings style_;
  const Take& take_;
  std::string prompt_;
  std::string after_, before_;
  Json targets_;
  std::string targets_file_;
  int64_t number_ = 0;
  int64_t taken_ = 0;
  Values values_;
  Values examples_;  // by category
  std::map<std::string, size_t> num_examples_;
  std::vector<std::string> ids_;
  std::set<std::string> seen_, subset_;
  PythonShuffle python_;
};

}  // namespace

Status for_each_item(const Task& task, const std::vector<std::filesystem::path>& files,
                     const LoadOptions& options, const std::function<Status(EvalItem)>& take) {
  Loader loader(task, options, take);
  NIBBLE_TRY(loader.prepare());
  std::vector<std::filesystem::path> rows = files;
  if (task.kind == TaskKind::kSciCode && rows.size() > 1) {
    const std::filesystem::path last = rows.back();
    if (last.extension() == ".json") {
      const std::string text = NIBBLE_TRY(read_text_file(last));
      Json targets = Json::parse(text, nullptr, false);
      if (!targets.is_object()) return corrupt(last.string() + ": expected a JSON object");
      loader.set_targets(std::move(targets), last.string());
      rows.pop_back();
    } else if (last.extension() == ".h5" || last.extension() == ".hdf5") {
      (void)NIBBLE_TRY(MappedFile::open(last));
      loader.set_targets(Json(), std::filesystem::absolute(last).string());
      rows.pop_back();
    }
  }
  const auto read = [&](auto add) -> Status {
    for (const std::filesystem::path& file : rows) {
      auto status = for_each_row(file, add);
      if (status) continue;
      // Of a row, and not of the file as such or of what the caller does with the item.
      const std::string name = file.filename().string();
      const bool is_of_row = status.error().code == ErrorCode::kCorrupt &&
                             status.error().message.find(name) == std::string::npos;
      return tl::unexpected(is_of_row ? std::move(status).error().with_context(name)
                                      : std::move(status).error());
    }
    return {};
  };
  const bool is_subset = options.subset_seed && options.limit > 0;
  const bool is_drawn = options.shuffle == Shuffle::kOpenAi && options.sample > 0;
  if (is_subset || is_drawn) {
    NIBBLE_TRY(read([&](std::string_view row) { return loader.add_id(row); }));
    if (is_drawn) loader.skip_draws(loader.num_rows());
    if (is_subset) loader.choose_subset();
    loader.restart();
  }
  NIBBLE_TRY(read([&](std::string_view row) { return loader.add(row); }));
  return loader.check_rows();
}

Result<std::vector<EvalItem>> load_items(const Task& task,
                                         const std::vector<std::filesystem::path>& files,
                                         const LoadOptions& options) {
  std::vector<EvalItem> items;
  NIBBLE_TRY(for_each_item(task, files, options, [&](EvalItem item) -> Status {
    items.push_back(std::move(item));
    return {};
  }));
  if (items.empty()) {
    return corrupt(fmt::format("{}: no questions in {}", task.name, files.front().string()));
  }
  return items;
}

}  // namespace nibble
