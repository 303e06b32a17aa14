// One of a few things by its name.
#pragma once

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/base/error.h"
#include "nibble/base/result.h"
#include "nibble/base/text.h"

namespace nibble {

// The value whose name is `name`. Errors: kInvalidArgument "WHAT is 'x', expected a, b or c", with
// the nearest names.
template <typename T>
Result<T> choose_by_name(std::string_view what, std::string_view name, std::span<const T> values,
                         std::string_view (*name_of)(T)) {
  std::vector<std::string> names;
  for (const T value : values) {
    if (name_of(value) == name) return value;
    names.emplace_back(name_of(value));
  }
  return invalid_argument(fmt::format("{} is '{}', expected {} or {}{}", what, name,
                                      fmt::join(names.begin(), names.end() - 1, ", "), names.back(),
                                      did_you_mean(name, names)));
}

}  // namespace nibble
