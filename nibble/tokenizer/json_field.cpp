#include "nibble/tokenizer/json_field.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "nibble/base/error.h"

namespace nibble {

using nlohmann::json;

Result<json> parse_json_document(std::string_view text, std::string_view where) {
  try {
    return json::parse(text.begin(), text.end());
  } catch (const json::exception& e) {
    // "[json.exception.parse_error.101] parse error at line 1, column 2: ..." without the tag.
    std::string_view what = e.what();
    if (const size_t tag = what.find("] "); tag != std::string_view::npos) {
      what.remove_prefix(tag + 2);
    }
    return corrupt(fmt::format("{} is not JSON: {}", where, what.substr(0, 300)));
  }
}

std::string describe_json(const json& value) {
  if (const auto* text = value.get_ptr<const std::string*>()) {
    if (text->size() <= 80) return fmt::format("\"{}\"", *text);
    return fmt::format("a text of {} bytes", text->size());
  }
  if (value.is_number() || value.is_boolean() || value.is_null()) return value.dump();
  return fmt::format("an {} of {} entries", value.type_name(), value.size());
}

const json& field(const json& object, std::string_view key) {
  static const json kNull;
  if (!object.is_object()) return kNull;
  const auto found = object.find(key);
  return found == object.end() ? kNull : *found;
}

Result<bool> bool_field(const json& object, std::string_view key, bool otherwise) {
  const json& value = field(object, key);
  if (value.is_null()) return otherwise;
  if (!value.is_boolean()) {
    return corrupt(fmt::format("{} is {}, expected true or false", key, describe_json(value)));
  }
  return value.get<bool>();
}

Result<std::string> string_field(const json& object, std::string_view key) {
  const json& value = field(object, key);
  if (!value.is_string()) {
    return corrupt(fmt::format("{} is {}, expected a text", key, describe_json(value)));
  }
  return value.get<std::string>();
}

Result<int32_t> id_value(const json& value, int32_t limit) {
  if (!value.is_number_integer() || value.get<int64_t>() < 0 || value.get<int64_t>() >= limit) {
    return corrupt(
        fmt::format("is {}, expected a whole number below {}", describe_json(value), limit));
  }
  return value.get<int32_t>();
}

}  // namespace nibble
