#include "nibble/grammar/schema_formats.h"

namespace nibble {
namespace {

// Years 0001 to 9999; the 29th of February in leap years only.
std::string date() {
  const std::string year = "(000[1-9]|00[1-9]\\d|0[1-9]\\d\\d|[1-9]\\d\\d\\d)";
  const std::string month_day =
      "((0[13578]|1[02])-(0[1-9]|[12]\\d|3[01])|(0[469]|11)-(0[1-9]|[12]\\d|30)|"
      "02-(0[1-9]|1\\d|2[0-8]))";
  const std::string leap_year =
      "(\\d\\d(0[48]|[2468][048]|[13579][26])|(0[48]|[2468][048]|[13579][26])00)";
  return "(" + year + "-" + month_day + "|" + leap_year + "-02-29)";
}

std::string date_time() {
  return date() +
         "T([01]\\d|2[0-3]):[0-5]\\d:[0-5]\\d(\\.\\d{1,9})?(Z|[+-]([01]\\d|2[0-3]):[0-5]\\d)";
}

}  // namespace

std::optional<std::string> format_pattern(std::string_view format) {
  if (format == "date") return "^" + date() + "$";
  if (format == "date-time") return "^" + date_time() + "$";
  if (format == "uuid") {
    return "^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}$";
  }
  if (format == "ipv4") {
    const std::string octet = "(25[0-5]|2[0-4]\\d|1\\d\\d|[1-9]?\\d)";
    return "^(" + octet + "\\.){3}" + octet + "$";
  }
  return std::nullopt;
}

}  // namespace nibble
