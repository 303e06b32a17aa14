// Ways to read one setting's text, for the tables of settings.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "nibble/cli/serve_options.h"

namespace nibble {

using Setter = std::function<Status(ServeOptions&, const std::string&)>;

// Errors of all: kInvalidArgument naming the value and what is expected.
Result<int64_t> parse_integer(const std::string& value, int64_t low, int64_t high);
Result<double> parse_number(const std::string& value, double low, double high);
Result<bool> parse_boolean(std::string value);

// "a, b" -> "a", "b".
std::vector<std::string> split_list(const std::string& value);

Setter integer(int64_t low, int64_t high, const std::function<void(ServeOptions&, int64_t)>& store);
Setter number(double low, double high, const std::function<void(ServeOptions&, double)>& store);
Setter boolean(const std::function<void(ServeOptions&, bool)>& store);
Setter text(const std::function<void(ServeOptions&, const std::string&)>& store);
Setter one_of(const std::vector<std::string>& allowed,
              const std::function<void(ServeOptions&, const std::string&)>& store);

// Taken, and told to have no effect, because ...
Setter noted(const std::string& name, const std::string& why);

// kUnsupported, in these words.
Setter refused(const std::string& what);

// Parallelism of which there is only one way.
Setter single(const std::string& instead);

// What trtllm-serve knows; and what only its YAML files have.
void add_compatible_settings(std::vector<ServeSetting>& s);

// Where routed experts are kept.
void add_expert_settings(std::vector<ServeSetting>& s);
void add_yaml_settings(std::vector<ServeSetting>& s);

}  // namespace nibble
