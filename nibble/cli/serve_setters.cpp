#include "nibble/cli/serve_setters.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cstdlib>

#include "nibble/base/error.h"

namespace nibble {

Result<int64_t> parse_integer(const std::string& value, int64_t low, int64_t high) {
  int64_t number = 0;
  const char* end = value.data() + value.size();
  const auto [at, error] = std::from_chars(value.data(), end, number);
  if (error != std::errc() || at != end || number < low || number > high) {
    return invalid_argument(fmt::format("{} is no whole number in {}..{}", value, low, high));
  }
  return number;
}

Result<double> parse_number(const std::string& value, double low, double high) {
  char* end = nullptr;
  const double number = std::strtod(value.c_str(), &end);
  if (value.empty() || *end != '\0')
    return invalid_argument(fmt::format("'{}' is no number", value));
  if (!(number >= low && number <= high)) {
    return invalid_argument(fmt::format("{} is out of range {}..{}", value, low, high));
  }
  return number;
}

Result<bool> parse_boolean(std::string value) {
  std::transform(value.begin(), value.end(), value.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  if (value == "true" || value == "1" || value == "on" || value == "yes") return true;
  if (value == "false" || value == "0" || value == "off" || value == "no") return false;
  return invalid_argument(fmt::format("'{}' is neither true nor false", value));
}

std::vector<std::string> split_list(const std::string& value) {
  std::vector<std::string> parts;
  size_t begin = 0;
  while (begin <= value.size()) {
    const size_t end = std::min(value.find(',', begin), value.size());
    const size_t first = value.find_first_not_of(' ', begin);
    if (first < end) {
      const size_t last = value.find_last_not_of(' ', end - 1);
      parts.push_back(value.substr(first, last + 1 - first));
    }
    begin = end + 1;
  }
  return parts;
}

Setter integer(int64_t low, int64_t high,
               const std::function<void(ServeOptions&, int64_t)>& store) {
  return [=](ServeOptions& options, const std::string& value) -> Status {
    store(options, NIBBLE_TRY(parse_integer(value, low, high)));
    return {};
  };
}
Setter number(double low, double high, const std::function<void(ServeOptions&, double)>& store) {
  return [=](ServeOptions& options, const std::string& value) -> Status {
    store(options, NIBBLE_TRY(parse_number(value, low, high)));
    return {};
  };
}
Setter boolean(const std::function<void(ServeOptions&, bool)>& store) {
  return [=](ServeOptions& options, const std::string& value) -> Status {
    store(options, NIBBLE_TRY(parse_boolean(value)));
    return {};
  };
}
Setter text(const std::function<void(ServeOptions&, const std::string&)>& store) {
  return [=](ServeOptions& options, const std::string& value) -> Status {
    store(options, value);
    return {};
  };
}
Setter one_of(const std::vector<std::string>& allowed,
              const std::function<void(ServeOptions&, const std::string&)>& store) {
  return [=](ServeOptions& options, const std::string& value) -> Status {
    if (std::find(allowed.begin(), allowed.end(), value) == allowed.end()) {
      return invalid_argument(
          fmt::format("'{}' is not one of {}", value, fmt::join(allowed, ", ")));
    }
    store(options, value);
    return {};
  };
}
// Taken, and told to have no effect, because ...
Setter noted(const std::string& name, const std::string& why) {
  return [=](ServeOptions& options, const std::string& value) -> Status {
    options.notes.push_back(fmt::format("{} {}: accepted without effect ({})", name, value, why));
    return {};
  };
}
Setter refused(const std::string& what) {
  return [=](ServeOptions&, const std::string&) -> Status { return unsupported(what); };
}
// Parallelism of which there is only one way.
Setter single(const std::string& instead) {
  return [=](ServeOptions&, const std::string& value) -> Status {
    if (value == "auto" || value == "1") return {};
    NIBBLE_TRY(parse_integer(value, 1, 1 << 20));
    return unsupported(fmt::format(
        "{} is not supported: this build runs a model in one process on one device, with all of "
        "its processors ({}); use 1",
        value, instead));
  };
}

void Problems::add(const Status& status) {
  if (status) return;
  only_unsupported_ = only_unsupported_ && status.error().code == ErrorCode::kUnsupported;
  text_ += (text_.empty() ? "" : "\n") + status.error().message;
}

Status Problems::status() const {
  if (text_.empty()) return {};
  return only_unsupported_ ? Status(unsupported(text_)) : Status(invalid_argument(text_));
}

}  // namespace nibble
