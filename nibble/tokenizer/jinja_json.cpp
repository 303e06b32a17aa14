#include "nibble/tokenizer/jinja_json.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "nibble/base/error.h"
#include "nibble/base/text.h"
#include "nibble/tokenizer/jinja_ops.h"
#include "nibble/tokenizer/jinja_unicode.h"

namespace nibble::jinja {
namespace {

// Half of what values may nest, so that a template can put parsed JSON into lists of its own.
constexpr size_t kMaxJsonDepth = kMaxValueDepth / 2;

// Builds values from nlohmann's events: its own tree would sort the keys, and would turn integers
// beyond 64 bits silently into floats.
class ValueBuilder : public nlohmann::json_sax<nlohmann::json> {
 public:
  bool null() override { return add(Value::none()); }
  bool boolean(bool value) override { return add(Value::boolean(value)); }
  bool number_integer(number_integer_t value) override { return add(Value::integer(value)); }
  bool number_unsigned(number_unsigned_t value) override {
    if (value > static_cast<uint64_t>(INT64_MAX)) return fail_on_big(std::to_string(value));
    return add(Value::integer(static_cast<int64_t>(value)));
  }
  bool number_float(number_float_t value, const string_t& text) override {
    if (text.find_first_of(".eE") == std::string::npos) return fail_on_big(text);
    return add(Value::real(value));
  }
  bool string(string_t& value) override { return add(Value::string(std::move(value))); }
  bool binary(binary_t&) override { return fail("binary data is not JSON"); }
  bool start_object(size_t) override { return open(true); }
  bool key(string_t& name) override {
    open_.back().key = std::move(name);
    return true;
  }
  bool end_object() override {
    Value value = Value::dict(std::move(open_.back().dict));
    open_.pop_back();
    return add(std::move(value));
  }
  bool start_array(size_t) override { return open(false); }
  bool end_array() override {
    Value value = Value::list(std::move(open_.back().items));
    open_.pop_back();
    return add(std::move(value));
  }
  bool parse_error(size_t position, const std::string&,
                   const nlohmann::detail::exception& error) override {
    // Without nlohmann's "[json.exception.parse_error.101] parse error at line 1, column 2: ".
    std::string_view why = error.what();
    if (const size_t colon = why.find(": "); colon != std::string_view::npos) {
      why.remove_prefix(colon + 2);
    }
    return fail(fmt::format("malformed JSON at byte {}: {}", position, why));
  }

  Value take_value() { return std::move(value_); }
  const std::string& error() const { return error_; }

 private:
  struct Open {
    bool is_object;
    std::string key;
    Dict dict;
    std::vector<Value> items;
  };

  bool fail(std::string why) {
    error_ = std::move(why);
    return false;
  }
  bool fail_on_big(const std::string& number) {
    return fail(fmt::format("the integer {} is beyond 64 bits", number));
  }
  bool open(bool is_object) {
    if (open_.size() >= kMaxJsonDepth) {
      return fail(fmt::format("JSON nests deeper than {}", kMaxJsonDepth));
    }
    open_.push_back({is_object, {}, {}, {}});
    return true;
  }
  bool add(Value value) {
    if (open_.empty()) {
      value_ = std::move(value);
    } else if (open_.back().is_object) {
      open_.back().dict.set(std::move(open_.back().key), std::move(value));
    } else {
      open_.back().items.push_back(std::move(value));
    }
    return true;
  }

  std::vector<Open> open_;
  Value value_;
  std::string error_;
};

Status append_json(const Value& value, const JsonStyle& style, int level, Budget& budget,
                   std::string& out);

void append_break(const JsonStyle& style, int level, std::string& out) {
  out += '\n';
  for (int i = 0; i < level; ++i) out += style.indent;
}

Status append_list(const Value& value, const JsonStyle& style, int level, Budget& budget,
                   std::string& out) {
  const auto& items = value.as_sequence().items;
  if (items.empty()) {
    out += "[]";
    return {};
  }
  out += '[';
  for (size_t i = 0; i < items.size(); ++i) {
    if (i > 0) out += style.multiline ? "," : ", ";
    if (style.multiline) append_break(style, level + 1, out);
    NIBBLE_TRY(append_json(items[i], style, level + 1, budget, out));
  }
  if (style.multiline) append_break(style, level, out);
  out += ']';
  return {};
}

Status append_mapping(const Value& value, const JsonStyle& style, int level, Budget& budget,
                      std::string& out) {
  std::vector<const std::pair<std::string, Value>*> entries;
  for (const auto& entry : value.as_dict().entries()) entries.push_back(&entry);
  if (style.sort_keys) {
    std::sort(entries.begin(), entries.end(),
              [](const auto* a, const auto* b) { return a->first < b->first; });
  }
  if (entries.empty()) {
    out += "{}";
    return {};
  }
  out += '{';
  bool first = true;
  for (const auto* entry : entries) {
    if (!std::exchange(first, false)) out += style.multiline ? "," : ", ";
    if (style.multiline) append_break(style, level + 1, out);
    NIBBLE_TRY(budget.spend_bytes(entry->first.size()));
    out += json_quoted(entry->first, style.ensure_ascii);
    out += ": ";
    NIBBLE_TRY(append_json(entry->second, style, level + 1, budget, out));
  }
  if (style.multiline) append_break(style, level, out);
  out += '}';
  return {};
}

Status append_json(const Value& value, const JsonStyle& style, int level, Budget& budget,
                   std::string& out) {
  NIBBLE_TRY(budget.spend_steps(1));
  if (style.multiline) {
    NIBBLE_TRY(budget.spend_bytes(style.indent.size() * static_cast<size_t>(level + 1)));
  }
  switch (value.kind()) {
    case Kind::kNone:
      out += "null";
      return {};
    case Kind::kBool:
      out += value.as_bool() ? "true" : "false";
      return {};
    case Kind::kInt:
      out += std::to_string(value.as_integer());
      return {};
    case Kind::kFloat: {
      const double number = value.as_float();
      if (std::isnan(number)) {
        out += "NaN";
      } else if (std::isinf(number)) {
        out += number < 0 ? "-Infinity" : "Infinity";
      } else {
        out += float_text(number);
      }
      return {};
    }
    case Kind::kString:
      NIBBLE_TRY(budget.spend_bytes(value.as_string().size()));
      out += json_quoted(value.as_string(), style.ensure_ascii);
      return {};
    case Kind::kList:
    case Kind::kTuple:
      return append_list(value, style, level, budget, out);
    case Kind::kDict:
      return append_mapping(value, style, level, budget, out);
    case Kind::kUndefined:
      return invalid_argument(fmt::format("tojson: {}", value.why_undefined()));
    default:
      return invalid_argument(fmt::format("tojson: a {} has no JSON form", type_name(value)));
  }
}

}  // namespace

Result<Value> parse_json(std::string_view text) {
  size_t bad_offset = 0;
  if (!is_valid_utf8(text, &bad_offset)) {
    return invalid_argument(fmt::format("malformed UTF-8 at byte {}", bad_offset));
  }
  ValueBuilder builder;
  if (!nlohmann::json::sax_parse(text.begin(), text.end(), &builder)) {
    return invalid_argument(builder.error());
  }
  return builder.take_value();
}

Result<std::string> to_json(const Value& value, const JsonStyle& style, Budget& budget) {
  std::string out;
  NIBBLE_TRY(append_json(value, style, 0, budget, out));
  return out;
}

std::string json_quoted(std::string_view text, bool ensure_ascii) {
  std::string out = "\"";
  const auto append_escape = [&out](uint32_t unit) {
    fmt::format_to(std::back_inserter(out), "\\u{:04x}", unit);
  };
  for (size_t i = 0; i < text.size();) {
    const size_t begin = i;
    const char32_t c = next_code_point(text, &i);
    constexpr std::string_view kShort = "\"\\\n\r\t\b\f";
    constexpr std::string_view kLetters = "\"\\nrtbf";
    const size_t short_form = c < 0x80 ? kShort.find(static_cast<char>(c)) : std::string_view::npos;
    if (short_form != std::string_view::npos) {
      out += '\\';
      out += kLetters[short_form];
    } else if (c < 0x20 || (ensure_ascii && c > 0x7e && c < 0x10000)) {
      append_escape(c);
    } else if (ensure_ascii && c >= 0x10000) {
      append_escape(0xd800 + ((c - 0x10000) >> 10));
      append_escape(0xdc00 + ((c - 0x10000) & 0x3ff));
    } else {
      out += text.substr(begin, i - begin);
    }
  }
  out += '"';
  return out;
}

}  // namespace nibble::jinja
