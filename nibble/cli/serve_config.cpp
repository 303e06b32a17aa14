// The YAML file of nibble serve: read event by event, so that every problem has its line.
#include <fmt/format.h>
#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/exceptions.h>
#include <yaml-cpp/parser.h>

#include <algorithm>
#include <map>
#include <set>
#include <sstream>

#include "nibble/base/error.h"
#include "nibble/base/mapped_file.h"
#include "nibble/base/text.h"
#include "nibble/cli/serve_options.h"
#include "nibble/cli/serve_setters.h"
#include "nibble/engine/draft_policy.h"

namespace nibble {
namespace {

constexpr size_t kMaxDepth = 16;

struct Entry {
  std::string path;  // "kv_cache_config.dtype"
  std::string value;
  int line = 0;
};

// Thrown through the parser, caught in apply_config_text.
struct Refused {
  int line;
  std::string message;
};

class Flattener : public YAML::EventHandler {
 public:
  std::vector<Entry> entries;

  void OnDocumentStart(const YAML::Mark&) override {}
  void OnDocumentEnd() override {}
  void OnNull(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    check(mark, "", anchor);
    value(mark, "null");
  }
  void OnAlias(const YAML::Mark& mark, YAML::anchor_t) override {
    throw Refused{mark.line + 1, "anchors and aliases are not supported; write the value out"};
  }
  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                const std::string& text) override {
    check(mark, tag, anchor);
    if (!stack_.empty() && stack_.back().is_map && !stack_.back().has_key) {
      Level& level = stack_.back();
      if (!level.keys.insert(text).second) {
        throw Refused{mark.line + 1, fmt::format("the key '{}' stands twice", text)};
      }
      level.key = text;
      level.has_key = true;
      return;
    }
    value(mark, text);
  }
  void OnSequenceStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                       YAML::EmitterStyle::value) override {
    check(mark, tag, anchor);
    if (stack_.empty() || !stack_.back().is_map) {
      throw Refused{mark.line + 1, "a list stands where a key is expected"};
    }
    push(mark, false);
  }
  void OnSequenceEnd() override {
    std::string joined;
    for (const std::string& item : stack_.back().items)
      joined += (joined.empty() ? "" : ",") + item;
    const int line = stack_.back().line;
    stack_.pop_back();
    entries.push_back({path(), joined, line});
    stack_.back().has_key = false;
  }
  void OnMapStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                  YAML::EmitterStyle::value) override {
    check(mark, tag, anchor);
    if (!stack_.empty() && !stack_.back().is_map) {
      throw Refused{mark.line + 1, "a map inside a list is not expected here"};
    }
    push(mark, true);
  }
  void OnMapEnd() override {
    const bool empty = stack_.back().keys.empty();
    const int line = stack_.back().line;
    stack_.pop_back();
    if (stack_.empty()) return;
    if (empty) entries.push_back({path(), "{}", line});
    stack_.back().has_key = false;
  }

 private:
  struct Level {
    bool is_map = true;
    int line = 0;
    std::string key;
    bool has_key = false;
    std::set<std::string> keys;
    std::vector<std::string> items;
  };

  static void check(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor) {
    if (anchor != 0) {
      throw Refused{mark.line + 1, "anchors and aliases are not supported; write the value out"};
    }
    if (!tag.empty() && tag != "?" && tag != "!") {
      throw Refused{mark.line + 1, fmt::format("the tag '{}' is not supported; leave it out", tag)};
    }
  }
  void push(const YAML::Mark& mark, bool is_map) {
    if (stack_.size() >= kMaxDepth) throw Refused{mark.line + 1, "nested too deeply"};
    Level level;
    level.is_map = is_map;
    level.line = mark.line + 1;
    stack_.push_back(std::move(level));
  }
  void value(const YAML::Mark& mark, const std::string& text) {
    if (stack_.empty()) throw Refused{mark.line + 1, "expected keys and values"};
    if (!stack_.back().is_map) {
      stack_.back().items.push_back(text);
      return;
    }
    if (!stack_.back().has_key) throw Refused{mark.line + 1, "a key is missing"};
    entries.push_back({path(), text, mark.line + 1});
    stack_.back().has_key = false;
  }
  std::string path() const {
    std::string out;
    for (const Level& level : stack_) out += (out.empty() ? "" : ".") + level.key;
    return out;
  }

  std::vector<Level> stack_;
};

// Where files have a setting that keeps its name in one of trtllm-serve's blocks:
// "speculative_config.relaxed_topk" for relaxed_topk, an option, but no key of the top level. Empty
// for others.
std::string path_in_block(const ServeSetting& setting) {
  for (const std::string& path : setting.yaml_paths) {
    if (path.ends_with("." + setting.name)) return path;
  }
  return "";
}

// Keys of the same level first, then the others with their whole path.
std::string hint_for(const std::string& path) {
  const size_t dot = path.rfind('.');
  const std::string prefix = dot == std::string::npos ? "" : path.substr(0, dot + 1);
  const std::string last = path.substr(prefix.size());
  std::vector<std::string> same;
  std::vector<std::string> others;
  std::vector<std::string> full;
  for (const ServeSetting& setting : serve_settings()) {
    std::vector<std::string> names = setting.yaml_paths;
    names.insert(names.end(), setting.aliases.begin(), setting.aliases.end());
    const std::string in_block = path_in_block(setting);
    if (in_block.empty() && !setting.name.empty()) names.push_back(setting.name);
    if (!in_block.empty() && find_serve_setting(path) == &setting) {
      return fmt::format("; did you mean '{}'?", in_block);
    }
    for (const std::string& name : names) {
      const size_t at = name.rfind('.');
      const std::string name_prefix = at == std::string::npos ? "" : name.substr(0, at + 1);
      if (name_prefix == prefix) {
        same.push_back(name.substr(name_prefix.size()));
      } else {
        others.push_back(name.substr(name_prefix.size()));
        full.push_back(name);
      }
    }
  }
  std::string hint = did_you_mean(last, same);
  if (!hint.empty()) return hint;
  const std::vector<std::string> near = suggestions(last, others);
  if (near.empty()) return "";
  const auto found = std::find(others.begin(), others.end(), near.front());
  return fmt::format("; did you mean '{}'?", full[static_cast<size_t>(found - others.begin())]);
}

}  // namespace

Status apply_config_text(const std::string& text, const std::string& where,
                         const std::map<std::string, std::string>& given, ServeOptions* options) {
  Flattener flattener;
  std::string problems;
  const auto problem = [&](int line, std::string_view message) {
    problems += fmt::format("{}{}:{}: {}", problems.empty() ? "" : "\n", where, line, message);
  };
  try {
    std::istringstream stream(text);
    YAML::Parser parser(stream);
    parser.HandleNextDocument(flattener);
    Flattener second;
    if (parser.HandleNextDocument(second)) problem(1, "more than one document in the file");
  } catch (const Refused& refused) {
    problem(refused.line, refused.message);
  } catch (const YAML::Exception& error) {
    problem(error.mark.line + 1, error.msg);
  }
  bool only_unsupported = problems.empty();
  std::map<const ServeSetting*, Entry> seen;
  for (const Entry& entry : flattener.entries) {
    const ServeSetting* setting = find_serve_setting(entry.path);
    // A block whose keys are data: batch size -> drafts.
    constexpr std::string_view kSchedule = "speculative_config.draft_len_schedule.";
    if (entry.path.starts_with(kSchedule)) {
      const auto batch = parse_integer(entry.path.substr(kSchedule.size()), 1, int64_t{1} << 20);
      const auto drafts = parse_integer(entry.value, 0, kMaxDrafts);
      if (batch && drafts) {
        options->engine.draft.draft_len_schedule[*batch] = *drafts;
      } else {
        problem(entry.line,
                fmt::format("{}: {}", entry.path, (batch ? drafts : batch).error().message));
        only_unsupported = false;
      }
      continue;
    }
    const bool top = entry.path.find('.') == std::string::npos;
    if (setting == nullptr || (top && !path_in_block(*setting).empty())) {
      const std::string hint = hint_for(entry.path);
      const bool elsewhere = top && hint.find('.') != std::string::npos;
      problem(entry.line, fmt::format("unknown key '{}'{}{}", entry.path,
                                      elsewhere ? " at top level" : "", hint));
      only_unsupported = false;
      continue;
    }
    const auto [earlier, is_new] = seen.emplace(setting, entry);
    if (!is_new && earlier->second.value != entry.value) {
      problem(entry.line,
              fmt::format("{} is {}, but {} in line {} is {}", entry.path, entry.value,
                          earlier->second.path, earlier->second.line, earlier->second.value));
      only_unsupported = false;
      continue;
    }
    const bool is_null = entry.value == "null" || entry.value == "~";
    if (is_null && entry.path != "cuda_graph_config") continue;
    const auto on_command_line = given.find(setting->name);
    if (!setting->name.empty() && on_command_line != given.end() &&
        on_command_line->second != entry.value) {
      options->notes.push_back(fmt::format("{} is {} in {}, which wins over the command line's {}",
                                           entry.path, entry.value, where,
                                           on_command_line->second));
    }
    const Status status = setting->set(*options, entry.value);
    if (status) continue;
    if (status.error().code != ErrorCode::kUnsupported) only_unsupported = false;
    problem(entry.line, fmt::format("{}: {}", entry.path, status.error().message));
  }
  if (problems.empty()) return {};
  return only_unsupported ? Status(unsupported(problems)) : Status(invalid_argument(problems));
}

Status apply_config_file(const std::string& path, const std::map<std::string, std::string>& given,
                         ServeOptions* options) {
  constexpr uint64_t kMaxBytes = 1 << 20;
  const std::string text = NIBBLE_TRY(read_text_file(path, kMaxBytes));
  return apply_config_text(text, path, given, options);
}

}  // namespace nibble
