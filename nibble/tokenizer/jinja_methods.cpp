// Methods of Python's str and dict.
#include <fmt/format.h>

#include "nibble/base/error.h"
#include "nibble/tokenizer/jinja_builtins.h"
#include "nibble/tokenizer/jinja_ops.h"
#include "nibble/tokenizer/jinja_string_methods.h"
#include "nibble/tokenizer/jinja_unicode.h"

namespace nibble::jinja {
namespace {

Status check_subject(const Value& subject, Kind wanted, std::string_view method) {
  if (subject.is(wanted)) return {};
  if (subject.is(Kind::kUndefined)) return invalid_argument(subject.why_undefined());
  return invalid_argument(fmt::format("a {} has no method '{}'", type_name(subject), method));
}

// An optional argument that is a string, or none where Python's default is None.
Result<const std::string*> string_argument(const std::optional<Value>& argument) {
  if (!argument || argument->is(Kind::kNone)) return nullptr;
  if (!argument->is(Kind::kString)) {
    return invalid_argument(fmt::format("expected str, found {}", type_name(*argument)));
  }
  return &argument->as_string();
}

Result<int64_t> integer_argument(const std::optional<Value>& argument, int64_t otherwise) {
  if (!argument) return otherwise;
  if (!argument->is_integral()) {
    return invalid_argument(fmt::format("expected int, found {}", type_name(*argument)));
  }
  return argument->as_integer();
}

enum class Side { kLeft, kRight, kBoth };

template <Side side>
Result<Value> strip(Runtime& runtime, const Value& subject, const Arguments& arguments) {
  NIBBLE_TRY(check_subject(subject, Kind::kString, "strip"));
  const std::string* chars = NIBBLE_TRY(string_argument(arguments.named[0]));
  // Every character at the border is looked for among `chars`.
  NIBBLE_TRY(runtime.budget.look_at(subject.as_string().size() *
                                    (chars == nullptr ? 1 : 1 + chars->size())));
  std::string_view text = subject.as_string();
  if (side != Side::kRight) text = strip_left(text, chars);
  if (side != Side::kLeft) text = strip_right(text, chars);
  return make_string(std::string(text), runtime.budget);
}

Result<Value> split(Runtime& runtime, const Value& subject, const Arguments& arguments) {
  NIBBLE_TRY(check_subject(subject, Kind::kString, "split"));
  const std::string* separator = NIBBLE_TRY(string_argument(arguments.named[0]));
  const int64_t max_splits = NIBBLE_TRY(integer_argument(arguments.named[1], -1));
  if (separator != nullptr && separator->empty()) {
    return invalid_argument("split needs a separator that is not empty");
  }
  return split_text(subject.as_string(), separator, max_splits, runtime.budget);
}

template <bool at_start>
Result<Value> has_affix(Runtime& runtime, const Value& subject, const Arguments& arguments) {
  NIBBLE_TRY(check_subject(subject, Kind::kString, at_start ? "startswith" : "endswith"));
  const Value& wanted = *arguments.named[0];
  std::vector<Value> choices = {wanted};
  if (wanted.is(Kind::kTuple)) choices = wanted.as_sequence().items;
  NIBBLE_TRY(runtime.budget.spend_steps(choices.size()));
  const std::string_view text = subject.as_string();
  for (const Value& choice : choices) {
    if (!choice.is(Kind::kString)) {
      return invalid_argument(
          fmt::format("expected str or a tuple of str, found {}", type_name(choice)));
    }
    const std::string& affix = choice.as_string();
    NIBBLE_TRY(runtime.budget.look_at(affix.size()));
    if (at_start ? text.starts_with(affix) : text.ends_with(affix)) return Value::boolean(true);
  }
  return Value::boolean(false);
}

template <bool to_upper>
Result<Value> cased(Runtime& runtime, const Value& subject, const Arguments&) {
  NIBBLE_TRY(check_subject(subject, Kind::kString, to_upper ? "upper" : "lower"));
  NIBBLE_TRY(runtime.budget.look_at(subject.as_string().size()));
  return make_string(NIBBLE_TRY(change_case(subject.as_string(), to_upper)), runtime.budget);
}

Result<Value> replace(Runtime& runtime, const Value& subject, const Arguments& arguments) {
  NIBBLE_TRY(check_subject(subject, Kind::kString, "replace"));
  for (size_t i = 0; i < 2; ++i) {
    if (!arguments.named[i]->is(Kind::kString)) {
      return invalid_argument(
          fmt::format("replace needs str, found {}", type_name(*arguments.named[i])));
    }
  }
  const int64_t count = NIBBLE_TRY(integer_argument(arguments.named[2], -1));
  return replace_text(subject.as_string(), arguments.named[0]->as_string(),
                      arguments.named[1]->as_string(), count, runtime.budget);
}

Result<Value> get(Runtime&, const Value& subject, const Arguments& arguments) {
  NIBBLE_TRY(check_subject(subject, Kind::kDict, "get"));
  const Value& key = *arguments.named[0];
  const Value* found = key.is(Kind::kString) ? subject.as_dict().find(key.as_string()) : nullptr;
  return found != nullptr ? *found : arguments.get(1, Value::none());
}

Result<Value> keys(Runtime& runtime, const Value& subject, const Arguments&) {
  NIBBLE_TRY(check_subject(subject, Kind::kDict, "keys"));
  return make_sequence(Kind::kView, NIBBLE_TRY(iterate(subject, runtime.budget)), runtime.budget);
}

Result<Value> values(Runtime& runtime, const Value& subject, const Arguments&) {
  NIBBLE_TRY(check_subject(subject, Kind::kDict, "values"));
  NIBBLE_TRY(runtime.budget.spend_steps(subject.as_dict().entries().size()));
  std::vector<Value> found;
  for (const auto& [key, value] : subject.as_dict().entries()) found.push_back(value);
  return make_sequence(Kind::kView, std::move(found), runtime.budget);
}

Result<Value> items(Runtime& runtime, const Value& subject, const Arguments&) {
  NIBBLE_TRY(check_subject(subject, Kind::kDict, "items"));
  return dict_items(subject.as_dict(), Kind::kView, runtime.budget);
}

const std::vector<Builtin>& table() {
  static const std::vector<Builtin> kTable = {
      {"split", {"sep", "maxsplit"}, 0, false, split},
      {"strip", {"chars"}, 0, false, strip<Side::kBoth>},
      {"lstrip", {"chars"}, 0, false, strip<Side::kLeft>},
      {"rstrip", {"chars"}, 0, false, strip<Side::kRight>},
      {"startswith", {"prefix"}, 1, false, has_affix<true>},
      {"endswith", {"suffix"}, 1, false, has_affix<false>},
      {"upper", {}, 0, false, cased<true>},
      {"lower", {}, 0, false, cased<false>},
      {"replace", {"old", "new", "count"}, 2, false, replace},
      {"get", {"key", "default"}, 1, false, get},
      {"keys", {}, 0, false, keys},
      {"values", {}, 0, false, values},
      {"items", {}, 0, false, items},
  };
  return kTable;
}

}  // namespace

std::span<const Builtin> methods() { return table(); }

}  // namespace nibble::jinja
