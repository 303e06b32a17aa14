// JSON as a tree, for the small files of a checkpoint: config.json, hf_quant_config.json, the
// index. Members keep their order, so that a file can be read, changed and written again.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "nibble/base/result.h"

namespace nibble {

class JsonValue {
 public:
  using Array = std::vector<JsonValue>;
  using Object = std::vector<std::pair<std::string, JsonValue>>;

  JsonValue() = default;  // null
  static JsonValue boolean(bool value);
  static JsonValue integer(int64_t value);
  static JsonValue number(double value);
  static JsonValue string(std::string value);
  static JsonValue array(Array items = {});
  static JsonValue object(Object members = {});

  bool is_null() const { return std::holds_alternative<std::monostate>(value_); }

  // Null when the value is of another kind. A number without fraction and exponent that fits is an
  // integer; every other number is a double.
  const bool* as_boolean() const { return std::get_if<bool>(&value_); }
  const int64_t* as_integer() const { return std::get_if<int64_t>(&value_); }
  const std::string* as_string() const { return std::get_if<std::string>(&value_); }
  const Array* as_array() const { return std::get_if<Array>(&value_); }
  Array* as_array() { return std::get_if<Array>(&value_); }
  const Object* as_object() const { return std::get_if<Object>(&value_); }
  Object* as_object() { return std::get_if<Object>(&value_); }

  // An integer or a double as a double.
  std::optional<double> as_number() const;

  // "null", "a boolean", "an integer", "a number", "a string", "an array", "an object".
  std::string_view kind_name() const;

  // The member of that name; null when there is none or this is not an object.
  const JsonValue* find(std::string_view key) const;

  // Replaces the member of that name or appends it. A null value becomes an object first.
  void set(std::string key, JsonValue value);

  // Appends to an array. A null value becomes an array first.
  void push_back(JsonValue value);

  // Without the member of that name, if it was there.
  void remove(std::string_view key);

 private:
  std::variant<std::monostate, bool, int64_t, double, std::string, Array, Object> value_;
};

// Parses one document. `where` names it in messages. Errors: kCorrupt for malformed JSON with the
// byte offset, bad UTF-8, duplicate keys, nesting deeper than 64, more than 4 million values.
Result<JsonValue> parse_json(std::string_view text, std::string_view where);

// The text of a value, its levels indented by `indent` spaces, or on one line for indent < 0.
std::string to_json(const JsonValue& value, int indent = 2);

// "text" in quotes, escaped for JSON.
std::string json_quote(std::string_view text);

}  // namespace nibble
