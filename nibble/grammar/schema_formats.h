// The formats of JSON schema as regular expressions.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace nibble {

// An anchored pattern for date, date-time (RFC 3339, with the days each month has), uuid or ipv4;
// nothing for another format.
std::optional<std::string> format_pattern(std::string_view format);

}  // namespace nibble
