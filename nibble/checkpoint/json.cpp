#include "nibble/checkpoint/json.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "nibble/base/check.h"
#include "nibble/base/error.h"
#include "nibble/base/text.h"
#include "nibble/checkpoint/json_error.h"

namespace nibble {
namespace {

constexpr size_t kMaxDepth = 64;
constexpr size_t kMaxValues = 4'000'000;

// Builds the tree from nlohmann's events, which come without recursion.
class TreeBuilder {
 public:
  using number_integer_t = nlohmann::json::number_integer_t;
  using number_unsigned_t = nlohmann::json::number_unsigned_t;
  using number_float_t = nlohmann::json::number_float_t;
  using string_t = nlohmann::json::string_t;
  using binary_t = nlohmann::json::binary_t;

  bool null() { return add(JsonValue()); }
  bool boolean(bool value) { return add(JsonValue::boolean(value)); }
  bool number_integer(number_integer_t value) { return add(JsonValue::integer(value)); }
  bool number_unsigned(number_unsigned_t value) {
    if (value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
      return add(JsonValue::number(static_cast<double>(value)));
    }
    return add(JsonValue::integer(static_cast<int64_t>(value)));
  }
  bool number_float(number_float_t value, const string_t& /*text*/) {
    return add(JsonValue::number(value));
  }
  bool string(string_t& value) { return add(JsonValue::string(std::move(value))); }
  bool binary(binary_t& /*value*/) { return false; }  // no such event in JSON text
  bool start_object(size_t /*size*/) { return open(JsonValue::object()); }
  bool start_array(size_t /*size*/) { return open(JsonValue::array()); }
  bool key(string_t& name) {
    stack_.back().key = std::move(name);
    return true;
  }
  bool end_object() {
    // Sorted once per object: an index has a hundred thousand keys.
    std::vector<std::string_view> keys;
    for (const auto& [name, value] : *stack_.back().value.as_object()) keys.push_back(name);
    std::sort(keys.begin(), keys.end());
    const auto twice = std::adjacent_find(keys.begin(), keys.end());
    if (twice != keys.end()) {
      error = fmt::format("the key {} appears twice", json_quote(*twice));
      return false;
    }
    return close();
  }
  bool end_array() { return close(); }
  bool parse_error(size_t position, const std::string& /*token*/,
                   const nlohmann::detail::exception& exception) {
    error = json_error_text(position, exception.what());
    return false;
  }

  std::string error;
  JsonValue root;

 private:
  struct Frame {
    JsonValue value;
    std::string key;
  };

  bool add(JsonValue value) {
    if (++num_values_ > kMaxValues) {
      error = fmt::format("more than {} values", kMaxValues);
      return false;
    }
    if (stack_.empty()) {
      root = std::move(value);
    } else if (auto* object = stack_.back().value.as_object()) {
      object->emplace_back(std::move(stack_.back().key), std::move(value));
    } else {
      stack_.back().value.as_array()->push_back(std::move(value));
    }
    return true;
  }
  bool open(JsonValue value) {
    if (stack_.size() >= kMaxDepth) {
      error = fmt::format("nested deeper than {} levels", kMaxDepth);
      return false;
    }
    stack_.push_back({std::move(value), {}});
    return true;
  }
  bool close() {
    JsonValue value = std::move(stack_.back().value);
    stack_.pop_back();
    return add(std::move(value));
  }

  std::vector<Frame> stack_;
  size_t num_values_ = 0;
};

void append_json(const JsonValue& value, int indent, int level, std::string& out) {
  const auto new_line = [&](int at_level) {
    if (indent < 0) return;
    out += '\n';
    out.append(static_cast<size_t>(indent) * static_cast<size_t>(at_level), ' ');
  };
  if (const auto* members = value.as_object()) {
    out += '{';
    bool first = true;
    for (const auto& [name, member] : *members) {
      if (!first) out += ',';
      first = false;
      new_line(level + 1);
      out += json_quote(name);
      out += indent < 0 ? ":" : ": ";
      append_json(member, indent, level + 1, out);
    }
    if (!first) new_line(level);
    out += '}';
  } else if (const auto* items = value.as_array()) {
    out += '[';
    bool first = true;
    for (const JsonValue& item : *items) {
      if (!first) out += ',';
      first = false;
      new_line(level + 1);
      append_json(item, indent, level + 1, out);
    }
    if (!first) new_line(level);
    out += ']';
  } else if (const auto* text = value.as_string()) {
    out += json_quote(*text);
  } else if (const auto* flag = value.as_boolean()) {
    out += *flag ? "true" : "false";
  } else if (const auto* integer = value.as_integer()) {
    out += std::to_string(*integer);
  } else if (const auto number = value.as_number()) {
    // JSON has no NaN and no infinity.
    std::string digits = std::isfinite(*number) ? fmt::format("{}", *number) : "null";
    if (digits.find_first_not_of("-0123456789") == std::string::npos) digits += ".0";
    out += digits;
  } else {
    out += "null";
  }
}

}  // namespace

std::string json_error_text(size_t position, std::string_view what) {
  // "[json.exception.parse_error.101] parse error at line 1, column 5: syntax error while ..."
  const size_t bracket = what.find("] ");
  if (bracket != std::string_view::npos) what.remove_prefix(bracket + 2);
  const size_t colon = what.find(": ");
  if (what.starts_with("parse error") && colon != std::string_view::npos) {
    what.remove_prefix(colon + 2);
  }
  return fmt::format("malformed JSON at byte {}: {}", position, what);
}

JsonValue JsonValue::boolean(bool value) {
  JsonValue json;
  json.value_ = value;
  return json;
}

JsonValue JsonValue::integer(int64_t value) {
  JsonValue json;
  json.value_ = value;
  return json;
}

JsonValue JsonValue::number(double value) {
  JsonValue json;
  json.value_ = value;
  return json;
}

JsonValue JsonValue::string(std::string value) {
  JsonValue json;
  json.value_ = std::move(value);
  return json;
}

JsonValue JsonValue::array(Array items) {
  JsonValue json;
  json.value_ = std::move(items);
  return json;
}

JsonValue JsonValue::object(Object members) {
  JsonValue json;
  json.value_ = std::move(members);
  return json;
}

std::optional<double> JsonValue::as_number() const {
  if (const auto* integer = as_integer()) return static_cast<double>(*integer);
  if (const auto* number = std::get_if<double>(&value_)) return *number;
  return std::nullopt;
}

std::string_view JsonValue::kind_name() const {
  if (is_null()) return "null";
  if (as_boolean() != nullptr) return "a boolean";
  if (as_integer() != nullptr) return "an integer";
  if (as_number()) return "a number";
  if (as_string() != nullptr) return "a string";
  return as_array() != nullptr ? "an array" : "an object";
}

const JsonValue* JsonValue::find(std::string_view key) const {
  if (const auto* members = as_object()) {
    for (const auto& [name, value] : *members) {
      if (name == key) return &value;
    }
  }
  return nullptr;
}

void JsonValue::set(std::string key, JsonValue value) {
  if (is_null()) value_ = Object();
  Object* members = as_object();
  NIBBLE_CHECK(members != nullptr);
  for (auto& [name, old_value] : *members) {
    if (name == key) {
      old_value = std::move(value);
      return;
    }
  }
  members->emplace_back(std::move(key), std::move(value));
}

void JsonValue::push_back(JsonValue value) {
  if (is_null()) value_ = Array();
  Array* items = as_array();
  NIBBLE_CHECK(items != nullptr);
  items->push_back(std::move(value));
}

void JsonValue::remove(std::string_view key) {
  if (Object* members = as_object()) {
    std::erase_if(*members, [&](const auto& member) { return member.first == key; });
  }
}

Result<JsonValue> parse_json(std::string_view text, std::string_view where) {
  size_t bad_offset = 0;
  if (!is_valid_utf8(text, &bad_offset)) {
    return corrupt(fmt::format("{}: byte {} is not UTF-8", where, bad_offset));
  }
  TreeBuilder builder;
  if (!nlohmann::json::sax_parse(text, &builder)) {
    return corrupt(fmt::format("{}: {}", where, builder.error));
  }
  return std::move(builder.root);
}

std::string to_json(const JsonValue& value, int indent) {
  std::string out;
  append_json(value, indent, 0, out);
  return out;
}

std::string json_quote(std::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (c == '\n') {
      out += "\\n";
    } else if (c == '\t') {
      out += "\\t";
    } else if (byte < 0x20 || byte == 0x7f) {
      out += fmt::format("\\u{:04x}", byte);
    } else {
      out += c;
    }
  }
  out += '"';
  return out;
}

}  // namespace nibble
