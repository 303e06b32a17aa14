// The filters, tests, methods and functions a template may use. The parser looks names up here, so
// that an unknown one is an error when the template is loaded.
#pragma once

#include <ctime>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/base/result.h"
#include "nibble/tokenizer/jinja_limits.h"
#include "nibble/tokenizer/jinja_value.h"

namespace nibble::jinja {

// What builtins may reach of the running template.
struct Runtime {
  Budget& budget;
  std::time_t now;  // for strftime_now
};

// Arguments after binding: named[i] is what parameters[i] got, or nothing; rest holds further
// positional arguments of a builtin that takes them.
struct Arguments {
  std::vector<std::optional<Value>> named;
  std::vector<Value> rest;

  // The argument, or `otherwise` when it was not given.
  Value get(size_t index, Value otherwise) const {
    return named[index] ? *named[index] : std::move(otherwise);
  }
};

using BuiltinFunction = Result<Value> (*)(Runtime&, const Value& subject, const Arguments&);

struct Builtin {
  std::string_view name;
  std::vector<std::string_view> parameters;  // after the subject
  size_t num_required;
  bool takes_rest;  // any number of positional arguments after the parameters
  BuiltinFunction function;
};

enum class BuiltinTable { kFilter, kTest, kMethod, kFunction };

// The builtin of that name, or null. A method of several types is one builtin.
const Builtin* find_builtin(BuiltinTable table, std::string_view name);

// "default, first, ...": what there is.
std::string builtin_names(BuiltinTable table);

// Calls with positional and named arguments. Errors: kInvalidArgument for too many, too few or
// unknown ones, and what the builtin itself refuses.
Result<Value> call_builtin(const Builtin& builtin, Runtime& runtime, const Value& subject,
                           std::vector<Value> positional,
                           std::vector<std::pair<std::string_view, Value>> named);

// The parser's half of the checks: counts and names of arguments. Returns what is wrong, or "".
std::string check_arguments(const Builtin& builtin, size_t num_positional,
                            std::span<const std::string> named);

std::span<const Builtin> filters();    // jinja_filters.cpp
std::span<const Builtin> tests();      // jinja_tests.cpp
std::span<const Builtin> methods();    // jinja_methods.cpp
std::span<const Builtin> functions();  // jinja_functions.cpp: all but macros and `namespace`

}  // namespace nibble::jinja
