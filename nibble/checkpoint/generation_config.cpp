#include "nibble/checkpoint/generation_config.h"

#include <fmt/format.h>

#include "nibble/base/error.h"
#include "nibble/base/mapped_file.h"
#include "nibble/checkpoint/json.h"

namespace nibble {
namespace {

tl::unexpected<Error> bad_field(std::string_view where, std::string_view name,
                                const JsonValue& value, std::string_view expected) {
  return corrupt(
      fmt::format("{}: {} is {}, expected {}", where, name, to_json(value, -1), expected));
}

// The member of that name, null counting as missing.
const JsonValue* find_field(const JsonValue& json, std::string_view name) {
  const JsonValue* value = json.find(name);
  return value == nullptr || value->is_null() ? nullptr : value;
}

}  // namespace

Result<GenerationConfig> parse_generation_config(std::string_view json, std::string_view where) {
  const JsonValue root = NIBBLE_TRY(parse_json(json, where));
  if (root.as_object() == nullptr) {
    return corrupt(fmt::format("{} is {}, expected an object", where, root.kind_name()));
  }
  GenerationConfig config;
  if (const JsonValue* value = find_field(root, "temperature")) {
    config.temperature = value->as_number();
    if (!config.temperature || !(*config.temperature >= 0 && *config.temperature <= 2)) {
      return bad_field(where, "temperature", *value, "a number in 0..2");
    }
  }
  if (const JsonValue* value = find_field(root, "top_p")) {
    config.top_p = value->as_number();
    if (!config.top_p || !(*config.top_p > 0 && *config.top_p <= 1)) {
      return bad_field(where, "top_p", *value, "a number above 0, at most 1");
    }
  }
  if (const JsonValue* value = find_field(root, "top_k")) {
    const int64_t* number = value->as_integer();
    if (number == nullptr || *number < -1) {
      return bad_field(where, "top_k", *value, "an integer, -1 or more");
    }
    config.top_k = *number;
  }
  if (const JsonValue* value = find_field(root, "do_sample")) {
    const bool* flag = value->as_boolean();
    if (flag == nullptr) return bad_field(where, "do_sample", *value, "true or false");
    if (!*flag) config.temperature = 0;
  }
  return config;
}

Result<GenerationConfig> load_generation_config(const std::filesystem::path& directory) {
  const auto path = directory / "generation_config.json";
  std::error_code error;
  if (!std::filesystem::exists(path, error)) return GenerationConfig{};
  const std::string text = NIBBLE_TRY(read_text_file(path, uint64_t{1} << 20));
  return parse_generation_config(text, path.string());
}

}  // namespace nibble
