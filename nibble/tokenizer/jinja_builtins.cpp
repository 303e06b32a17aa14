// Looking builtins up by name and binding their arguments.
#include "nibble/tokenizer/jinja_builtins.h"

#include <fmt/format.h>

#include <algorithm>

#include "nibble/base/error.h"

namespace nibble::jinja {
namespace {

std::span<const Builtin> table_of(BuiltinTable table) {
  switch (table) {
    case BuiltinTable::kFilter:
      return filters();
    case BuiltinTable::kTest:
      return tests();
    case BuiltinTable::kMethod:
      return methods();
    case BuiltinTable::kFunction:
      break;
  }
  return functions();
}

size_t parameter_index(const Builtin& builtin, std::string_view name) {
  const auto& names = builtin.parameters;
  return static_cast<size_t>(std::find(names.begin(), names.end(), name) - names.begin());
}

}  // namespace

const Builtin* find_builtin(BuiltinTable table, std::string_view name) {
  for (const Builtin& builtin : table_of(table)) {
    if (builtin.name == name) return &builtin;
  }
  return nullptr;
}

std::string builtin_names(BuiltinTable table) {
  std::vector<std::string_view> names;
  for (const Builtin& builtin : table_of(table)) names.push_back(builtin.name);
  std::sort(names.begin(), names.end());
  return fmt::format("{}", fmt::join(names, ", "));
}

std::string check_arguments(const Builtin& builtin, size_t num_positional,
                            std::span<const std::string> named) {
  const size_t num_parameters = builtin.parameters.size();
  if (num_positional > num_parameters && !builtin.takes_rest) {
    return fmt::format("takes at most {} arguments, found {}", num_parameters, num_positional);
  }
  for (const std::string& name : named) {
    const size_t index = parameter_index(builtin, name);
    if (index == num_parameters) {
      return num_parameters == 0 ? fmt::format("has no argument '{}'", name)
                                 : fmt::format("has no argument '{}'; supported: {}", name,
                                               fmt::join(builtin.parameters, ", "));
    }
    if (index < num_positional) return fmt::format("is given '{}' twice", name);
  }
  for (size_t i = num_positional; i < builtin.num_required; ++i) {
    if (std::find(named.begin(), named.end(), builtin.parameters[i]) == named.end()) {
      return fmt::format("needs the argument '{}'", builtin.parameters[i]);
    }
  }
  return "";
}

Result<Value> call_builtin(const Builtin& builtin, Runtime& runtime, const Value& subject,
                           std::vector<Value> positional,
                           std::vector<std::pair<std::string_view, Value>> named) {
  // Checked by the parser for calls in the template, but not for those that `map` and `select`
  // make.
  std::vector<std::string> names;
  for (const auto& [name, unused] : named) names.emplace_back(name);
  const std::string wrong = check_arguments(builtin, positional.size(), names);
  if (!wrong.empty()) return invalid_argument(fmt::format("'{}' {}", builtin.name, wrong));

  Arguments arguments;
  arguments.named.resize(builtin.parameters.size());
  for (size_t i = 0; i < positional.size(); ++i) {
    if (i < arguments.named.size()) {
      arguments.named[i] = std::move(positional[i]);
    } else {
      arguments.rest.push_back(std::move(positional[i]));
    }
  }
  for (auto& [name, value] : named) {
    arguments.named[parameter_index(builtin, name)] = std::move(value);
  }
  return builtin.function(runtime, subject, arguments);
}

}  // namespace nibble::jinja
