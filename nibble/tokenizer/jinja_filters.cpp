// Filters. Follows Jinja2's filters.py, and transformers' chat_template_utils.py for tojson.
#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>

#include "nibble/base/error.h"
#include "nibble/tokenizer/jinja_builtins.h"
#include "nibble/tokenizer/jinja_json.h"
#include "nibble/tokenizer/jinja_ops.h"
#include "nibble/tokenizer/jinja_string_methods.h"
#include "nibble/tokenizer/jinja_unicode.h"

namespace nibble::jinja {
namespace {

Result<Value> tojson(Runtime& runtime, const Value& subject, const Arguments& arguments) {
  JsonStyle style;
  style.ensure_ascii = truthy(arguments.get(0, Value::boolean(false)));
  style.sort_keys = truthy(arguments.get(2, Value::boolean(false)));
  const Value indent = arguments.get(1, Value::none());
  if (indent.is_integral()) {
    constexpr int64_t kMaxIndent = 100;
    if (indent.as_integer() > kMaxIndent) {
      return invalid_argument(
          fmt::format("tojson: an indent of {} is more than {}", indent.as_integer(), kMaxIndent));
    }
    style.multiline = true;
    style.indent.assign(static_cast<size_t>(std::max<int64_t>(indent.as_integer(), 0)), ' ');
  } else if (indent.is(Kind::kString)) {
    style.multiline = true;
    style.indent = indent.as_string();
  } else if (!indent.is(Kind::kNone)) {
    return invalid_argument(
        fmt::format("tojson: indent is int, str or none, found {}", type_name(indent)));
  }
  return make_string(NIBBLE_TRY(to_json(subject, style, runtime.budget)), runtime.budget);
}

Result<Value> trim(Runtime& runtime, const Value& subject, const Arguments& arguments) {
  const std::string text = NIBBLE_TRY(to_text(subject, runtime.budget));
  const Value chars = arguments.get(0, Value::none());
  if (!chars.is(Kind::kNone) && !chars.is(Kind::kString)) {
    return invalid_argument(fmt::format("trim needs str or none, found {}", type_name(chars)));
  }
  const std::string* set = chars.is(Kind::kString) ? &chars.as_string() : nullptr;
  NIBBLE_TRY(runtime.budget.look_at(text.size() * (set == nullptr ? 1 : 1 + set->size())));
  return make_string(std::string(strip_right(strip_left(text, set), set)), runtime.budget);
}

Result<Value> count(Runtime& runtime, const Value& subject, const Arguments&) {
  return Value::integer(NIBBLE_TRY(length(subject, runtime.budget)));
}

Result<Value> first(Runtime& runtime, const Value& subject, const Arguments&) {
  if (subject.is(Kind::kGenerator)) {
    Sequence& generator = subject.as_sequence();
    if (generator.position < generator.items.size()) return generator.items[generator.position++];
    return Value::undefined("no first element");
  }
  const std::vector<Value> items = NIBBLE_TRY(iterate(subject, runtime.budget));
  return items.empty() ? Value::undefined("no first element") : items.front();
}

Result<Value> last(Runtime& runtime, const Value& subject, const Arguments&) {
  if (subject.is(Kind::kGenerator)) {
    return invalid_argument("last: a generator has no last element; make a list of it first");
  }
  const std::vector<Value> items = NIBBLE_TRY(iterate(subject, runtime.budget));
  return items.empty() ? Value::undefined("no last element") : items.back();
}

// filters.py, make_attrgetter: "function.name", each part a key or, of digits, an index.
Result<Value> attribute_of(const Value& value, const Value& path, const std::optional<Value>& other,
                           Budget& budget) {
  Value found = value;
  if (path.is_integral()) return get_item(found, path, budget);
  if (!path.is(Kind::kString)) {
    return invalid_argument(fmt::format("attribute is str or int, found {}", type_name(path)));
  }
  std::string_view rest = path.as_string();
  while (true) {
    const size_t dot = rest.find('.');
    const std::string_view part = rest.substr(0, dot);
    int64_t index = 0;
    const bool digits = !part.empty() && part.find_first_not_of("0123456789") == part.npos;
    if (digits &&
        std::from_chars(part.data(), part.data() + part.size(), index).ec != std::errc()) {
      return invalid_argument(fmt::format("attribute {} is too large", part));
    }
    const Value key = digits ? Value::integer(index) : Value::string(std::string(part));
    found = NIBBLE_TRY(get_item(found, key, budget));
    if (found.is(Kind::kUndefined) && other) found = *other;
    if (dot == std::string_view::npos) return found;
    rest.remove_prefix(dot + 1);
  }
}

Result<Value> join(Runtime& runtime, const Value& subject, const Arguments& arguments) {
  const std::string separator =
      NIBBLE_TRY(to_text(arguments.get(0, Value::string("")), runtime.budget));
  std::string out;
  bool begun = false;
  for (Value item : NIBBLE_TRY(iterate(subject, runtime.budget))) {
    if (arguments.named[1] && !arguments.named[1]->is(Kind::kNone)) {
      item = NIBBLE_TRY(attribute_of(item, *arguments.named[1], std::nullopt, runtime.budget));
    }
    if (std::exchange(begun, true)) {
      NIBBLE_TRY(runtime.budget.spend_bytes(separator.size()));
      out += separator;
    }
    NIBBLE_TRY(append_text(item, runtime.budget, out));
  }
  return make_string(std::move(out), runtime.budget);
}

// What map and select walk: nothing of any false value, even one without items (filters.py tests
// `if value` first).
Result<std::vector<Value>> items_if_true(const Value& value, Budget& budget) {
  if (!truthy(value)) return std::vector<Value>();
  return iterate(value, budget);
}

// map(attribute='a', default=x), or map('filter', arguments...).
Result<Value> map(Runtime& runtime, const Value& subject, const Arguments& arguments) {
  const std::optional<Value>& name = arguments.named[0];
  const std::optional<Value>& attribute = arguments.named[1];
  if (name.has_value() == attribute.has_value()) {
    return invalid_argument("map needs either attribute=... or the name of a filter");
  }
  std::vector<Value> mapped;
  for (const Value& item : NIBBLE_TRY(items_if_true(subject, runtime.budget))) {
    if (attribute) {
      mapped.push_back(
          NIBBLE_TRY(attribute_of(item, *attribute, arguments.named[2], runtime.budget)));
      continue;
    }
    const Builtin* filter =
        name->is(Kind::kString) ? find_builtin(BuiltinTable::kFilter, name->as_string()) : nullptr;
    if (filter == nullptr || filter->function == map) {
      return invalid_argument("map needs the name of another filter");
    }
    mapped.push_back(NIBBLE_TRY(call_builtin(*filter, runtime, item, arguments.rest, {})));
  }
  return make_sequence(Kind::kGenerator, std::move(mapped), runtime.budget);
}

Result<bool> passes(Runtime& runtime, const Value& item, const std::optional<Value>& test,
                    const std::vector<Value>& arguments) {
  if (!test) return truthy(item);
  const Builtin* builtin =
      test->is(Kind::kString) ? find_builtin(BuiltinTable::kTest, test->as_string()) : nullptr;
  if (builtin == nullptr) return invalid_argument("expected the name of a test");
  return truthy(NIBBLE_TRY(call_builtin(*builtin, runtime, item, arguments, {})));
}

template <bool wanted>
Result<Value> select(Runtime& runtime, const Value& subject, const Arguments& arguments) {
  std::vector<Value> kept;
  for (const Value& item : NIBBLE_TRY(items_if_true(subject, runtime.budget))) {
    if (NIBBLE_TRY(passes(runtime, item, arguments.named[0], arguments.rest)) == wanted) {
      kept.push_back(item);
    }
  }
  return make_sequence(Kind::kGenerator, std::move(kept), runtime.budget);
}

template <bool wanted>
Result<Value> select_by_attribute(Runtime& runtime, const Value& subject,
                                  const Arguments& arguments) {
  std::vector<Value> kept;
  for (const Value& item : NIBBLE_TRY(items_if_true(subject, runtime.budget))) {
    const Value attribute =
        NIBBLE_TRY(attribute_of(item, *arguments.named[0], std::nullopt, runtime.budget));
    if (NIBBLE_TRY(passes(runtime, attribute, arguments.named[1], arguments.rest)) == wanted) {
      kept.push_back(item);
    }
  }
  return make_sequence(Kind::kGenerator, std::move(kept), runtime.budget);
}

Result<Value> or_default(Runtime&, const Value& subject, const Arguments& arguments) {
  const bool also_false = truthy(arguments.get(1, Value::boolean(false)));
  const bool replaced = subject.is(Kind::kUndefined) || (also_false && !truthy(subject));
  return replaced ? arguments.get(0, Value::string("")) : subject;
}

template <bool to_upper>
Result<Value> cased(Runtime& runtime, const Value& subject, const Arguments&) {
  const std::string text = NIBBLE_TRY(to_text(subject, runtime.budget));
  return make_string(NIBBLE_TRY(change_case(text, to_upper)), runtime.budget);
}

Result<Value> text_of(Runtime& runtime, const Value& subject, const Arguments&) {
  if (subject.is(Kind::kString)) return subject;
  return make_string(NIBBLE_TRY(to_text(subject, runtime.budget)), runtime.budget);
}

// int(float), or `otherwise` where Python raises.
Result<Value> truncated(double value, const Value& otherwise) {
  if (std::isnan(value) || std::isinf(value)) return otherwise;
  constexpr double kLimit = 9223372036854775808.0;  // 2^63
  const double whole = std::trunc(value);
  if (whole >= kLimit || whole < -kLimit) {
    return unsupported("int: the number is beyond 64 bits");
  }
  return Value::integer(static_cast<int64_t>(whole));
}

// int(text) for a decimal text, otherwise int(float(text)), otherwise the default.
Result<Value> to_int(Runtime& runtime, const Value& subject, const Arguments& arguments) {
  const Value otherwise = arguments.get(0, Value::integer(0));
  if (subject.is(Kind::kUndefined)) return invalid_argument(subject.why_undefined());
  if (subject.is_integral()) return Value::integer(subject.as_integer());
  if (subject.is(Kind::kFloat)) return truncated(subject.as_float(), otherwise);
  if (!subject.is(Kind::kString)) return otherwise;

  NIBBLE_TRY(runtime.budget.look_at(subject.as_string().size()));
  std::string_view text = strip_right(strip_left(subject.as_string()));
  std::string digits;  // without "_", which Python allows between digits
  for (size_t i = 0; i < text.size(); ++i) {
    if (static_cast<unsigned char>(text[i]) >= 0x80) {
      // Python takes digits of every script; other characters make it no number in any case.
      const bool digits_only = std::all_of(text.begin(), text.end(), [](char c) {
        return static_cast<unsigned char>(c) >= 0x80 ||
               std::string_view("+-._eE0123456789").find(c) != std::string_view::npos;
      });
      if (!digits_only) return otherwise;
      return unsupported("int: digits other than ASCII's are not supported");
    }
    const auto digit_at = [text](size_t k) {
      return k < text.size() && text[k] >= '0' && text[k] <= '9';
    };
    if (text[i] == '_' && i > 0 && digit_at(i - 1) && digit_at(i + 1)) continue;
    digits += text[i];
  }
  // from_chars takes no '+'; and what follows a sign has to be the number itself.
  if (digits.size() > 1 && digits[0] == '+' && digits[1] != '-') digits.erase(0, 1);
  const char* const end = digits.data() + digits.size();
  int64_t whole = 0;
  const auto as_integer = std::from_chars(digits.data(), end, whole);
  if (as_integer.ptr == end && !digits.empty()) {
    if (as_integer.ec == std::errc()) return Value::integer(whole);
    if (as_integer.ec == std::errc::result_out_of_range) {
      return unsupported("int: the number is beyond 64 bits");
    }
  }
  double real = 0;
  const auto as_real = std::from_chars(digits.data(), end, real);
  if (as_real.ptr != end || digits.empty()) return otherwise;
  if (as_real.ec == std::errc::result_out_of_range) {
    return unsupported("int: the number is out of range");
  }
  if (as_real.ec != std::errc()) return otherwise;
  // from_chars knows "nan(text)" besides Python's "nan"; both are no integer.
  return truncated(real, otherwise);
}

Result<Value> to_list(Runtime& runtime, const Value& subject, const Arguments&) {
  return make_sequence(Kind::kList, NIBBLE_TRY(iterate(subject, runtime.budget)), runtime.budget);
}

Result<Value> items(Runtime& runtime, const Value& subject, const Arguments&) {
  if (subject.is(Kind::kUndefined)) return Value::sequence(Kind::kGenerator, {});
  if (!subject.is(Kind::kDict)) {
    return invalid_argument(fmt::format("items needs a dict, found {}", type_name(subject)));
  }
  return dict_items(subject.as_dict(), Kind::kGenerator, runtime.budget);
}

Result<Value> replace(Runtime& runtime, const Value& subject, const Arguments& arguments) {
  const std::string text = NIBBLE_TRY(to_text(subject, runtime.budget));
  const std::string old = NIBBLE_TRY(to_text(*arguments.named[0], runtime.budget));
  const std::string with = NIBBLE_TRY(to_text(*arguments.named[1], runtime.budget));
  const Value limit = arguments.get(2, Value::none());
  if (!limit.is(Kind::kNone) && !limit.is_integral()) {
    return invalid_argument(fmt::format("replace: count is int, found {}", type_name(limit)));
  }
  return replace_text(text, old, with, limit.is(Kind::kNone) ? -1 : limit.as_integer(),
                      runtime.budget);
}

Result<Value> safe(Runtime&, const Value& subject, const Arguments&) { return subject; }

const std::vector<Builtin>& table() {
  static const std::vector<Builtin> kTable = {
      {"tojson", {"ensure_ascii", "indent", "sort_keys"}, 0, false, tojson},
      {"trim", {"chars"}, 0, false, trim},
      {"length", {}, 0, false, count},
      {"count", {}, 0, false, count},
      {"first", {}, 0, false, first},
      {"last", {}, 0, false, last},
      {"join", {"d", "attribute"}, 0, false, join},
      {"map", {"name", "attribute", "default"}, 0, true, map},
      {"select", {"test"}, 0, true, select<true>},
      {"reject", {"test"}, 0, true, select<false>},
      {"selectattr", {"attribute", "test"}, 1, true, select_by_attribute<true>},
      {"rejectattr", {"attribute", "test"}, 1, true, select_by_attribute<false>},
      {"default", {"default_value", "boolean"}, 0, false, or_default},
      {"d", {"default_value", "boolean"}, 0, false, or_default},
      {"upper", {}, 0, false, cased<true>},
      {"lower", {}, 0, false, cased<false>},
      {"string", {}, 0, false, text_of},
      {"int", {"default"}, 0, false, to_int},
      {"list", {}, 0, false, to_list},
      {"items", {}, 0, false, items},
      {"replace", {"old", "new", "count"}, 2, false, replace},
      {"safe", {}, 0, false, safe},
  };
  return kTable;
}

}  // namespace

std::span<const Builtin> filters() { return table(); }

}  // namespace nibble::jinja
