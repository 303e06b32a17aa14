#include "nibble/tokenizer/chat_template_files.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>

#include "nibble/base/error.h"
#include "nibble/base/mapped_file.h"
#include "nibble/tokenizer/chat_builtin_templates.h"
#include "nibble/tokenizer/jinja_json.h"

namespace nibble {
namespace {

using jinja::Dict;
using jinja::Kind;
using jinja::Value;

// The largest published templates have 15 KB.
constexpr uint64_t kMaxTemplateBytes = uint64_t{1} << 20;
constexpr uint64_t kMaxConfigBytes = uint64_t{16} << 20;

// The text of a file, or nothing when there is none.
Result<std::optional<std::string>> read_if_there(const std::filesystem::path& path,
                                                 uint64_t max_bytes) {
  auto text = read_text_file(path, max_bytes);
  if (text) return std::optional<std::string>(*std::move(text));
  if (text.error().code == ErrorCode::kNotFound) return std::optional<std::string>();
  return tl::unexpected(std::move(text).error());
}

// The object in a JSON file; empty when there is no file.
Result<Value> read_object(const std::filesystem::path& path) {
  const auto text = NIBBLE_TRY(read_if_there(path, kMaxConfigBytes));
  if (!text) return Value::dict({});
  const auto value = jinja::parse_json(*text);
  if (!value) return corrupt(fmt::format("{}: {}", path.string(), value.error().message));
  if (!value->is(Kind::kDict)) return corrupt(fmt::format("{} is no JSON object", path.string()));
  return *value;
}

// Tokens are texts, or AddedToken objects with `content`.
void find_special_tokens(const Dict& config, ChatTemplateFiles& files) {
  for (const auto& [key, value] : config.entries()) {
    if (!key.ends_with("_token")) continue;
    if (value.is(Kind::kString)) files.special_tokens.emplace_back(key, value.as_string());
    if (!value.is(Kind::kDict)) continue;
    const Value* content = value.as_dict().find("content");
    if (content != nullptr && content->is(Kind::kString)) {
      files.special_tokens.emplace_back(key, content->as_string());
    }
  }
}

// `chat_template` of tokenizer_config.json, when it is there.
Result<bool> take_from_config(const Dict& config, const std::string& path,
                              ChatTemplateFiles& files) {
  const Value* found = config.find("chat_template");
  if (found == nullptr || found->is(Kind::kNone)) return false;
  files.origin = path;
  if (found->is(Kind::kString)) {
    files.source = found->as_string();
    return true;
  }
  if (!found->is(Kind::kList)) {
    return corrupt(fmt::format("{}: chat_template is no text and no list", path));
  }
  bool has_default = false;
  for (const Value& item : found->as_sequence().items) {
    const Value* name = item.is(Kind::kDict) ? item.as_dict().find("name") : nullptr;
    const Value* text = item.is(Kind::kDict) ? item.as_dict().find("template") : nullptr;
    if (name == nullptr || text == nullptr || !name->is(Kind::kString) ||
        !text->is(Kind::kString)) {
      return corrupt(
          fmt::format("{}: chat_template has an element without name or template", path));
    }
    if (name->as_string() == "default") {
      files.source = text->as_string();
      has_default = true;
    }
    if (name->as_string() == "tool_use") files.tool_use_source = text->as_string();
  }
  if (!has_default) return corrupt(fmt::format("{}: no chat_template is named default", path));
  return true;
}

std::string lower_case(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(),
                 [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; });
  return text;
}

// The built-in that names such as "DeepSeek-R1-0528-NVFP4" ask for, or null.
const BuiltinChatTemplate* builtin_by_name(const std::string& name) {
  const std::string lower = lower_case(name);
  const auto has = [&lower](std::string_view part) {
    return lower.find(part) != std::string::npos;
  };
  if (!has("deepseek") || has("distill") || has("v3.1") || has("v3.2")) return nullptr;
  if (has("r1-0528") || has("r1_0528")) return find_builtin_chat_template("deepseek_r1_0528");
  if (has("r1")) return find_builtin_chat_template("deepseek_r1");
  return has("v3") ? find_builtin_chat_template("deepseek_v3") : nullptr;
}

void take_builtin(const BuiltinChatTemplate& builtin, ChatTemplateFiles& files) {
  files.source = builtin.source;
  files.origin = fmt::format("built-in {}", builtin.name);
  files.thinks = builtin.thinks;
  // What DeepSeek's models have, for a checkpoint whose tokenizer_config.json does not say.
  const auto add = [&files](std::string_view key, std::string_view text) {
    for (const auto& [other, unused] : files.special_tokens) {
      if (other == key) return;
    }
    files.special_tokens.emplace_back(key, text);
  };
  add("bos_token", "<｜begin▁of▁sentence｜>");
  add("eos_token", "<｜end▁of▁sentence｜>");
}

}  // namespace

Result<ChatTemplateFiles> find_chat_template(const std::filesystem::path& directory,
                                             const std::string& choice) {
  ChatTemplateFiles files;
  const auto config_path = directory / "tokenizer_config.json";
  const Value config = NIBBLE_TRY(read_object(config_path));
  find_special_tokens(config.as_dict(), files);

  if (const BuiltinChatTemplate* builtin = find_builtin_chat_template(choice)) {
    take_builtin(*builtin, files);
    return files;
  }
  if (!choice.empty()) {
    auto text = NIBBLE_TRY(read_if_there(choice, kMaxTemplateBytes));
    if (!text) {
      return not_found(fmt::format("chat template '{}' is neither a file nor one of {}", choice,
                                   builtin_chat_template_names()));
    }
    files.source = *std::move(text);
    files.origin = choice;
    return files;
  }
  const auto jinja_path = directory / "chat_template.jinja";
  if (auto text = NIBBLE_TRY(read_if_there(jinja_path, kMaxTemplateBytes))) {
    files.source = *std::move(text);
    files.origin = jinja_path.string();
    return files;
  }
  if (NIBBLE_TRY(take_from_config(config.as_dict(), config_path.string(), files))) return files;

  const Value model = NIBBLE_TRY(read_object(directory / "config.json"));
  const Value* model_name = model.as_dict().find("_name_or_path");
  const BuiltinChatTemplate* builtin = nullptr;
  if (model_name != nullptr && model_name->is(Kind::kString)) {
    builtin = builtin_by_name(model_name->as_string());
  }
  if (builtin == nullptr) {
    builtin = builtin_by_name(std::filesystem::absolute(directory / ".").parent_path().filename());
  }
  if (builtin == nullptr) {
    return not_found(fmt::format(
        "{} has no chat template, and its name does not tell the model; choose one of {}, or a "
        "file",
        directory.string(), builtin_chat_template_names()));
  }
  take_builtin(*builtin, files);
  return files;
}

}  // namespace nibble
