// Tests: what may stand after `is`, and be named in selectattr. Follows Jinja2's tests.py.
#include <fmt/format.h>

#include "nibble/base/error.h"
#include "nibble/tokenizer/jinja_builtins.h"
#include "nibble/tokenizer/jinja_ops.h"

namespace nibble::jinja {
namespace {

using Predicate = bool (*)(const Value&);

template <Predicate predicate>
Result<Value> simple_test(Runtime&, const Value& subject, const Arguments&) {
  return Value::boolean(predicate(subject));
}

bool is_defined(const Value& value) { return !value.is(Kind::kUndefined); }
bool is_undefined(const Value& value) { return value.is(Kind::kUndefined); }
bool is_none(const Value& value) { return value.is(Kind::kNone); }
bool is_string(const Value& value) { return value.is(Kind::kString); }
bool is_mapping(const Value& value) { return value.is(Kind::kDict); }
bool is_number(const Value& value) { return value.is_number(); }
bool is_integer(const Value& value) { return value.is(Kind::kInt); }
bool is_float(const Value& value) { return value.is(Kind::kFloat); }
bool is_boolean(const Value& value) { return value.is(Kind::kBool); }
bool is_true(const Value& value) { return value.is(Kind::kBool) && value.as_bool(); }
bool is_false(const Value& value) { return value.is(Kind::kBool) && !value.as_bool(); }

// Python's iter(value) works. Of an undefined value too, which is empty.
bool is_iterable(const Value& value) {
  return value.is_sequence() || value.is(Kind::kString) || value.is(Kind::kDict) ||
         value.is(Kind::kUndefined) || value.is(Kind::kLoop);
}

// It has __len__ and __getitem__. An undefined value has both, the latter only to complain.
bool is_sequence(const Value& value) {
  return value.is(Kind::kString) || value.is(Kind::kList) || value.is(Kind::kTuple) ||
         value.is(Kind::kDict) || value.is(Kind::kUndefined);
}

Result<Value> is_equal(Runtime& runtime, const Value& subject, const Arguments& arguments) {
  return Value::boolean(NIBBLE_TRY(equal(subject, *arguments.named[0], runtime.budget)));
}

Result<Value> is_unequal(Runtime& runtime, const Value& subject, const Arguments& arguments) {
  return Value::boolean(!NIBBLE_TRY(equal(subject, *arguments.named[0], runtime.budget)));
}

Result<Value> is_in(Runtime& runtime, const Value& subject, const Arguments& arguments) {
  return Value::boolean(NIBBLE_TRY(contains(*arguments.named[0], subject, runtime.budget)));
}

template <bool wanted>
Result<Value> is_odd(Runtime&, const Value& subject, const Arguments&) {
  if (!subject.is_integral()) {
    return invalid_argument(fmt::format("odd and even need int, found {}", type_name(subject)));
  }
  return Value::boolean((subject.as_integer() % 2 != 0) == wanted);
}

const std::vector<Builtin>& table() {
  static const std::vector<Builtin> kTable = {
      {"defined", {}, 0, false, simple_test<is_defined>},
      {"undefined", {}, 0, false, simple_test<is_undefined>},
      {"none", {}, 0, false, simple_test<is_none>},
      {"string", {}, 0, false, simple_test<is_string>},
      {"mapping", {}, 0, false, simple_test<is_mapping>},
      {"iterable", {}, 0, false, simple_test<is_iterable>},
      {"sequence", {}, 0, false, simple_test<is_sequence>},
      {"number", {}, 0, false, simple_test<is_number>},
      {"integer", {}, 0, false, simple_test<is_integer>},
      {"float", {}, 0, false, simple_test<is_float>},
      {"boolean", {}, 0, false, simple_test<is_boolean>},
      {"true", {}, 0, false, simple_test<is_true>},
      {"false", {}, 0, false, simple_test<is_false>},
      {"odd", {}, 0, false, is_odd<true>},
      {"even", {}, 0, false, is_odd<false>},
      {"equalto", {"other"}, 1, false, is_equal},
      {"eq", {"other"}, 1, false, is_equal},
      {"==", {"other"}, 1, false, is_equal},
      {"ne", {"other"}, 1, false, is_unequal},
      {"!=", {"other"}, 1, false, is_unequal},
      {"in", {"seq"}, 1, false, is_in},
  };
  return kTable;
}

}  // namespace

std::span<const Builtin> tests() { return table(); }

}  // namespace nibble::jinja
